"""Keras's files that do not fit: one error lists all that is wrong."""

import h5py
import keras_reference
import numpy as np
import pytest

from corrq_jax import models
from corrq_jax.errors import InputError

# Keras's variables lack an argument that NumPy 2 wants where Keras saves them.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

NAME = "mobilenet_v2"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    model = keras_reference.network(NAME, (75, 101), 7)
    folder = tmp_path_factory.mktemp("weights")
    keras_reference.save_older(model, folder / "older.h5")
    model.save_weights(folder / "numbered.weights.h5")
    return folder


def problems(path, name=NAME):
    with pytest.raises(InputError) as error:
        models.load(name, path)
    first, *others = str(error.value).splitlines()
    assert first.startswith(f"{path}: these are not the weights of {name}: {len(others)} problems")
    return [line.strip() for line in others]


def test_older_file(files, tmp_path):
    path = tmp_path / "bad.h5"
    path.write_bytes((files / "older.h5").read_bytes())
    with h5py.File(path, "r+") as file:
        names = [str(name) for name in file.attrs["layer_names"]]
        names.remove("block_2_expand_BN")
        for name in ("surplus1", "surplus2"):
            file.create_group(name)["kernel"] = np.zeros(3, np.float32)
            file[name].attrs["weight_names"] = [b"kernel"]
            names.append(name)
        file.attrs["layer_names"] = [name.encode() for name in names]
        norm = file["block_1_project_BN"]
        beta = norm.attrs["weight_names"][1]
        del norm[beta]
        norm[beta] = np.zeros(25, np.float32)
    assert sorted(problems(path)) == [
        "layer surplus1 has 1 arrays, block_2_expand_BN 4",
        *(f"missing: block_2_expand_BN, array {index}" for index in range(4)),
        "shape of block_1_project_BN, array 1: (25,) makes (25,), but (24,) is needed",
        "unknown: layer surplus2",
    ]


def test_numbered_file(files, tmp_path):
    path = tmp_path / "bad.weights.h5"
    path.write_bytes((files / "numbered.weights.h5").read_bytes())
    with h5py.File(path, "r+") as file:
        layers = file["layers"]
        del layers["depthwise_conv2d_16"]
        del layers["batch_normalization_2/vars/3"]
        del layers["conv2d/vars/0"]
        layers["conv2d/vars/0"] = np.zeros((3, 3, 4, 32), np.float32)
        layers["dense_1/vars/0"] = np.zeros((7, 7), np.float32)
    assert sorted(problems(path)) == [
        "layer batch_normalization_2 has 3 arrays, expanded_conv_project_BN 4",
        "missing: block_16_depthwise, array 0",
        *(f"missing: expanded_conv_project_BN, array {index}" for index in range(4)),
        "shape of conv2d, array 0: (3, 3, 4, 32) makes (3, 3, 4, 32), but (3, 3, 3, 32) is needed",
        "unknown: layer dense_1",
    ]


def test_another_network(files):
    assert problems(files / "older.h5", "resnet50")


def test_files_of_the_other_kind(tmp_path):
    with pytest.raises(InputError, match=r"takes \.h5.*PyTorch's weights are for resnet50_torch"):
        models.load("resnet50", tmp_path / "resnet50.pth")
    with pytest.raises(InputError, match=r"mobilenet_v2 takes \.h5, \.weights\.h5 or \.keras"):
        models.load(NAME, tmp_path / "x.safetensors")
