"""MobileNet-v2 against Keras: its table of layers, its logits, both kinds of files, bad files."""

import math

import jax
import keras_reference
import numpy as np
import pytest
from flax import nnx

from corrq_jax import models
from corrq_jax.errors import InputError
from corrq_jax.flax import functional
from corrq_jax.models import mobilenet_v2, mobilenet_v2_weights
from corrq_jax.moments import trace

# Keras's variables are no up-to-date NumPy arrays, which shows where Keras saves them.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

NAME = "mobilenet_v2"
ODD = (75, 101)  # the sizes of its stages, 38 19 10 5 3 and 51 26 13 7 4, are odd and even
CLASSES = 7


@pytest.fixture(scope="module")
def reference():
    return keras_reference.reference(NAME, ODD, CLASSES)


@pytest.fixture(scope="module")
def files(reference, tmp_path_factory):
    """The same weights in the older layout and in that of Keras 3."""
    folder = tmp_path_factory.mktemp("weights")
    keras_reference.save_older(reference.model, folder / "x.h5")
    reference.model.save_weights(folder / "x.weights.h5")
    return folder / "x.h5", folder / "x.weights.h5"


@pytest.fixture(scope="module")
def network(files):
    return models.load(NAME, files[0])


def logits(network, images):
    with jax.default_matmul_precision("highest"):
        return nnx.jit(network)(images)


def test_layers_are_those_of_keras_in_order(reference):
    to_snake_case = keras_reference.keras().src.utils.naming.to_snake_case
    expected = [layer for layer in reference.model.layers if layer.weights]
    found = mobilenet_v2_weights.keras_layers(NAME)
    assert [(layer.kind, layer.name, len(layer.leaves)) for layer in found] == [
        (to_snake_case(type(layer).__name__), layer.name, len(layer.weights)) for layer in expected
    ]
    shapes = shapes_by_path(CLASSES)
    for ours, theirs in zip(found, expected, strict=True):
        for path, weight in zip(ours.leaves, theirs.weights, strict=True):
            shape = tuple(weight.shape)
            if ours.kind == "depthwise_conv2d":  # one feature a channel
                shape = (*shape[:2], 1, shape[2])
            assert shapes.pop(path) == shape
    assert not shapes


def shapes_by_path(classes):
    network = nnx.eval_shape(lambda: mobilenet_v2.create(NAME, classes, rngs=nnx.Rngs(0)))
    return {path: leaf.shape for path, leaf in nnx.to_flat_state(nnx.state(network))}


@pytest.fixture(scope="module")
def published_size():
    return keras_reference.reference(NAME, (224, 224))


def test_parameter_count(published_size):
    count = sum(math.prod(shape) for shape in shapes_by_path(1000).values())
    assert count == published_size.model.count_params() == 3_538_984


# Float32 sums in another order, over some 50 layers.
TOLERANCE = 1e-4


def test_logits_equal_those_of_keras_at_an_odd_size(network, reference):
    found = logits(network, reference.images)
    assert found.shape == (2, CLASSES)
    assert keras_reference.relative_error(found, reference.logits) < TOLERANCE
    # What of the pictures arrives at the logits is far more than that.
    assert keras_reference.relative_error(*reference.logits) > 0.05


def test_logits_equal_those_of_keras_at_its_own_size(published_size, tmp_path):
    path = tmp_path / "x.weights.h5"
    published_size.model.save_weights(path)
    found = logits(models.load(NAME, path), published_size.images)
    assert keras_reference.relative_error(found, published_size.logits) < TOLERANCE


def test_both_layouts_of_files_fill_alike(network, files):
    loaded = models.load(NAME, files[1])
    for (path, a), (_, b) in zip(
        nnx.to_flat_state(nnx.state(network)), nnx.to_flat_state(nnx.state(loaded)), strict=True
    ):
        assert a.dtype == np.float32
        np.testing.assert_array_equal(a.get_value(), b.get_value(), err_msg=str(path))


def test_tree_has_readable_names(network):
    paths = {"/".join(path) for path, _ in nnx.to_flat_state(nnx.state(network, nnx.Param))}
    assert {
        "stem/conv/kernel",
        "stage1/block1/depthwise/conv/kernel",
        "stage4/block4/expand/norm/scale",
        "head/norm/bias",
        "classifier/kernel",
    } <= paths
    assert "stage1/block1/expand/conv/kernel" not in paths


def test_every_kernel_is_reached_by_tracing(network):
    apply, params = functional(network)
    wiring = trace(apply, params, jax.ShapeDtypeStruct((1, *ODD, 3), np.float32))
    assert not wiring.unreached
    kernels = [path for path, shape in wiring.shapes.items() if path.endswith("kernel")]
    assert len(kernels) == 53
    assert {site.kernel for site in wiring.sites} == set(kernels) == set(wiring.shares)
    assert all(site.norm_mean or site.kernel == "classifier/kernel" for site in wiring.sites)


def test_one_error_lists_all_that_is_wrong(files):
    h5py = pytest.importorskip("h5py")
    path = files[1].with_name("bad.weights.h5")
    path.write_bytes(files[1].read_bytes())
    with h5py.File(path, "r+") as file:
        layers = file["layers"]
        del layers["depthwise_conv2d_16"]
        del layers["batch_normalization_2/vars/3"]
        del layers["conv2d/vars/0"]
        layers["conv2d/vars/0"] = np.zeros((3, 3, 4, 32), np.float32)
        layers["dense_1/vars/0"] = np.zeros((7, 7), np.float32)
    with pytest.raises(InputError) as error:
        models.load(NAME, path)
    message = str(error.value)
    assert message.startswith(f"{path}: these are not the weights of {NAME}")
    for line in (
        "missing: block_16_depthwise, array 0",
        "layer batch_normalization_2 has 3 arrays, expanded_conv_project_BN 4",
        "shape of conv2d, array 0: (3, 3, 4, 32) makes (3, 3, 4, 32), but (3, 3, 3, 32)",
        "unknown: layer dense_1",
    ):
        assert line in message
