"""ResNet-50 against keras.applications, and against a plain forward pass in PyTorch's layouts."""

import math

import h5py
import jax
import jax.numpy as jnp
import keras_reference
import numpy as np
import pytest
from flax import nnx
from jax import lax

from corrq_jax import models
from corrq_jax.errors import InputError
from corrq_jax.flax import functional
from corrq_jax.models import resnet_weights
from corrq_jax.moments import trace
from corrq_jax.readers import write_weights

# Keras's variables lack an argument that NumPy 2 wants where Keras saves them.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

NAME, TORCH_NAME = "resnet50", "resnet50_torchvision"
SHAPE = (33, 47)
# Float32 sums in another order, over some 50 layers, are 1e-6 off. Signals grow with each block, so
# that the biases of the last blocks weigh little: exchanging the values of one changes 7e-5.
TOLERANCE = 2e-5


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


def leaves(network):
    return {path: leaf.get_value() for path, leaf in nnx.to_flat_state(nnx.state(network))}


def test_layers_are_those_of_keras(reference, network):
    from keras.src.utils.naming import to_snake_case

    layers = [layer for layer in reference.model.layers if layer.weights]
    own = resnet_weights.keras_layers(NAME)
    assert [(x.kind, x.name, len(x.leaves)) for x in own] == [
        (to_snake_case(type(x).__name__), x.name, len(x.weights)) for x in layers
    ]
    shapes = {path: leaf.shape for path, leaf in leaves(network).items()}
    for ours, theirs in zip(own, layers, strict=True):
        for path, weight in zip(ours.leaves, theirs.weights, strict=True):
            assert shapes.pop(path) == tuple(weight.shape), path
    assert not shapes


# Of torchvision 25,557,032 are trained, as it publishes; BatchNorm has 26,560 channels.
@pytest.mark.parametrize(
    ("name", "count"), [(NAME, 25_636_712), (TORCH_NAME, 25_557_032 + 2 * 26_560)]
)
def test_size_is_as_published(name, count):
    network = nnx.eval_shape(lambda: models.create(name))
    assert sum(math.prod(x.shape) for x in jax.tree.leaves(nnx.state(network))) == count


def test_size_is_that_of_keras():
    model = keras_reference.keras().applications.ResNet50(weights=None)
    assert model.count_params() == 25_636_712


def test_logits_equal_those_of_keras(network, reference):
    found = logits(network, reference.images)
    assert found.shape == (2, 7)
    assert keras_reference.relative_error(found, reference.logits) < TOLERANCE


@pytest.mark.parametrize("shape", [(75, 101), (224, 224)])
def test_logits_equal_those_of_keras_at_other_sizes(network, shape):
    other = keras_reference.reference(NAME, shape, classes=7)  # the same weights
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
        "stem/conv/kernel",
        "stage1/block1/shortcut/conv/bias",
        "stage3/block6/conv2/norm/mean",
        "classifier/kernel",
    } <= {"/".join(path) for path in leaves(network)}
    assert network.stage3.block6.conv2.conv.kernel.shape == (3, 3, 256, 256)


def test_one_error_lists_all_that_is_wrong(files, tmp_path):
    path = tmp_path / "bad.h5"
    path.write_bytes((files / "older.h5").read_bytes())
    with h5py.File(path, "r+") as file:
        names = [str(name) for name in file.attrs["layer_names"]]
        names.remove("conv3_block2_2_bn")
        for name in ("surplus1", "surplus2"):
            file.create_group(name)["kernel"] = np.zeros(3, np.float32)
            file[name].attrs["weight_names"] = [b"kernel"]
            names.append(name)
        file.attrs["layer_names"] = [name.encode() for name in names]
        shortcut = file["conv4_block1_0_conv"]
        bias = shortcut.attrs["weight_names"][1]
        del shortcut[bias]
        shortcut[bias] = np.zeros(1023, np.float32)
    with pytest.raises(InputError) as error:
        models.load(NAME, path)
    message = str(error.value)
    assert message.startswith(str(path))
    assert "7 problems" in message  # four of them are the missing layer's arrays
    for line in (
        "layer surplus1 has 1 arrays, conv3_block2_2_bn 4",
        "unknown: layer surplus2",
        "shape of conv4_block1_0_conv, array 1: (1023,)",
    ):
        assert line in message


def test_files_of_the_other_kind_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"takes \.h5.*PyTorch's weights are for resnet50_torch"):
        models.load(NAME, tmp_path / "resnet50.pth")


def test_weights_of_another_network_are_refused(files):
    with pytest.raises(InputError, match="these are not the weights of mobilenet_v2"):
        models.load("mobilenet_v2", files / "older.h5")


def test_every_kernel_is_traced(network):
    apply, params = functional(network)
    wiring = trace(apply, params, jax.ShapeDtypeStruct((1, *SHAPE, 3), np.float32))
    kernels = {"/".join(path) for path in leaves(network) if path[-1] == "kernel"}
    assert len(kernels) == 54
    assert not wiring.unreached
    assert {site.kernel for site in wiring.sites} == kernels == set(wiring.shares)
    for site in wiring.sites:
        unit = site.kernel.removesuffix("/conv/kernel")
        normalized = (f"{unit}/norm/mean", f"{unit}/norm/var")
        assert site.targets == (
            ("classifier/bias",) if site.kernel == "classifier/kernel" else normalized
        )


# torchvision's layers: blocks, and features between a block's convolutions.
TORCH_LAYERS = {"layer1": (3, 64), "layer2": (4, 128), "layer3": (6, 256), "layer4": (3, 512)}


def random_state_dict(rng, classes):
    arrays = {}

    def conv(name, *shape):
        deviation = np.sqrt(2 / math.prod(shape[1:]))
        arrays[f"{name}.weight"] = rng.normal(0, deviation, shape)

    def norm(name, features):
        for part in ("weight", "running_var"):
            arrays[f"{name}.{part}"] = rng.uniform(0.5, 1.5, features)
        for part in ("bias", "running_mean"):
            arrays[f"{name}.{part}"] = rng.normal(0, 0.3, features)
        arrays[f"{name}.num_batches_tracked"] = np.asarray([5])

    conv("conv1", 64, 3, 7, 7)
    norm("bn1", 64)
    before = 64
    for name, (blocks, features) in TORCH_LAYERS.items():
        for block in range(blocks):
            prefix = f"{name}.{block}"
            shapes = [(features, before, 1, 1), (features, features, 3, 3)]
            shapes.append((4 * features, features, 1, 1))
            for index, shape in enumerate(shapes, 1):
                conv(f"{prefix}.conv{index}", *shape)
                norm(f"{prefix}.bn{index}", shape[0])
            if block == 0:
                conv(f"{prefix}.downsample.0", 4 * features, before, 1, 1)
                norm(f"{prefix}.downsample.1", 4 * features)
            before = 4 * features
    conv("fc", classes, before)
    arrays["fc.bias"] = rng.normal(0, 0.3, classes)
    return {
        n: a.astype(np.int64 if n.endswith("tracked") else np.float32) for n, a in arrays.items()
    }


def plain_forward(arrays, images):
    """From the names in the state dict; images (batch, channels, height, width)."""

    def conv_norm(x, conv, bn, stride=1):
        kernel = arrays[f"{conv}.weight"]
        pads = [(tap // 2, tap // 2) for tap in kernel.shape[2:]]
        x = lax.conv_general_dilated(x, kernel, (stride, stride), pads, precision="highest")
        gain, shift, mean, var = (
            arrays[f"{bn}.{part}"][:, None, None]
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        return (x - mean) / jnp.sqrt(var + 1e-5) * gain + shift

    def relu(x):
        return jnp.maximum(x, 0)

    x = relu(conv_norm(images, "conv1", "bn1", 2))
    window, strides, pads = (1, 1, 3, 3), (1, 1, 2, 2), [(0, 0), (0, 0), (1, 1), (1, 1)]
    x = lax.reduce_window(x, -jnp.inf, lax.max, window, strides, pads)
    for name, (blocks, _) in TORCH_LAYERS.items():
        for block in range(blocks):
            prefix = f"{name}.{block}"
            stride = 2 if block == 0 and name != "layer1" else 1
            y = relu(conv_norm(x, f"{prefix}.conv1", f"{prefix}.bn1"))
            y = relu(conv_norm(y, f"{prefix}.conv2", f"{prefix}.bn2", stride))
            y = conv_norm(y, f"{prefix}.conv3", f"{prefix}.bn3")
            if f"{prefix}.downsample.0.weight" in arrays:
                x = conv_norm(x, f"{prefix}.downsample.0", f"{prefix}.downsample.1", stride)
            x = relu(x + y)
    x = x.mean((2, 3))
    return jnp.matmul(x, arrays["fc.weight"].T, precision="highest") + arrays["fc.bias"]


def test_torchvision_logits_equal_the_plain_forward(tmp_path):
    rng = np.random.default_rng(0)
    arrays = random_state_dict(rng, classes=7)
    path = tmp_path / "x.safetensors"
    write_weights(path, arrays)
    network = models.load(TORCH_NAME, path)
    for shape in [(75, 101), (64, 50)]:
        images = keras_reference.pictures(rng, shape)
        expected = jax.jit(plain_forward)(arrays, images.transpose(0, 3, 1, 2))
        found = logits(network, images)
        assert found.shape == (2, 7)
        assert keras_reference.relative_error(*expected) > 0.03
        assert keras_reference.relative_error(found, np.asarray(expected)) < TOLERANCE
