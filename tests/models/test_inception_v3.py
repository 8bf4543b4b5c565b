"""Inception-v3 against keras.applications: its layers, their order, and its logits."""

import math

import jax
import keras_reference
import numpy as np
import pytest
from flax import nnx

from corrq_jax import models
from corrq_jax.flax import functional
from corrq_jax.models import inception_v3, inception_v3_weights
from corrq_jax.moments import trace

# Keras's variables lack an argument that NumPy 2 wants where Keras saves them.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

NAME = "inception_v3"
SHAPE = (75, 101)  # 75 is the least that Keras allows


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


def layers_with_weights(model):
    return [layer for layer in model.layers if layer.weights]


def test_layers_are_those_of_keras(reference):
    from keras.src.utils.naming import to_snake_case

    layers = layers_with_weights(reference.model)
    own = inception_v3_weights.keras_layers(NAME)
    assert [x.kind for x in own] == [to_snake_case(type(x).__name__) for x in layers]
    numbered = [None] * (len(layers) - 1)  # 94 convolutions, each with a BatchNorm
    assert [x.name for x in own] == [*numbered, "predictions"] == [*numbered, layers[-1].name]
    assert len(numbered) == 2 * 94
    shapes = {
        path: leaf.get_value().shape
        for path, leaf in nnx.to_flat_state(
            nnx.state(nnx.eval_shape(lambda: inception_v3.create(NAME, 7, rngs=nnx.Rngs(0))))
        )
    }
    for layer, keras_layer in zip(own, layers, strict=True):
        expected = [tuple(weight.shape) for weight in keras_layer.weights]
        assert [shapes[path] for path in layer.leaves] == expected, layer


@pytest.mark.parametrize("kind", ["conv2d", "batch_normalization"])
def test_layers_are_in_the_order_of_keras(reference, kind):
    """Keras numbers layers as they are created, which is the order of our blocks' tables."""
    numbers = [
        int(layer.name.removeprefix(kind).lstrip("_") or 0)
        for layer in layers_with_weights(reference.model)
        if layer.name.startswith(kind)
    ]
    created = [("stem", f"conv{index}") for index in range(1, 6)]
    for name, block in inception_v3.BLOCKS.items():
        created += [(name, conv.name) for conv in block.convs]
    own = [
        created.index(layer.leaves[0][:2])
        for layer in inception_v3_weights.keras_layers(NAME)
        if layer.kind == kind
    ]
    # Networks that were made before shift all numbers.
    assert own == [number - min(numbers) for number in numbers]
    assert own[5:9] == [8, 6, 9, 5]


def test_size_is_that_of_keras():
    model = keras_reference.keras().applications.InceptionV3(weights=None)
    network = nnx.state(nnx.eval_shape(lambda: models.create(NAME)))
    assert sum(math.prod(x.shape) for x in jax.tree.leaves(network)) == model.count_params()


def test_logits_equal_those_of_keras(network, reference):
    found = logits(network, reference.images)
    assert found.shape == (2, 7)
    # Float32 sums in another order, over some 50 layers.
    assert keras_reference.relative_error(found, reference.logits) < 1e-4


def test_logits_equal_those_of_keras_where_other_layers_have_odd_sizes(network):
    other = keras_reference.reference(NAME, (98, 79), classes=7)  # the same weights
    found = logits(network, other.images)
    assert keras_reference.relative_error(found, other.logits) < 1e-4


def test_both_layouts_give_the_same_network(network, files):
    numbered = models.load(NAME, files / "numbered.weights.h5")
    for (path, a), (_, b) in zip(
        nnx.to_flat_state(nnx.state(network)), nnx.to_flat_state(nnx.state(numbered)), strict=True
    ):
        np.testing.assert_array_equal(a.get_value(), b.get_value(), err_msg=str(path))


def test_tree_has_readable_names(network):
    state = nnx.state(network)
    assert {
        "stem/conv5/norm/mean",
        "mixed0/branch5x5_1/conv/kernel",
        "mixed3/branch3x3/conv/kernel",
        "mixed8/branch7x7x3_4/norm/bias",
        "mixed10/branch3x3dbl_3b/conv/kernel",
        "classifier/kernel",
    } <= {"/".join(path) for path, _ in nnx.to_flat_state(state)}
    assert not any(path[-1] == "scale" for path, _ in nnx.to_flat_state(state))


def test_every_kernel_is_traced(network):
    apply, params = functional(network)
    wiring = trace(apply, params, jax.ShapeDtypeStruct((1, *SHAPE, 3), np.float32))
    kernels = {"/".join(p) for p, _ in nnx.to_flat_state(nnx.state(network)) if p[-1] == "kernel"}
    assert not wiring.unreached
    assert {site.kernel for site in wiring.sites if site.targets} == kernels
    assert set(wiring.shares) == kernels
