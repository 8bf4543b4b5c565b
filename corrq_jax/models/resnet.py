"""ResNet-50: bottleneck blocks with shortcuts, as Keras has it and as torchvision trains it.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016. A block narrows its input by a
pointwise convolution, convolves 3 x 3, and widens it again; its input is added to the result. Both
variants pad alike on all sides: the stem by 3, the 3 x 3 convolutions and the pooling by 1.
TensorFlow's "SAME" would pad strided layers less at the start than at the end.

The variants differ in what the paper leaves open or others changed:

| | resnet50 (Keras) | resnet50_torchvision ("v1.5") |
|---|---|---|
| convolutions | with bias | without |
| BatchNorm epsilon | 1.001e-5 | 1e-5 |
| stride of a stage | in the first convolution, 1 x 1 | in the second one, 3 x 3 |
| pictures | "caffe": BGR, means subtracted | "torch": RGB, means and deviations |

Only the inference form is built: BatchNorm uses its running averages.
"""

import functools
from typing import NamedTuple

import jax
from flax import nnx

from corrq_jax.models.layers import ConvNorm, Row

STEM_FEATURES = 64
EXPANSION = 4
_PADDING = ((1, 1), (1, 1))


class Variant(NamedTuple):
    """What the variants differ in.

    Attributes:
        epsilon: added to BatchNorm's variance.
        use_bias: whether the convolutions have a bias.
        strided: which convolution of a stage's first block has the stride, 1 or 2.
    """

    epsilon: float
    use_bias: bool
    strided: int


VARIANTS = {
    "resnet50": Variant(epsilon=1.001e-5, use_bias=True, strided=1),
    "resnet50_torchvision": Variant(epsilon=1e-5, use_bias=False, strided=2),
}


class Stage(NamedTuple):
    """A row of blocks, of which the first may stride and changes the features."""

    blocks: int
    stride: int
    features: int  # between a block's convolutions; outside it there are EXPANSION times as many


STAGES = (Stage(3, 1, 64), Stage(4, 2, 128), Stage(6, 2, 256), Stage(3, 2, 512))


class Bottleneck(nnx.Module):
    """`conv1`, `conv2` and `conv3`, and a `shortcut` around them."""

    def __init__(
        self,
        in_features: int,
        features: int,
        stride: int,
        variant: Variant,
        *,
        rngs: nnx.Rngs,
    ):
        """Builds it with random weights.

        Args:
            in_features: channels of the input.
            features: channels between the convolutions.
            stride: step along height and width.
            variant: one of `VARIANTS`.
            rngs: source of the weights.
        """
        unit = functools.partial(
            ConvNorm, epsilon=variant.epsilon, use_bias=variant.use_bias, rngs=rngs
        )
        relu, out_features = jax.nn.relu, EXPANSION * features
        first, second = (stride, 1) if variant.strided == 1 else (1, stride)
        self.conv1 = unit(in_features, features, 1, first, activation=relu)
        self.conv2 = unit(features, features, 3, second, padding=_PADDING, activation=relu)
        self.conv3 = unit(features, out_features)
        # None where the shortcut is the input itself, so that the block has no such parameters.
        same = in_features == out_features
        self.shortcut = None if same else unit(in_features, out_features, 1, stride)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps float[batch, height, width, in_features] to `EXPANSION * features` features."""
        y = self.conv3(self.conv2(self.conv1(x)))
        return jax.nn.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class ResNet(nnx.Module):
    """The network: `stem`, `stage1` to `stage4`, `classifier`."""

    def __init__(self, variant: Variant, classes: int = 1000, *, rngs: nnx.Rngs):
        """Builds the network with random weights.

        Args:
            variant: one of `VARIANTS`.
            classes: number of logits.
            rngs: source of the weights.
        """
        self.stem = ConvNorm(
            3,
            STEM_FEATURES,
            7,
            2,
            epsilon=variant.epsilon,
            padding=((3, 3), (3, 3)),
            use_bias=variant.use_bias,
            activation=jax.nn.relu,
            rngs=rngs,
        )
        before = STEM_FEATURES
        for index, stage in enumerate(STAGES):
            blocks: list[nnx.Module] = []
            for block in range(stage.blocks):
                stride = 1 if block else stage.stride
                blocks.append(Bottleneck(before, stage.features, stride, variant, rngs=rngs))
                before = EXPANSION * stage.features
            setattr(self, f"stage{index + 1}", Row(blocks))
        self.classifier = nnx.Linear(before, classes, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Computes the logits, float[batch, classes], of images float[batch, height, width, 3]."""
        # Keras pads with zeros here. After a ReLU that changes no maximum.
        x = nnx.max_pool(
            self.stem(images),
            (3, 3),
            (2, 2),
            _PADDING,  # pyright: ignore[reportArgumentType]  # pairs are allowed, too
        )
        for index in range(len(STAGES)):
            x = getattr(self, f"stage{index + 1}")(x)
        return self.classifier(x.mean(axis=(1, 2)))


def create(name: str, classes: int = 1000, *, rngs: nnx.Rngs) -> ResNet:
    """Builds the network `name`, one of `VARIANTS`, with random weights."""
    return ResNet(VARIANTS[name], classes, rngs=rngs)
