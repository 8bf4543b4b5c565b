"""Xception against keras.applications: its layers, its logits, and files that do not fit."""

import math

import h5py
import jax
import keras_reference
import numpy as np
import pytest
from flax import nnx

from corrq_jax import models
from corrq_jax.errors import InputError
from corrq_jax.flax import functional
from corrq_jax.models import xception_weights
from corrq_jax.moments import trace

# Keras's variables lack an argument that NumPy 2 wants where Keras saves them.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

NAME = "xception"
SHAPE = (75, 101)


@pytest.fixture(scope="module")
def reference():
    return keras_reference.reference(NAME, SHAPE, classes=7)


@pytest.fixture(scope="module")
def files(reference, tmp_path_factory):
    folder = tmp_path_factory.mktemp(NAME)
    keras_reference.save_older(reference.model, folder / "older.h5")
    reference.model.save_weights(folder / "numbered.weights.h5")
    return folder


@pytest.fixture(scope="module")
def network(files):
    return models.load(NAME, files / "older.h5")


@jax.jit
def logits(network, images):
    with jax.default_matmul_precision("highest"):
        return network(images)


def test_layers_are_those_of_keras(reference):
    from keras.src.utils.naming import to_snake_case

    layers = [layer for layer in reference.model.layers if layer.weights]
    own = xception_weights.keras_layers(NAME)
    assert [x.kind for x in own] == [to_snake_case(type(x).__name__) for x in layers]
    assert [len(x.leaves) for x in own] == [len(x.weights) for x in layers]
    numbered = ("conv2d", "batch_normalization")
    assert [x.name for x in own] == [
        None if x.name.startswith(numbered) else x.name for x in layers
    ]
    assert sum(x.name is None for x in own) == 8  # four shortcuts


def test_size_is_that_of_keras():
    model = keras_reference.keras().applications.Xception(weights=None)
    network = nnx.state(nnx.eval_shape(lambda: models.create(NAME)))
    assert sum(math.prod(x.shape) for x in jax.tree.leaves(network)) == model.count_params()


def test_logits_equal_those_of_keras(network, reference):
    found = logits(network, reference.images)
    assert found.shape == (2, 7)
    # Float32 sums in another order, over some 40 layers.
    assert keras_reference.relative_error(found, reference.logits) < 1e-4


@pytest.mark.parametrize("shape", [(72, 71), (299, 299)])
def test_logits_equal_those_of_keras_at_other_sizes(network, shape):
    other = keras_reference.reference(NAME, shape, classes=7)  # the same weights
    found = logits(network, other.images)
    assert keras_reference.relative_error(found, other.logits) < 1e-4


def test_both_layouts_give_the_same_network(network, files):
    numbered = models.load(NAME, files / "numbered.weights.h5")
    for (path, a), (_, b) in zip(
        nnx.to_flat_state(nnx.state(network)), nnx.to_flat_state(nnx.state(numbered)), strict=True
    ):
        np.testing.assert_array_equal(a.get_value(), b.get_value(), err_msg=str(path))


def test_tree_has_readable_names(network):
    paths = {"/".join(path) for path, _ in nnx.to_flat_state(nnx.state(network))}
    assert {
        "stem/conv1/conv/kernel",
        "entry1/shortcut/norm/mean",
        "middle8/separable3/depthwise/kernel",
        "middle8/separable3/pointwise/kernel",
        "exit2/separable2/norm/scale",
        "classifier/bias",
    } <= paths


def test_one_error_lists_all_that_is_wrong(files, tmp_path):
    path = tmp_path / "bad.h5"
    path.write_bytes((files / "older.h5").read_bytes())
    with h5py.File(path, "r+") as file:
        names = [name for name in file.attrs["layer_names"] if name != "block14_sepconv2_bn"]
        file.attrs["layer_names"] = np.array([*names, "surplus1", "surplus2"], "S")
        for name in ("surplus1", "surplus2"):
            file[f"{name}/kernel"] = np.zeros(3, np.float32)
            file[name].attrs["weight_names"] = ["kernel"]
        [kernel] = file["block1_conv1"].attrs["weight_names"]
        del file["block1_conv1"][kernel]
        file["block1_conv1"][kernel] = np.zeros((3, 3, 4, 32), np.float32)
    with pytest.raises(InputError) as error:
        models.load(NAME, path)
    message = str(error.value)
    assert message.startswith(f"{path}: these are not the weights of xception: 7 problems")
    for line in (
        "shape of block1_conv1, array 0: (3, 3, 4, 32) makes (3, 3, 4, 32), but (3, 3, 3, 32) is",
        "layer surplus1 has 1 arrays, block14_sepconv2_bn 4",
        *(f"missing: block14_sepconv2_bn, array {index}" for index in range(4)),
        "unknown: layer surplus2",
    ):
        assert line in message


def test_every_kernel_is_traced(network):
    apply, params = functional(network)
    wiring = trace(apply, params, jax.ShapeDtypeStruct((1, *SHAPE, 3), np.float32))
    kernels = {"/".join(p) for p, _ in nnx.to_flat_state(nnx.state(network)) if p[-1] == "kernel"}
    assert not wiring.unreached
    assert {site.kernel for site in wiring.sites} == kernels
    # All but depthwise convolutions, which are followed by pointwise ones, can be corrected.
    assert {s.kernel for s in wiring.sites if not s.targets} == {
        k for k in kernels if "depthwise" in k
    }
