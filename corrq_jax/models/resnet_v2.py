"""ResNet-152 v2: bottleneck blocks that normalize before they convolve, as Keras has it.

He et al., "Identity Mappings in Deep Residual Networks", ECCV 2016. Nothing follows the addition
of a block, so that a block's input reaches the end of its stage unchanged: normalization and ReLU
come first in each block, and once more after the last. Keras has the stride of a stage in the last
block, in its 3 x 3 convolution, and the last stage has none. All padding is alike on all sides:
the stem's by 3, that of the 3 x 3 convolutions and of the pooling by 1; TensorFlow's "SAME" would
pad less at the start than at the end. The convolutions before another BatchNorm of the block have
no bias, and the others have one.

Only the inference form is built: BatchNorm uses its running averages.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from corrq_jax.models.convolution import convolve
from corrq_jax.models.layers import ConvNorm, Row

BATCH_NORM_EPSILON = 1.001e-5
STEM_FEATURES = 64
EXPANSION = 4

_conv = functools.partial(nnx.Conv, conv_general_dilated=convolve)
_norm = functools.partial(nnx.BatchNorm, use_running_average=True, epsilon=BATCH_NORM_EPSILON)


class Stage(NamedTuple):
    """A row of blocks, of which the first changes the features and the last may stride."""

    blocks: int
    stride: int
    features: int  # between a block's convolutions; outside it there are EXPANSION times as many


STAGES = (Stage(3, 2, 64), Stage(8, 2, 128), Stage(36, 2, 256), Stage(3, 1, 512))


class PreactivatedBottleneck(nnx.Module):
    """`preact_norm`, `conv1`, `conv2` and `conv3`, and a `shortcut` around them."""

    def __init__(self, in_features: int, features: int, stride: int, *, rngs: nnx.Rngs):
        """Builds it with random weights.

        Args:
            in_features: channels of the input.
            features: channels between the convolutions.
            stride: step along height and width.
            rngs: source of the weights.
        """
        unit = functools.partial(
            ConvNorm, epsilon=BATCH_NORM_EPSILON, activation=jax.nn.relu, rngs=rngs
        )
        out_features = EXPANSION * features
        self.stride = stride
        self.preact_norm = _norm(in_features, rngs=rngs)
        self.conv1 = unit(in_features, features)
        self.conv2 = unit(features, features, 3, stride, padding=((1, 1), (1, 1)))
        self.conv3 = _conv(features, out_features, (1, 1), rngs=rngs)
        # None where the shortcut is the input itself, so that the block has no such parameters.
        same = in_features == out_features
        self.shortcut = (
            None if same else _conv(in_features, out_features, (1, 1), stride, rngs=rngs)
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps float[batch, height, width, in_features] to `EXPANSION * features` features."""
        active = jax.nn.relu(self.preact_norm(x))
        y = self.conv3(self.conv2(self.conv1(active)))
        if self.shortcut is not None:
            return y + self.shortcut(active)
        return y + x[:, :: self.stride, :: self.stride]


class ResNetV2(nnx.Module):
    """The network: `stem`, `stage1` to `stage4`, `norm`, `classifier`."""

    def __init__(self, classes: int = 1000, *, rngs: nnx.Rngs):
        """Builds the network with random weights.

        Args:
            classes: number of logits.
            rngs: source of the weights.
        """
        self.stem = _conv(3, STEM_FEATURES, (7, 7), 2, padding=((3, 3), (3, 3)), rngs=rngs)
        before = STEM_FEATURES
        for index, stage in enumerate(STAGES):
            blocks: list[nnx.Module] = []
            for block in range(stage.blocks):
                stride = stage.stride if block == stage.blocks - 1 else 1
                blocks.append(PreactivatedBottleneck(before, stage.features, stride, rngs=rngs))
                before = EXPANSION * stage.features
            setattr(self, f"stage{index + 1}", Row(blocks))
        self.norm = _norm(before, rngs=rngs)
        self.classifier = nnx.Linear(before, classes, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Computes the logits, float[batch, classes], of images float[batch, height, width, 3]."""
        # The pooling pads with zeros, which count: no ReLU comes before it.
        x = jnp.pad(self.stem(images), ((0, 0), (1, 1), (1, 1), (0, 0)))
        x = nnx.max_pool(x, (3, 3), (2, 2))
        for index in range(len(STAGES)):
            x = getattr(self, f"stage{index + 1}")(x)
        return self.classifier(jax.nn.relu(self.norm(x)).mean(axis=(1, 2)))


def create(name: str, classes: int = 1000, *, rngs: nnx.Rngs) -> ResNetV2:
    """Builds the network, the only one of its kind, with random weights."""
    del name
    return ResNetV2(classes, rngs=rngs)
