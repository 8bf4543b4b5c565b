"""EfficientNet-Lite 0 to 4: mobile inverted bottlenecks without squeeze-excite, with ReLU6.

The Lite networks are EfficientNets (Tan and Le, "EfficientNet: Rethinking Model Scaling for
Convolutional Neural Networks", ICML 2019) reduced to operations that run well in integers. Stages
are widened and deepened by two coefficients; the stem and the head keep their width, and the first
and the last stage their depth. Strided convolutions pad as TensorFlow does ("SAME").

Only the inference form is built: BatchNorm uses its running averages, and dropout and stochastic
depth, which act in training only, are absent.
"""

import math
from typing import NamedTuple

import jax
from flax import nnx

from corrq_jax.models.convolution import convolve

BATCH_NORM_EPSILON = 1e-3
STEM_FEATURES = 32
HEAD_FEATURES = 1280

# (width, depth) coefficients.
VARIANTS = {
    "efficientnet_lite0": (1.0, 1.0),
    "efficientnet_lite1": (1.0, 1.1),
    "efficientnet_lite2": (1.1, 1.2),
    "efficientnet_lite3": (1.2, 1.4),
    "efficientnet_lite4": (1.4, 1.8),
}


class Stage(NamedTuple):
    """A row of equal blocks, of which the first may stride and change the number of features."""

    blocks: int
    kernel: int
    stride: int
    expansion: int
    features: int


_BASE_STAGES = (
    Stage(blocks=1, kernel=3, stride=1, expansion=1, features=16),
    Stage(blocks=2, kernel=3, stride=2, expansion=6, features=24),
    Stage(blocks=2, kernel=5, stride=2, expansion=6, features=40),
    Stage(blocks=3, kernel=3, stride=2, expansion=6, features=80),
    Stage(blocks=3, kernel=5, stride=1, expansion=6, features=112),
    Stage(blocks=4, kernel=5, stride=2, expansion=6, features=192),
    Stage(blocks=1, kernel=3, stride=1, expansion=6, features=320),
)


def scaled_features(features: int, width: float) -> int:
    """`features * width` rounded to a multiple of 8, but not down by more than a tenth."""
    scaled = features * width
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * scaled else rounded


def stages(name: str) -> tuple[Stage, ...]:
    """The stages of the network `name`, one of `VARIANTS`, scaled by its coefficients."""
    width, depth = VARIANTS[name]
    return tuple(
        stage._replace(
            features=scaled_features(stage.features, width),
            blocks=stage.blocks if stage in _BASE_STAGES[::6] else math.ceil(depth * stage.blocks),
        )
        for stage in _BASE_STAGES
    )


class ConvNorm(nnx.Module):
    """A convolution without bias, BatchNorm, and ReLU6 if `activate`."""

    def __init__(
        self,
        in_features: int,
        features: int,
        kernel: int = 1,
        stride: int = 1,
        *,
        groups: int = 1,
        activate: bool = True,
        rngs: nnx.Rngs,
    ):
        self.conv = nnx.Conv(
            in_features,
            features,
            (kernel, kernel),
            (stride, stride),
            feature_group_count=groups,
            use_bias=False,
            conv_general_dilated=convolve,
            rngs=rngs,
        )
        self.norm = nnx.BatchNorm(
            features, use_running_average=True, epsilon=BATCH_NORM_EPSILON, rngs=rngs
        )
        self.activate = activate

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps float[batch, height, width, in_features] to `features` features."""
        x = self.norm(self.conv(x))
        return jax.nn.relu6(x) if self.activate else x


class InvertedBottleneck(nnx.Module):
    """Pointwise expansion, depthwise convolution, linear pointwise projection, and a shortcut."""

    def __init__(self, in_features: int, stage: Stage, stride: int, *, rngs: nnx.Rngs):
        hidden = in_features * stage.expansion
        # None where the stage does not expand, so that the block has no such parameters.
        self.expand = None if stage.expansion == 1 else ConvNorm(in_features, hidden, rngs=rngs)
        self.depthwise = ConvNorm(hidden, hidden, stage.kernel, stride, groups=hidden, rngs=rngs)
        self.project = ConvNorm(hidden, stage.features, activate=False, rngs=rngs)
        self.shortcut = stride == 1 and in_features == stage.features

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps float[batch, height, width, in_features] to the stage's features."""
        y = x if self.expand is None else self.expand(x)
        y = self.project(self.depthwise(y))
        return x + y if self.shortcut else y


class BlockRow(nnx.Module):
    """One stage: `block1`, `block2`, and so on."""

    def __init__(self, in_features: int, stage: Stage, *, rngs: nnx.Rngs):
        self.blocks = stage.blocks
        for index in range(stage.blocks):
            first = index == 0
            block = InvertedBottleneck(
                in_features if first else stage.features,
                stage,
                stage.stride if first else 1,
                rngs=rngs,
            )
            setattr(self, f"block{index + 1}", block)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the blocks in order."""
        for index in range(self.blocks):
            x = getattr(self, f"block{index + 1}")(x)
        return x


class EfficientNetLite(nnx.Module):
    """The network: `stem`, `stage1` to `stage7`, `head`, `classifier`."""

    def __init__(self, stages: tuple[Stage, ...], classes: int = 1000, *, rngs: nnx.Rngs):
        """Builds the network with random weights.

        Args:
            stages: from `stages(name)`.
            classes: number of logits.
            rngs: source of the initial weights.
        """
        self.stages = len(stages)
        self.stem = ConvNorm(3, STEM_FEATURES, 3, 2, rngs=rngs)
        features = STEM_FEATURES
        for index, stage in enumerate(stages):
            setattr(self, f"stage{index + 1}", BlockRow(features, stage, rngs=rngs))
            features = stage.features
        self.head = ConvNorm(features, HEAD_FEATURES, rngs=rngs)
        self.classifier = nnx.Linear(HEAD_FEATURES, classes, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Computes the logits, float[batch, classes], of images float[batch, height, width, 3]."""
        x = self.stem(images)
        for index in range(self.stages):
            x = getattr(self, f"stage{index + 1}")(x)
        return self.classifier(self.head(x).mean(axis=(1, 2)))


def create(name: str, classes: int = 1000, *, rngs: nnx.Rngs) -> EfficientNetLite:
    """Builds the network `name`, one of `VARIANTS`, with random weights."""
    return EfficientNetLite(stages(name), classes, rngs=rngs)
