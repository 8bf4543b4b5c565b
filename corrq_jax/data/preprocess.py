"""Pictures to the arrays that a network was trained on."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from corrq_jax.errors import InputError, require

if TYPE_CHECKING:
    from PIL import Image

Box = tuple[float, float, float, float]  # left, upper, right, lower, in pixels

_CHOICES = {
    "resample": ("nearest", "bilinear", "bicubic", "lanczos"),
    "channels": ("RGB", "BGR", "L"),
    "geometry": ("crop", "keras"),
}


# Mean and deviation of ImageNet's pixels, red, green, blue, as torchvision's documents state them.
IMAGENET_MEAN = (255 * 0.485, 255 * 0.456, 255 * 0.406)
IMAGENET_STD = (255 * 0.229, 255 * 0.224, 255 * 0.225)


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """Crop, resize, normalize: `(x - mean) / std` for channel values x of 0 to 255.

    Attributes:
        size: height and width of the result in pixels.
        crop_fraction: side of the square crop as a fraction of the picture's shorter side, in
            (0, 1].
        mean: one value for each channel of the result, or one for all.
        std: likewise, above 0.
        resample: "nearest", "bilinear", "bicubic" or "lanczos" (all but the first antialias).
        channels: order of the result's channels, "RGB" or "BGR"; "L" for one channel, of grey.
        geometry: "crop" or "keras". "crop" cuts the square out in whole pixels and resizes it by
            itself; an odd margin is larger to the left and above. "keras" is what
            `keras.utils.load_img(target_size=..., keep_aspect_ratio=True)` does, followed by a
            centre crop: an odd margin is larger to the right and below, the square of a
            `crop_fraction` below 1 may begin within a pixel, and resizing at its border takes
            account of the pixels beyond.
        typical: mean and deviation of the pictures' channels as they are before, red, green,
            blue (or grey) of 0 to 255; photos like ImageNet's by default.

    Raises:
        InputError: a value is out of range.

    >>> from PIL import Image
    >>> prepare = Preprocess(size=2, crop_fraction=1.0, mean=127.5, std=127.5)
    >>> prepare(Image.new("RGB", (5, 4), (0, 51, 255)))[0, 0].tolist()
    [-1.0, -0.6000000238418579, 1.0]
    """

    size: int
    crop_fraction: float
    mean: float | tuple[float, float, float]
    std: float | tuple[float, float, float]
    resample: str = "bicubic"
    channels: str = "RGB"
    geometry: str = "crop"
    typical: tuple[tuple[float, ...], tuple[float, ...]] = (IMAGENET_MEAN, IMAGENET_STD)

    def __post_init__(self) -> None:
        if self.size < 1:
            raise InputError(f"size is {self.size}; at least 1 is needed")
        if not 0 < self.crop_fraction <= 1:
            raise InputError(f"crop_fraction is {self.crop_fraction}; (0, 1] is allowed")
        for name, allowed in _CHOICES.items():
            if (value := getattr(self, name)) not in allowed:
                raise InputError(f"{name} is {value!r}; choose one of {', '.join(allowed)}")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if np.shape(values) not in ((), (3,)):
                raise InputError(f"{name} is {values}; one value or three are needed")
        if any(np.shape(values) != (self.depth,) for values in self.typical):
            raise InputError(f"typical is {self.typical}; twice {self.depth} values are needed")
        if not np.all(np.asarray(self.std) > 0):
            raise InputError(f"std is {self.std}; values above 0 are needed")

    @property
    def depth(self) -> int:
        """Number of the result's channels, 3 or, of grey, 1."""
        return 1 if self.channels == "L" else 3

    def __call__(self, image: Image.Image) -> np.ndarray:
        """Prepares the centre of a picture: float32[size, size, depth]."""
        return self.at(image, self.boxes(image)[0])

    def at(self, image: Image.Image, box: Box, *, flip: bool = False) -> np.ndarray:
        """Prepares one part of a picture.

        Args:
            image: any Pillow picture; it is converted to RGB, or to grey.
            box: left, upper, right, lower, in pixels of the picture.
            flip: mirror left and right.

        Returns:
            float32[size, size, depth].
        """
        pillow = require("PIL.Image", "data")
        resample = pillow.Resampling[self.resample.upper()]
        part = image.convert("L" if self.channels == "L" else "RGB")
        shape = (self.size, self.size)
        if self.geometry == "crop":
            part = part.crop(box).resize(shape, resample)
        else:
            part = part.resize(shape, resample, box=box)
        pixels = np.asarray(part, np.float32)[:, :: -1 if flip else 1]
        if self.channels == "BGR":
            pixels = pixels[..., ::-1]
        if self.channels == "L":
            pixels = pixels[..., None]
        return (pixels - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)

    def pixels(self, prepared: np.ndarray) -> np.ndarray:
        """What `at` made, as a picture again: uint8[..., height, width, depth], red first."""
        values = np.asarray(prepared, np.float64) * self.std + np.asarray(self.mean, np.float64)
        if self.channels == "BGR":
            values = values[..., ::-1]
        return np.rint(values).clip(0, 255).astype(np.uint8)

    def expected_moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and variance of the results for typical pictures: float64[depth] each."""
        order = slice(None, None, -1 if self.channels == "BGR" else 1)
        mean, std = (np.asarray(values)[order] for values in self.typical)
        return (mean - self.mean) / self.std, np.square(std / self.std)

    def boxes(self, image: Image.Image) -> tuple[Box, Box, Box, Box, Box]:
        """The square crops of a picture: centre, upper left and right, lower left and right."""
        width, height = image.size
        short = min(width, height)
        if self.geometry == "crop":
            side = max(1, int(self.crop_fraction * short))
            x, y = (width - side + 1) // 2, (height - side + 1) // 2
        else:
            # A square as wide as the shorter side, in whole pixels; in it, one exactly in the
            # middle.
            side = self.crop_fraction * short
            x, y = ((length - short) // 2 + (short - side) / 2 for length in (width, height))
        right, lower = width - side, height - side

        def box(x: float, y: float) -> Box:
            # Not beyond the picture, by however little the sum of fractions is rounded up.
            return x, y, min(x + side, width), min(y + side, height)

        return box(x, y), box(0, 0), box(right, 0), box(0, lower), box(right, lower)


def efficientnet_lite(size: int) -> Preprocess:
    """The preprocessing of the EfficientNet-Lite networks, for instance size 224.

    The crop leaves a margin of 16 pixels at the network's resolution: 224/256 of the shorter side
    for size 224.
    """
    return Preprocess(size=size, crop_fraction=size / (size + 32), mean=127.0, std=128.0)


# How the accuracy table of keras-applications was measured, by its maintainer's word: shorter side
# to 256, cubic interpolation, centre crop of 224
# (https://github.com/keras-team/keras-applications/issues/99).
_KERAS_CROP = 224 / 256


def caffe(size: int) -> Preprocess:
    """Keras's mode "caffe", such as of VGG16 and ResNet50: BGR around ImageNet's mean."""
    mean = (103.939, 116.779, 123.68)
    return Preprocess(size, _KERAS_CROP, mean, 1.0, channels="BGR", geometry="keras")


def tf(size: int) -> Preprocess:
    """Keras's mode "tf", such as of MobileNet and InceptionV3: values of -1 to 1."""
    return Preprocess(size, _KERAS_CROP, 127.5, 127.5, geometry="keras")


def torch(size: int) -> Preprocess:
    """Keras's mode "torch", such as of DenseNet121: ImageNet's mean 0 and deviation 1."""
    return Preprocess(size, _KERAS_CROP, IMAGENET_MEAN, IMAGENET_STD, geometry="keras")


def fashion_mnist(size: int) -> Preprocess:
    """Grey pictures as they are, with the mean 0 and deviation 1 of the training pictures."""
    mean, std = 72.9404, 90.0212  # over all pixels of the 60,000 training pictures
    return Preprocess(size, 1.0, mean, std, channels="L", typical=((mean,), (std,)))


_BY_NAME = {
    "efficientnet_lite": efficientnet_lite,
    "caffe": caffe,
    "tf": tf,
    "torch": torch,
    "fashion_mnist": fashion_mnist,
}


def preprocessing(name: str, size: int) -> Preprocess:
    """The preprocessing called `name` (as in a network's metadata) at a resolution.

    Args:
        name: "caffe", "tf" or "torch", as Keras calls its modes, or another of this module.
        size: height and width in pixels.

    Returns:
        The preprocessing, for pictures of any size.

    Raises:
        InputError: there is no preprocessing of this name.

    >>> preprocessing("caffe", 224).channels
    'BGR'
    """
    if name not in _BY_NAME:
        raise InputError(
            f"no preprocessing is called {name!r}; choose one of {', '.join(_BY_NAME)}"
        )
    return _BY_NAME[name](size)
