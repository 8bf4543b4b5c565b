"""Networks of inverted bottlenecks with ReLU6: MobileNet-v2 and the EfficientNet-Lite family."""

import functools
from typing import NamedTuple

import jax
from flax import nnx

from corrq_jax.models.layers import ConvNorm, Row

# The same in all of these networks.
BATCH_NORM_EPSILON = 1e-3
STEM_FEATURES = 32
HEAD_FEATURES = 1280


conv_norm = functools.partial(ConvNorm, epsilon=BATCH_NORM_EPSILON, activation=jax.nn.relu6)


class BottleneckStage(NamedTuple):
    """A row of inverted bottlenecks, of which the first may stride and change the features."""

    blocks: int
    kernel: int
    stride: int
    expansion: int
    features: int


class InvertedBottleneck(nnx.Module):
    """Pointwise expansion, depthwise convolution, linear pointwise projection, and a shortcut.

    From Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018.
    """

    def __init__(
        self,
        in_features: int,
        stage: BottleneckStage,
        stride: int,
        *,
        rngs: nnx.Rngs,
    ):
        hidden = in_features * stage.expansion
        unit = functools.partial(conv_norm, rngs=rngs)
        # None where the stage does not expand, so that the block has no such parameters.
        self.expand = None if stage.expansion == 1 else unit(in_features, hidden)
        self.depthwise = unit(hidden, hidden, stage.kernel, stride, groups=hidden)
        self.project = unit(hidden, stage.features, activation=None)
        self.shortcut = stride == 1 and in_features == stage.features

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps float[batch, height, width, in_features] to the stage's features."""
        y = x if self.expand is None else self.expand(x)
        y = self.project(self.depthwise(y))
        return x + y if self.shortcut else y


class BottleneckNetwork(nnx.Module):
    """Inverted bottlenecks with ReLU6: `stem`, `stage1` and so on, `head`, `classifier`."""

    def __init__(
        self,
        stages: tuple[BottleneckStage, ...],
        classes: int,
        *,
        rngs: nnx.Rngs,
    ):
        """Builds the network with random weights.

        Args:
            stages: in order.
            classes: number of logits.
            rngs: source of the weights.
        """
        unit = functools.partial(conv_norm, rngs=rngs)
        self.stages = len(stages)
        self.stem = unit(3, STEM_FEATURES, 3, 2)
        features = STEM_FEATURES
        for index, stage in enumerate(stages):
            blocks: list[nnx.Module] = []
            for block in range(stage.blocks):
                stride = 1 if block else stage.stride
                blocks.append(InvertedBottleneck(features, stage, stride, rngs=rngs))
                features = stage.features
            setattr(self, f"stage{index + 1}", Row(blocks))
        self.head = unit(features, HEAD_FEATURES)
        self.classifier = nnx.Linear(HEAD_FEATURES, classes, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Computes the logits, float[batch, classes], of images float[batch, height, width, 3]."""
        x = self.stem(images)
        for index in range(self.stages):
            x = getattr(self, f"stage{index + 1}")(x)
        return self.classifier(self.head(x).mean(axis=(1, 2)))
