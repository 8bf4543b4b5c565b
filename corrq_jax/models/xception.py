"""Xception: residual blocks of depthwise separable convolutions.

Chollet, "Xception: Deep Learning with Depthwise Separable Convolutions", CVPR 2017. A separable
convolution filters each channel by itself and then mixes the channels at each place, with nothing
between the two. The entry flow halves the resolution three times, the middle flow repeats one
block, and the exit flow halves the resolution once more. Strides pad as TensorFlow does ("SAME"),
while the stem does not pad.

Only the inference form is built: BatchNorm uses its running averages, and dropout, which acts in
training only, is absent.
"""

import functools
from collections.abc import Sequence

import jax
from flax import nnx

from corrq_jax.models.convolution import convolve
from corrq_jax.models.layers import ConvNorm

BATCH_NORM_EPSILON = 1e-3
STEM_FEATURES = (32, 64)
EXIT_FEATURES = (1536, 2048)

# Features of the separable convolutions of each residual block. Those that change the number of
# features halve the resolution, too.
BLOCKS = {
    "entry1": (128, 128),
    "entry2": (256, 256),
    "entry3": (728, 728),
    **{f"middle{index}": (728, 728, 728) for index in range(1, 9)},
    "exit1": (728, 1024),
}


_conv_norm = functools.partial(ConvNorm, epsilon=BATCH_NORM_EPSILON)


class SeparableNorm(nnx.Module):
    """A separable convolution, `depthwise` 3 x 3 and `pointwise`, with one BatchNorm after it."""

    def __init__(self, in_features: int, features: int, *, rngs: nnx.Rngs):
        conv = functools.partial(nnx.Conv, use_bias=False, conv_general_dilated=convolve, rngs=rngs)
        self.depthwise = conv(in_features, in_features, (3, 3), feature_group_count=in_features)
        self.pointwise = conv(in_features, features, (1, 1))
        self.norm = nnx.BatchNorm(
            features, use_running_average=True, epsilon=BATCH_NORM_EPSILON, rngs=rngs
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps float[batch, height, width, in_features] to `features` features."""
        return self.norm(self.pointwise(self.depthwise(x)))


class Stem(nnx.Module):
    """Two convolutions without padding; the first one halves the resolution."""

    def __init__(self, *, rngs: nnx.Rngs):
        conv = functools.partial(_conv_norm, padding="VALID", activation=jax.nn.relu, rngs=rngs)
        self.conv1 = conv(3, STEM_FEATURES[0], 3, 2)
        self.conv2 = conv(*STEM_FEATURES, 3)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps float[batch, height, width, 3] to the stem's features."""
        return self.conv2(self.conv1(images))


class ResidualBlock(nnx.Module):
    """`separable1`, `separable2`, and so on, each after a ReLU, and a shortcut around them.

    Where the number of features changes, max pooling halves the resolution, and the shortcut is a
    strided convolution.
    """

    def __init__(self, in_features: int, features: Sequence[int], *, rngs: nnx.Rngs):
        self.separables = len(features)
        strided = features[-1] != in_features
        # None where the shortcut is the input itself, so that the block has no such parameters.
        self.shortcut = _conv_norm(in_features, features[-1], 1, 2, rngs=rngs) if strided else None
        for index, after in enumerate(features):
            setattr(self, f"separable{index + 1}", SeparableNorm(in_features, after, rngs=rngs))
            in_features = after

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps float[batch, height, width, in_features] to the last of `features`."""
        y = x
        for index in range(self.separables):
            # The first block's input is rectified already; once more changes nothing.
            y = getattr(self, f"separable{index + 1}")(jax.nn.relu(y))
        if self.shortcut is None:
            return x + y
        return self.shortcut(x) + nnx.max_pool(y, (3, 3), (2, 2), "SAME")


class Exit(nnx.Module):
    """The last separable convolutions, each followed by a ReLU, without a shortcut."""

    def __init__(self, in_features: int, *, rngs: nnx.Rngs):
        self.separable1 = SeparableNorm(in_features, EXIT_FEATURES[0], rngs=rngs)
        self.separable2 = SeparableNorm(*EXIT_FEATURES, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps float[batch, height, width, in_features] to the exit's features."""
        return jax.nn.relu(self.separable2(jax.nn.relu(self.separable1(x))))


class Xception(nnx.Module):
    """The network: `stem`, `entry1` to 3, `middle1` to 8, `exit1`, `exit2`, `classifier`."""

    def __init__(self, classes: int = 1000, *, rngs: nnx.Rngs):
        """Builds the network with random weights.

        Args:
            classes: number of logits.
            rngs: source of the initial weights.
        """
        self.stem = Stem(rngs=rngs)
        before = STEM_FEATURES[-1]
        for name, features in BLOCKS.items():
            setattr(self, name, ResidualBlock(before, features, rngs=rngs))
            before = features[-1]
        self.exit2 = Exit(before, rngs=rngs)
        self.classifier = nnx.Linear(EXIT_FEATURES[-1], classes, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Computes the logits, float[batch, classes], of images float[batch, height, width, 3]."""
        x = self.stem(images)
        for name in BLOCKS:
            x = getattr(self, name)(x)
        return self.classifier(self.exit2(x).mean(axis=(1, 2)))


def create(name: str, classes: int = 1000, *, rngs: nnx.Rngs) -> Xception:
    """Builds the network, the only one of its kind, with random weights."""
    del name
    return Xception(classes, rngs=rngs)
