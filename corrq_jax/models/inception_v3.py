"""Inception-v3: blocks of convolutions of several sizes side by side.

Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", CVPR 2016. Rows of
small convolutions take the place of large ones: two of 3 x 3, or 1 x 7 and 7 x 1. The blocks
`mixed3` and `mixed8` halve the resolution. Strides do not pad, and nor does the stem, but for its
third convolution. BatchNorm has no scale: what follows the ReLU can scale as well.

Only the inference form is built: BatchNorm uses its running averages, and the auxiliary classifier,
which acts in training only, is absent.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from corrq_jax.models.layers import ConvNorm

BATCH_NORM_EPSILON = 1e-3
INPUT, POOL = "input", "pool"


class Conv(NamedTuple):
    """A convolution in a block.

    Attributes:
        name: in the block.
        source: what it reads: `INPUT`, `POOL` (the input pooled), or a convolution before it.
        features: channels of its output.
        kernel: height and width, or one number for both.
        stride: 2 where it halves the resolution; then it does not pad.
    """

    name: str
    source: str
    features: int
    kernel: int | tuple[int, int] = 1
    stride: int = 1


@dataclasses.dataclass(frozen=True)
class Block:
    """Convolutions side by side and in rows; what none of them reads is the block's output.

    Attributes:
        convs: each one after its source; outputs are concatenated in this order.
    """

    convs: tuple[Conv, ...]

    @property
    def outputs(self) -> tuple[str, ...]:
        """What is concatenated, in order; the pooled input is the last."""
        sources = {conv.source for conv in self.convs}
        names = (*(conv.name for conv in self.convs), POOL)
        return tuple(name for name in names if name not in sources)

    @property
    def halves(self) -> bool:
        """Whether the block halves the resolution."""
        return POOL in self.outputs


def _block_5x5(pool_features: int) -> Block:
    return Block(
        (
            Conv("branch1x1", INPUT, 64),
            Conv("branch5x5_1", INPUT, 48),
            Conv("branch5x5_2", "branch5x5_1", 64, 5),
            Conv("branch3x3dbl_1", INPUT, 64),
            Conv("branch3x3dbl_2", "branch3x3dbl_1", 96, 3),
            Conv("branch3x3dbl_3", "branch3x3dbl_2", 96, 3),
            Conv("branch_pool", POOL, pool_features),
        )
    )


def _block_7x7(features: int) -> Block:
    return Block(
        (
            Conv("branch1x1", INPUT, 192),
            Conv("branch7x7_1", INPUT, features),
            Conv("branch7x7_2", "branch7x7_1", features, (1, 7)),
            Conv("branch7x7_3", "branch7x7_2", 192, (7, 1)),
            Conv("branch7x7dbl_1", INPUT, features),
            Conv("branch7x7dbl_2", "branch7x7dbl_1", features, (7, 1)),
            Conv("branch7x7dbl_3", "branch7x7dbl_2", features, (1, 7)),
            Conv("branch7x7dbl_4", "branch7x7dbl_3", features, (7, 1)),
            Conv("branch7x7dbl_5", "branch7x7dbl_4", 192, (1, 7)),
            Conv("branch_pool", POOL, 192),
        )
    )


_HALVING_3X3 = Block(
    (
        Conv("branch3x3", INPUT, 384, 3, stride=2),
        Conv("branch3x3dbl_1", INPUT, 64),
        Conv("branch3x3dbl_2", "branch3x3dbl_1", 96, 3),
        Conv("branch3x3dbl_3", "branch3x3dbl_2", 96, 3, stride=2),
    )
)

_HALVING_7X7 = Block(
    (
        Conv("branch3x3_1", INPUT, 192),
        Conv("branch3x3_2", "branch3x3_1", 320, 3, stride=2),
        Conv("branch7x7x3_1", INPUT, 192),
        Conv("branch7x7x3_2", "branch7x7x3_1", 192, (1, 7)),
        Conv("branch7x7x3_3", "branch7x7x3_2", 192, (7, 1)),
        Conv("branch7x7x3_4", "branch7x7x3_3", 192, 3, stride=2),
    )
)

# Its two 3 x 3 branches end in 1 x 3 and 3 x 1 side by side.
_BLOCK_FORKED = Block(
    (
        Conv("branch1x1", INPUT, 320),
        Conv("branch3x3_1", INPUT, 384),
        Conv("branch3x3_2a", "branch3x3_1", 384, (1, 3)),
        Conv("branch3x3_2b", "branch3x3_1", 384, (3, 1)),
        Conv("branch3x3dbl_1", INPUT, 448),
        Conv("branch3x3dbl_2", "branch3x3dbl_1", 384, 3),
        Conv("branch3x3dbl_3a", "branch3x3dbl_2", 384, (1, 3)),
        Conv("branch3x3dbl_3b", "branch3x3dbl_2", 384, (3, 1)),
        Conv("branch_pool", POOL, 192),
    )
)

BLOCKS = {
    "mixed0": _block_5x5(32),
    "mixed1": _block_5x5(64),
    "mixed2": _block_5x5(64),
    "mixed3": _HALVING_3X3,
    "mixed4": _block_7x7(128),
    "mixed5": _block_7x7(160),
    "mixed6": _block_7x7(160),
    "mixed7": _block_7x7(192),
    "mixed8": _HALVING_7X7,
    "mixed9": _BLOCK_FORKED,
    "mixed10": _BLOCK_FORKED,
}

_conv_norm = functools.partial(
    ConvNorm, epsilon=BATCH_NORM_EPSILON, use_scale=False, activation=jax.nn.relu
)
_halved = functools.partial(nnx.max_pool, window_shape=(3, 3), strides=(2, 2), padding="VALID")


class Stem(nnx.Module):
    """`conv1` to `conv5` with two poolings, from pixels to an eighth of the resolution."""

    features = 192

    def __init__(self, *, rngs: nnx.Rngs):
        unpadded = functools.partial(_conv_norm, padding="VALID", rngs=rngs)
        self.conv1 = unpadded(3, 32, 3, 2)
        self.conv2 = unpadded(32, 32, 3)
        self.conv3 = _conv_norm(32, 64, 3, rngs=rngs)
        self.conv4 = unpadded(64, 80)
        self.conv5 = unpadded(80, self.features, 3)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps float[batch, height, width, 3] to the stem's features."""
        x = _halved(self.conv3(self.conv2(self.conv1(images))))
        return _halved(self.conv5(self.conv4(x)))


class Mixed(nnx.Module):
    """A block: its convolutions by name."""

    def __init__(self, in_features: int, block: Block, *, rngs: nnx.Rngs):
        """Builds it with random weights.

        Args:
            in_features: channels of the input.
            block: one of `BLOCKS`.
            rngs: source of the weights.
        """
        self.block = block
        widths = {INPUT: in_features, POOL: in_features}
        for conv in block.convs:
            padding = "SAME" if conv.stride == 1 else "VALID"
            layer = _conv_norm(
                widths[conv.source],
                conv.features,
                conv.kernel,
                conv.stride,
                padding=padding,
                rngs=rngs,
            )
            setattr(self, conv.name, layer)
            widths[conv.name] = conv.features
        self.features = sum(widths[name] for name in block.outputs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps float[batch, height, width, in_features] to all outputs side by side."""
        pooled = _halved(x) if self.block.halves else _neighbours_mean(x)
        values = {INPUT: x, POOL: pooled}
        for conv in self.block.convs:
            values[conv.name] = getattr(self, conv.name)(values[conv.source])
        return jnp.concatenate([values[name] for name in self.block.outputs], axis=-1)


def _neighbours_mean(x: jax.Array) -> jax.Array:
    """The mean of 3 x 3 places, at the border of those that there are."""
    return nnx.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False)


class InceptionV3(nnx.Module):
    """The network: `stem`, `mixed0` to `mixed10`, `classifier`."""

    def __init__(self, classes: int = 1000, *, rngs: nnx.Rngs):
        """Builds the network with random weights.

        Args:
            classes: number of logits.
            rngs: source of the initial weights.
        """
        self.stem = Stem(rngs=rngs)
        features = self.stem.features
        for name, block in BLOCKS.items():
            mixed = Mixed(features, block, rngs=rngs)
            setattr(self, name, mixed)
            features = mixed.features
        self.classifier = nnx.Linear(features, classes, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Computes the logits, float[batch, classes], of images float[batch, height, width, 3]."""
        x = self.stem(images)
        for name in BLOCKS:
            x = getattr(self, name)(x)
        return self.classifier(x.mean(axis=(1, 2)))


def create(name: str, classes: int = 1000, *, rngs: nnx.Rngs) -> InceptionV3:
    """Builds the network, the only one of its kind, with random weights."""
    del name
    return InceptionV3(classes, rngs=rngs)
