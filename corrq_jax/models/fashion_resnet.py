"""A small residual network for Fashion-MNIST, trained by `examples/fashion_mnist/train.py`.

Basic blocks of two 3 x 3 convolutions (He et al., "Deep Residual Learning for Image Recognition",
CVPR 2016, section 3.3) on grey pictures of 28 x 28 pixels. The stem strides, so that all blocks
work on 14 x 14 pixels or fewer and training takes minutes on two CPU cores.
"""

import functools
from typing import NamedTuple

import jax
from flax import nnx

from corrq_jax.models.layers import ConvNorm

EPSILON = 1e-5
STEM_FEATURES = 32


class Stage(NamedTuple):
    """A block that strides and changes the features."""

    stride: int
    features: int


STAGES = (Stage(1, 32), Stage(2, 64), Stage(2, 128))


class BasicBlock(nnx.Module):
    """`conv1` and `conv2`, and a `shortcut` around them."""

    def __init__(self, in_features: int, features: int, stride: int, *, rngs: nnx.Rngs):
        """Builds it with random weights.

        Args:
            in_features: channels of the input.
            features: channels of the output.
            stride: step along height and width.
            rngs: source of the weights.
        """
        unit = functools.partial(ConvNorm, epsilon=EPSILON, rngs=rngs)
        self.conv1 = unit(in_features, features, 3, stride, activation=jax.nn.relu)
        self.conv2 = unit(features, features, 3)
        # None where the shortcut is the input itself, so that the block has no such parameters.
        same = in_features == features and stride == 1
        self.shortcut = None if same else unit(in_features, features, 1, stride)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps float[batch, height, width, in_features] to `features` features."""
        y = self.conv2(self.conv1(x))
        return jax.nn.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class FashionResNet(nnx.Module):
    """The network: `stem`, `stage1` to `stage3`, `classifier`."""

    def __init__(self, classes: int = 10, *, rngs: nnx.Rngs):
        """Builds the network with random weights.

        Args:
            classes: number of logits.
            rngs: source of the weights.
        """
        relu = jax.nn.relu
        self.stem = ConvNorm(1, STEM_FEATURES, 3, 2, epsilon=EPSILON, activation=relu, rngs=rngs)
        before = STEM_FEATURES
        for index, stage in enumerate(STAGES):
            block = BasicBlock(before, stage.features, stage.stride, rngs=rngs)
            setattr(self, f"stage{index + 1}", block)
            before = stage.features
        self.classifier = nnx.Linear(before, classes, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Computes the logits, float[batch, classes], of images float[batch, 28, 28, 1]."""
        x = self.stem(images)
        for index in range(len(STAGES)):
            x = getattr(self, f"stage{index + 1}")(x)
        return self.classifier(x.mean(axis=(1, 2)))


def create(name: str, classes: int = 10, *, rngs: nnx.Rngs) -> FashionResNet:
    """Builds the network with random weights."""
    del name  # there is one
    return FashionResNet(classes, rngs=rngs)
