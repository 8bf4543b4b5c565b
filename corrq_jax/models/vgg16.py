"""VGG-16: 13 convolutions of 3 x 3 in five stages, and three dense layers.

Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition",
ICLR 2015 (arXiv 2014); its configuration D. Only the inference form is built, without dropout.

The features are flattened, not averaged, so the first dense layer fixes the size of the pictures:
224 x 224 in the published weights. The registry has the network twice. "vgg16" is Keras's, whose
weights are those of the paper's authors and want BGR pictures with the means subtracted ("caffe").
"vgg16_torchvision" is the same computation with weights that torchvision trained, which want RGB
pictures scaled and normalized ("torch"). torchvision averages the features to 7 x 7 before it
flattens them; at 224 x 224 they are 7 x 7 already, so that step is the identity and is left out.
"""

import jax
from flax import nnx

from corrq_jax.errors import InputError

# (convolutions, features) of each stage; each halves the resolution at its end.
STAGES = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))
DENSE_FEATURES = 4096
RESOLUTION = (224, 224)


class Stage(nnx.Module):
    """Convolutions `conv1`, `conv2` and so on, with ReLU, and the maximum of each 2 x 2."""

    def __init__(self, in_features: int, features: int, convolutions: int, *, rngs: nnx.Rngs):
        self.convolutions = convolutions
        for index in range(convolutions):
            conv = nnx.Conv(in_features, features, (3, 3), padding="SAME", rngs=rngs)
            setattr(self, f"conv{index + 1}", conv)
            in_features = features

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps float[batch, height, width, in_features] to `features` of half the resolution."""
        for index in range(self.convolutions):
            x = jax.nn.relu(getattr(self, f"conv{index + 1}")(x))
        return nnx.max_pool(x, (2, 2), (2, 2))


class VGG16(nnx.Module):
    """The network: `stage1` to `stage5`, `fc1`, `fc2`, `classifier`."""

    def __init__(self, classes: int, resolution: tuple[int, int], *, rngs: nnx.Rngs):
        """Builds the network with random weights.

        Args:
            classes: number of logits.
            resolution: height and width of the pictures, each at least 32.
            rngs: source of the weights.
        """
        self.resolution = resolution
        features = 3
        for index, (convolutions, width) in enumerate(STAGES):
            setattr(self, f"stage{index + 1}", Stage(features, width, convolutions, rngs=rngs))
            features = width
        # Five halvings, each of which drops an odd last row or column.
        flattened = (resolution[0] // 32) * (resolution[1] // 32) * features
        self.fc1 = nnx.Linear(flattened, DENSE_FEATURES, rngs=rngs)
        self.fc2 = nnx.Linear(DENSE_FEATURES, DENSE_FEATURES, rngs=rngs)
        self.classifier = nnx.Linear(DENSE_FEATURES, classes, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Computes the logits, float[batch, classes], of images float[batch, height, width, 3].

        Raises:
            InputError: the images have another height or width than the network was built for.
        """
        height, width = self.resolution
        if images.shape[1:3] != self.resolution:
            found = " x ".join(map(str, images.shape[1:3]))
            raise InputError(
                f"these pictures have {found} pixels, and this VGG-16 takes {height} x {width} "
                "only, because its first dense layer has a weight for each place; resize them"
            )
        x = images
        for index in range(len(STAGES)):
            x = getattr(self, f"stage{index + 1}")(x)
        x = x.reshape(x.shape[0], -1)
        x = jax.nn.relu(self.fc2(jax.nn.relu(self.fc1(x))))
        return self.classifier(x)


def create(
    name: str, classes: int = 1000, *, resolution: tuple[int, int] = RESOLUTION, rngs: nnx.Rngs
) -> VGG16:
    """Builds the network with random weights; "vgg16" and "vgg16_torchvision" are the same.

    Args:
        name: either of them.
        classes: number of logits.
        resolution: height and width of the pictures; the published weights need the default.
        rngs: source of the weights.

    Raises:
        InputError: the resolution leaves no features.
    """
    if min(resolution) < 32:
        raise InputError(f"resolution is {resolution}; at least 32 x 32 pixels are needed")
    return VGG16(classes, resolution, rngs=rngs)
