"""Layers of Keras's files, in the model's order, from files written here as Keras writes them."""

import zipfile

import h5py
import numpy as np
import pytest

from corrq_jax.errors import FileFormatError
from corrq_jax.readers.keras_layers import read_keras_layers

NAMES = ("zulu", "mike", "alpha")  # the order of the model is not the file's, which is sorted


def array(number, size=3):
    return np.full(size, number, np.float32)


def write_older(group, names=NAMES, chunked=False):
    listed = [name.encode() for name in (*names, "pool")]
    if chunked:  # as Keras writes lists of names that an attribute does not hold
        group.attrs["layer_names0"], group.attrs["layer_names1"] = listed[:2], listed[2:]
    else:
        group.attrs["layer_names"] = listed
    group.create_group("pool").attrs["weight_names"] = []
    for number, name in enumerate(names):
        inner = group.create_group(name)
        inner.attrs["weight_names"] = [f"{name}/W:0".encode(), f"{name}/b:0".encode()]
        inner[f"{name}/W:0"] = array(number)
        inner[f"{name}/b:0"] = array(-number)


def write_numbered(group, counts):
    for kind, count in counts.items():
        for number in range(count):
            name = f"layers/{kind}_{number}" if number else f"layers/{kind}"
            for index in range(11):
                group[f"{name}/vars/{index}"] = array(number * 100 + index)
    group.create_group("layers/activation/vars")


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("where", ["/", "model_weights"])
def test_older_files_are_in_the_listed_order(tmp_path, where, chunked):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        write_older(file.require_group(where), chunked=chunked)
    layers = read_keras_layers(path)
    assert [(layer.name, layer.kind) for layer in layers] == [(name, None) for name in NAMES]
    for number, layer in enumerate(layers):
        kernel, bias = layer.arrays
        np.testing.assert_array_equal(kernel, array(number))
        np.testing.assert_array_equal(bias, array(-number))


def test_numbered_layers_and_arrays_go_by_number_not_by_text(tmp_path):
    path = tmp_path / "a.weights.h5"
    with h5py.File(path, "w") as file:
        write_numbered(file, {"conv2d": 12, "depthwise_conv2d": 2})
    layers = read_keras_layers(path)
    assert [layer.kind for layer in layers] == ["conv2d"] * 12 + ["depthwise_conv2d"] * 2
    assert [layer.name for layer in layers[:3]] == ["conv2d", "conv2d_1", "conv2d_2"]
    for number, layer in enumerate(layers[:12]):
        assert [a[0] for a in layer.arrays] == [100 * number + index for index in range(11)]


def test_keras_archive(tmp_path):
    weights, path = tmp_path / "model.weights.h5", tmp_path / "model.keras"
    with h5py.File(weights, "w") as file:
        write_numbered(file, {"dense": 2})
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(weights, "model.weights.h5")
        archive.writestr("config.json", "{}")
    assert [layer.name for layer in read_keras_layers(path)] == ["dense", "dense_1"]


def listed_but_absent(file):
    write_older(file)
    del file["mike/mike/W:0"]


def link_elsewhere(file):
    write_older(file)
    del file["mike"]
    file["mike"] = h5py.ExternalLink("other.h5", "/")


def a_group_for_an_array(file):
    write_older(file)
    del file["mike/mike/W:0"]
    file.create_group("mike/mike/W:0")


def something_else(file):
    file["x"] = np.zeros(3)


def not_a_number(file):
    file["layers/dense/vars/kernel"] = array(0)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (listed_but_absent, "'mike/W:0' is listed but not in the file"),
        (link_elsewhere, "'mike' is listed but not in the file"),
        (a_group_for_an_array, "'mike/W:0' is not a dataset"),
        (something_else, "neither 'layer_names' nor 'layers' is in it"),
        (not_a_number, "not a Keras HDF5 file"),
    ],
)
def test_bad_files(tmp_path, write, message):
    path = tmp_path / "bad.h5"
    with h5py.File(path, "w") as file:
        write(file)
    with pytest.raises(FileFormatError, match=message) as error:
        read_keras_layers(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("content", [b"", b"no HDF5", b"\x89HDF\r\n\x1a\n cut"])
def test_no_hdf5(tmp_path, content):
    path = tmp_path / "bad.h5"
    path.write_bytes(content)
    with pytest.raises(FileFormatError, match=r"bad\.h5"):
        read_keras_layers(path)
