"""Every network of keras.applications against Keras: layers, sizes, logits, both kinds of files."""

import gc
import importlib
import math
import shutil
from typing import NamedTuple

import jax
import keras_reference
import numpy as np
import pytest
from flax import nnx

from corrq_jax import models
from corrq_jax.flax import functional
from corrq_jax.models import keras_weights, vgg16
from corrq_jax.models.filling import OneKey
from corrq_jax.moments import trace
from corrq_jax.readers.keras_layers import read_keras_layers

# Keras's variables lack an argument that NumPy 2 wants where Keras saves them.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

CLASSES = 7


def ends_of_blocks(kind, shape):
    """In ResNet152V2 the kernel that ends a block is smaller.

    Nothing normalizes the sum at the end of a block, and it would double its variance in each of
    the 50: the biases of the last ones would be lost in the rounding of 1e8.
    """
    ends_block = kind == "kernel" and shape[:2] == (1, 1) and shape[3] == 4 * shape[2]
    return 0.3 if ends_block else 1


class Case(NamedTuple):
    """What is particular to a network.

    Float32 sums in another order, over 16 to 156 layers, are some 1e-6 off: hence the tolerance.
    """

    count: int  # parameters with 1000 classes, as Keras counts them
    numbered: int  # layers with weights that Keras numbers, for want of a name
    shape: tuple[int, int]  # odd, and near the least that Keras allows
    others: tuple[tuple[int, int], ...]  # where other layers have odd sizes, and the network's own
    paths: tuple[str, ...]  # how the tree reads
    tolerance: float = 1e-4
    factor: object = lambda kind, shape: 1


CASES = {
    "vgg16": Case(
        *(138_357_544, 0, (75, 101), ()),  # its dense layers are for one size of pictures
        ("stage1/conv1/kernel", "stage5/conv3/bias", "fc1/kernel", "classifier/bias"),
    ),
    "resnet50": Case(
        *(25_636_712, 0, (33, 47), ((75, 101), (224, 224))),
        (
            "stem/conv/kernel",
            "stage1/block1/shortcut/conv/bias",
            "stage3/block6/conv2/norm/mean",
        ),
        # Signals grow with each block, so that the biases of the last weigh little: exchanging the
        # values of one changes 7e-5.
        tolerance=2e-5,
    ),
    "resnet152v2": Case(
        *(60_380_648, 0, (33, 47), ((224, 224),)),
        (
            "stem/kernel",
            "stage1/block1/preact_norm/scale",
            "stage1/block1/shortcut/bias",
            "stage3/block36/conv2/conv/kernel",
            "norm/mean",
        ),
        factor=ends_of_blocks,
    ),
    "xception": Case(
        *(22_910_480, 8, (75, 101), ((72, 71), (299, 299))),
        (
            "stem/conv1/conv/kernel",
            "entry1/shortcut/norm/mean",
            "middle8/separable3/depthwise/kernel",
            "exit2/separable2/norm/scale",
        ),
    ),
    "inception_v3": Case(
        *(23_851_784, 2 * 94, (75, 101), ((98, 79),)),
        (
            "stem/conv5/norm/mean",
            "mixed0/branch5x5_1/conv/kernel",
            "mixed8/branch7x7x3_4/norm/bias",
            "mixed10/branch3x3dbl_3b/conv/kernel",
        ),
    ),
    "mobilenet_v2": Case(
        *(3_538_984, 0, (75, 101), ((224, 224),)),
        (
            "stem/conv/kernel",
            "stage1/block1/depthwise/conv/kernel",
            "stage4/block4/expand/norm/scale",
            "head/norm/bias",
        ),
    ),
}


def load(name, path):
    """As `models.load` does; VGG-16 for the small pictures, which the registry does not know of."""
    if name != "vgg16":
        return models.load(name, path)

    def build(classes):
        return vgg16.create(name, classes, resolution=CASES[name].shape, rngs=nnx.Rngs(0))

    return keras_weights.from_layers(name, build, keras_layers(name), read_keras_layers(path))


def keras_layers(name):
    return importlib.import_module(f"{models.info(name).module}_weights").keras_layers(name)


@pytest.fixture(scope="module", params=CASES)
def name(request):
    yield request.param
    # Gigabytes of weights and compiled code, of no use to the next network.
    jax.clear_caches()
    keras_reference.keras().utils.clear_session()
    gc.collect()


def reference_at(name, shape):
    """The weights are the same for every size of pictures."""
    return keras_reference.reference(name, shape, CLASSES, CASES[name].factor)


@pytest.fixture(scope="module")
def reference(name):
    return reference_at(name, CASES[name].shape)


@pytest.fixture(scope="module")
def files(reference, tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    keras_reference.save_older(reference.model, folder / "older.h5")
    reference.model.save_weights(folder / "numbered.weights.h5")
    yield folder
    shutil.rmtree(folder)  # up to 500 MB


@pytest.fixture(scope="module")
def network(name, files):
    return load(name, files / "older.h5")


def leaves(network):
    return {path: leaf.get_value() for path, leaf in nnx.to_flat_state(nnx.state(network))}


@jax.jit
def logits(network, images):
    with jax.default_matmul_precision("highest"):
        return network(images)


def test_layers_are_those_of_keras_in_order(name, reference, network):
    from keras.src.utils.naming import to_snake_case

    expected = [layer for layer in reference.model.layers if layer.weights]
    found = keras_layers(name)
    kinds = [to_snake_case(type(layer).__name__) for layer in expected]
    assert [layer.kind for layer in found] == kinds
    numbered = [x.name.startswith(kind) for x, kind in zip(expected, kinds, strict=True)]
    assert sum(numbered) == CASES[name].numbered
    assert [layer.name for layer in found] == [
        None if is_numbered else layer.name
        for layer, is_numbered in zip(expected, numbered, strict=True)
    ]
    shapes = {path: leaf.shape for path, leaf in leaves(network).items()}
    for ours, theirs in zip(found, expected, strict=True):
        for path, weight in zip(ours.leaves, theirs.weights, strict=True):
            shape = tuple(weight.shape)
            if "depthwise" in path and len(shape) == 4:  # one feature a channel
                shape = (*shape[:2], 1, shape[2])
            assert shapes.pop(path) == shape, path
    assert not shapes


def test_size_is_that_of_keras(name, reference):
    network = nnx.eval_shape(lambda: models.create(name, rngs=OneKey()))
    count = sum(math.prod(leaf.shape) for leaf in leaves(network).values())
    assert count == CASES[name].count
    if name == "vgg16":  # whose first dense layer is smaller here
        return
    features = reference.model.layers[-1].kernel.shape[0]
    assert count == reference.model.count_params() + (1000 - CLASSES) * (features + 1)


def test_logits_equal_those_of_keras(name, network, reference):
    found = logits(network, reference.images)
    assert found.shape == (2, CLASSES)
    assert keras_reference.relative_error(found, reference.logits) < CASES[name].tolerance


def test_logits_equal_those_of_keras_at_other_sizes(name, network):
    for shape in CASES[name].others:
        other = reference_at(name, shape)
        found = logits(network, other.images)
        error = keras_reference.relative_error(found, other.logits)
        assert error < CASES[name].tolerance, shape


def test_both_kinds_of_files_fill_alike(name, network, files):
    expected = leaves(network)
    found = leaves(load(name, files / "numbered.weights.h5"))
    assert found.keys() == expected.keys()
    for path, array in found.items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, expected[path], err_msg=str(path))


def test_tree_has_readable_names(name, network):
    assert {*CASES[name].paths, "classifier/kernel"} <= {"/".join(path) for path in leaves(network)}


def test_every_kernel_is_traced(name, network):
    apply, params = functional(network)
    wiring = trace(apply, params, jax.ShapeDtypeStruct((1, *CASES[name].shape, 3), np.float32))
    kernels = {"/".join(path) for path in leaves(network) if path[-1] == "kernel"}
    assert not wiring.unreached
    assert {site.kernel for site in wiring.sites} == kernels == set(wiring.shares)
    for site in wiring.sites:
        layer = site.kernel.removesuffix("/kernel")
        norm = f"{layer.rpartition('/')[0]}/norm"
        if layer.endswith("/depthwise"):  # of Xception: nothing but a pointwise kernel follows
            assert not site.targets
        else:
            assert site.targets in [(f"{norm}/mean", f"{norm}/var"), (f"{layer}/bias",)]
