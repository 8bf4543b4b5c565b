"""EfficientNet-Lite 0 to 4: mobile inverted bottlenecks without squeeze-excite, with ReLU6.

The Lite networks are EfficientNets (Tan and Le, "EfficientNet: Rethinking Model Scaling for
Convolutional Neural Networks", ICML 2019) reduced to operations that run well in integers. Stages
are widened and deepened by two coefficients; the stem and the head keep their width, and the first
and the last stage their depth. Strided convolutions pad as TensorFlow does ("SAME").

Only the inference form is built: BatchNorm uses its running averages, and dropout and stochastic
depth, which act in training only, are absent.
"""

import math

from flax import nnx

from corrq_jax.models.inverted_bottlenecks import BottleneckNetwork, BottleneckStage

# (width, depth) coefficients.
VARIANTS = {
    "efficientnet_lite0": (1.0, 1.0),
    "efficientnet_lite1": (1.0, 1.1),
    "efficientnet_lite2": (1.1, 1.2),
    "efficientnet_lite3": (1.2, 1.4),
    "efficientnet_lite4": (1.4, 1.8),
}

_BASE_STAGES = (
    BottleneckStage(blocks=1, kernel=3, stride=1, expansion=1, features=16),
    BottleneckStage(blocks=2, kernel=3, stride=2, expansion=6, features=24),
    BottleneckStage(blocks=2, kernel=5, stride=2, expansion=6, features=40),
    BottleneckStage(blocks=3, kernel=3, stride=2, expansion=6, features=80),
    BottleneckStage(blocks=3, kernel=5, stride=1, expansion=6, features=112),
    BottleneckStage(blocks=4, kernel=5, stride=2, expansion=6, features=192),
    BottleneckStage(blocks=1, kernel=3, stride=1, expansion=6, features=320),
)


def scaled_features(features: int, width: float) -> int:
    """`features * width` rounded to a multiple of 8, but not down by more than a tenth."""
    scaled = features * width
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * scaled else rounded


def stages(name: str) -> tuple[BottleneckStage, ...]:
    """The stages of the network `name`, one of `VARIANTS`, scaled by its coefficients."""
    width, depth = VARIANTS[name]
    return tuple(
        stage._replace(
            features=scaled_features(stage.features, width),
            blocks=stage.blocks if stage in _BASE_STAGES[::6] else math.ceil(depth * stage.blocks),
        )
        for stage in _BASE_STAGES
    )


def create(name: str, classes: int = 1000, *, rngs: nnx.Rngs) -> BottleneckNetwork:
    """Builds the network `name`, one of `VARIANTS`, with random weights."""
    return BottleneckNetwork(stages(name), classes, rngs=rngs)
