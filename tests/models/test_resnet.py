"""ResNet-50 as torchvision has it, against a plain forward pass in PyTorch's layouts."""

import math

import jax
import jax.numpy as jnp
import keras_reference
import numpy as np
from flax import nnx
from jax import lax

from corrq_jax import models
from corrq_jax.models.filling import OneKey
from corrq_jax.readers import write_weights

TORCH_NAME = "resnet50_torchvision"
# Float32 sums in another order, over some 50 layers, are 1e-6 off. Signals grow with each block, so
# that the biases of the last blocks weigh little: exchanging the values of one changes 7e-5.
TOLERANCE = 2e-5


@jax.jit
def logits(network, images):
    with jax.default_matmul_precision("highest"):
        return network(images)


def test_size_is_as_published():
    network = nnx.eval_shape(lambda: models.create(TORCH_NAME))
    count = sum(math.prod(x.shape) for x in jax.tree.leaves(nnx.state(network)))
    assert count == 25_557_032 + 2 * 26_560  # those that are trained, and BatchNorm's averages
    quick = nnx.eval_shape(lambda: models.create(TORCH_NAME, rngs=OneKey()))
    (graph, state), (same, shapes) = nnx.split(network), nnx.split(quick)
    assert graph == same
    assert jax.tree.leaves_with_path(state) == jax.tree.leaves_with_path(shapes)


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
