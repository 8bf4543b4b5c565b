"""ResNet-152 v2 against keras.applications: its layers, its logits, its files."""

import math

import jax
import keras_reference
import numpy as np
import pytest
from flax import nnx

from corrq_jax import models
from corrq_jax.errors import InputError
from corrq_jax.flax import functional
from corrq_jax.models import resnet_v2_weights
from corrq_jax.moments import trace

# Keras's variables lack an argument that NumPy 2 wants where Keras saves them.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

NAME = "resnet152v2"
SHAPE = (33, 47)
# Float32 sums in another order, over some 150 layers, are 1e-6 off; exchanging the values of one
# bias or mean, of any layer, changes more than 1e-3.
TOLERANCE = 1e-4


def factor(kind, shape):
    """The kernel that ends a block is smaller.

    Nothing normalizes the sum at the end of a block, and it would double its variance in each of
    the 50: the biases of the last ones would be lost in the rounding of 1e8.
    """
    ends_block = kind == "kernel" and shape[:2] == (1, 1) and shape[3] == 4 * shape[2]
    return 0.3 if ends_block else 1


@pytest.fixture(scope="module")
def reference():
    return keras_reference.reference(NAME, SHAPE, classes=7, factor=factor)


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


def leaves(network):
    return {path: leaf.get_value() for path, leaf in nnx.to_flat_state(nnx.state(network))}


def test_layers_are_those_of_keras(reference, network):
    from keras.src.utils.naming import to_snake_case

    layers = [layer for layer in reference.model.layers if layer.weights]
    own = resnet_v2_weights.keras_layers(NAME)
    assert [(x.kind, x.name, len(x.leaves)) for x in own] == [
        (to_snake_case(type(x).__name__), x.name, len(x.weights)) for x in layers
    ]
    shapes = {path: leaf.shape for path, leaf in leaves(network).items()}
    for ours, theirs in zip(own, layers, strict=True):
        for path, weight in zip(ours.leaves, theirs.weights, strict=True):
            assert shapes.pop(path) == tuple(weight.shape), path
    assert not shapes


def test_size_is_that_of_keras(reference):
    network = nnx.state(nnx.eval_shape(lambda: models.create(NAME)))
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(network))
    assert count == 60_380_648  # as Keras publishes
    # The reference has 7 classes of 2,048 weights and a bias in place of 1,000.
    assert count == reference.model.count_params() + (1000 - 7) * 2049


def test_logits_equal_those_of_keras(network, reference):
    found = logits(network, reference.images)
    assert found.shape == (2, 7)
    assert keras_reference.relative_error(found, reference.logits) < TOLERANCE


def test_logits_equal_those_of_keras_at_its_own_size(network):
    other = keras_reference.reference(NAME, (224, 224), classes=7, factor=factor)  # same weights
    found = logits(network, other.images)
    assert keras_reference.relative_error(found, other.logits) < TOLERANCE


def test_both_layouts_give_the_same_network(network, files):
    expected = leaves(network)
    found = leaves(models.load(NAME, files / "numbered.weights.h5"))
    assert found.keys() == expected.keys()
    for path, array in found.items():
        np.testing.assert_array_equal(array, expected[path], err_msg=str(path))


def test_tree_has_readable_names(network):
    assert {
        "stem/kernel",
        "stage1/block1/preact_norm/scale",
        "stage1/block1/shortcut/bias",
        "stage3/block36/conv2/conv/kernel",
        "stage4/block3/conv3/kernel",
        "norm/mean",
        "classifier/kernel",
    } <= {"/".join(path) for path in leaves(network)}


def test_weights_of_the_other_resnet_are_refused(files):
    with pytest.raises(InputError, match="these are not the weights of resnet50"):
        models.load("resnet50", files / "older.h5")


def test_every_kernel_is_traced(network):
    apply, params = functional(network)
    wiring = trace(apply, params, jax.ShapeDtypeStruct((1, *SHAPE, 3), np.float32))
    kernels = {"/".join(path) for path in leaves(network) if path[-1] == "kernel"}
    assert len(kernels) == 156
    assert not wiring.unreached
    assert {site.kernel for site in wiring.sites} == kernels == set(wiring.shares)
    for site in wiring.sites:
        unit = site.kernel.removesuffix("/kernel")
        if unit.endswith("/conv"):  # with a BatchNorm of its own
            norm = f"{unit.removesuffix('/conv')}/norm"
            assert site.targets == (f"{norm}/mean", f"{norm}/var")
        else:
            assert site.targets == (f"{unit}/bias",)
