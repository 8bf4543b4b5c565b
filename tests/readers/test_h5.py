"""Keras's two HDF5 layouts, written here as Keras writes them."""

import h5py
import ml_dtypes
import numpy as np
import pytest

import corrq_jax
from corrq_jax.readers import read_weights

KERNEL = np.arange(12, dtype=np.float32).reshape(3, 4)
BIAS = np.arange(4, dtype=np.float32)


def write_layers(group, layer="dense"):
    """The older layout: layers by name, their weights by name below, both in attributes."""
    group.attrs["layer_names"] = [layer.encode()]
    inner = group.create_group(layer)
    inner.attrs["weight_names"] = [f"{layer}/kernel:0".encode(), f"{layer}/bias:0".encode()]
    inner[f"{layer}/kernel:0"] = KERNEL
    inner[f"{layer}/bias:0"] = BIAS


def assert_dense(read, kernel, bias):
    assert set(read) == {kernel, bias}
    np.testing.assert_array_equal(read[kernel], KERNEL)
    np.testing.assert_array_equal(read[bias], BIAS)


def test_older_weights_file(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        write_layers(file)
    assert_dense(read_weights(tmp_path / "a.h5"), "dense/dense/kernel:0", "dense/dense/bias:0")


def test_older_model_file_gives_the_names_of_the_weights_file(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        write_layers(file.create_group("model_weights"))
        file["optimizer_weights/Adam/iterations:0"] = np.int64(3)
    assert_dense(read_weights(tmp_path / "a.h5"), "dense/dense/kernel:0", "dense/dense/bias:0")


def test_a_layer_called_optimizer_is_a_layer(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        write_layers(file, "optimizer")
    names = "optimizer/optimizer/kernel:0", "optimizer/optimizer/bias:0"
    assert_dense(read_weights(tmp_path / "a.h5"), *names)


def test_keras_3_weights_file(tmp_path):
    path = tmp_path / "a.weights.h5"
    with h5py.File(path, "w") as file:
        file["layers/dense/vars/0"] = KERNEL
        file["layers/dense/vars/1"] = BIAS
        file["optimizer/vars/0"] = np.int64(3)
        file.create_group("layers/dropout/vars")
    assert_dense(read_weights(path), "layers/dense/vars/0", "layers/dense/vars/1")


def test_keras_3_bfloat16(tmp_path):
    values = np.array([1.0, -0.5], ml_dtypes.bfloat16)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("layers/dense/vars/0", data=values).attrs["dtype"] = "bfloat16"
    read = read_weights(tmp_path / "a.h5")["layers/dense/vars/0"]
    assert read.dtype == values.dtype
    np.testing.assert_array_equal(read, values)


@pytest.mark.parametrize("options", [{}, {"chunks": (100_000,), "compression": "gzip"}])
def test_zeros_that_compress_well(tmp_path, options):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("w", data=np.zeros(1_000_000, np.float32), **options)
    assert read_weights(tmp_path / "a.h5")["w"].shape == (1_000_000,)


def test_other_byte_order(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["w"] = KERNEL.astype(">f4")
    read = read_weights(tmp_path / "a.h5")["w"]
    assert read.dtype == np.float32
    assert read.dtype.isnative
    np.testing.assert_array_equal(read, KERNEL)


def _external_values(file, folder):
    (folder / "secret").write_bytes(bytes(16))
    file.create_dataset("w", (4,), "f4", external=[(str(folder / "secret"), 0, 16)])


def _virtual(file, folder):
    layout = h5py.VirtualLayout(shape=(4,), dtype="f4")
    layout[:] = h5py.VirtualSource(str(folder / "other.h5"), "x", shape=(4,))
    file.create_virtual_dataset("w", layout)


def _unwritten(file, folder):
    file.create_dataset("w", (10**12,), "f8", chunks=(1000,))


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (_external_values, "'w' is empty or keeps its values elsewhere"),
        (_virtual, "'w' is empty or keeps its values elsewhere"),
        (lambda file, folder: file.create_dataset("w", data=h5py.Empty("f4")), "'w' is empty"),
        (_unwritten, "'w' claims 8000000000000 bytes but stores 0"),
        (lambda file, folder: file.create_dataset("w", data="text"), "'w' has dtype"),
        (
            lambda file, folder: file.create_dataset("w", data=np.zeros(2, [("x", "f4")])),
            "'w' has dtype",
        ),
    ],
)
def test_what_is_no_array_of_numbers_is_refused(tmp_path, write, message):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        write(file, tmp_path)
    with pytest.raises(corrq_jax.FileFormatError, match=message):
        read_weights(tmp_path / "a.h5")


def test_links_to_other_files_are_not_followed(tmp_path):
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["secret"] = KERNEL
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["w"] = BIAS
        file["elsewhere"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "secret")
    assert set(read_weights(tmp_path / "a.h5")) == {"w"}


def test_model_weights_that_is_elsewhere_or_no_group(tmp_path):
    with h5py.File(tmp_path / "other.h5", "w") as file:
        write_layers(file.create_group("model_weights"))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["model_weights"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "model_weights")
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["model_weights"] = BIAS
    with pytest.raises(corrq_jax.FileFormatError, match="no arrays"):
        read_weights(tmp_path / "a.h5")
    assert set(read_weights(tmp_path / "b.h5")) == {"model_weights"}
