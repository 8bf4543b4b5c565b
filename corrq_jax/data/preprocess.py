"""Pictures to the arrays that a network was trained on."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from corrq_jax.errors import InputError, require

if TYPE_CHECKING:
    from PIL import Image

Box = tuple[int, int, int, int]  # left, upper, right, lower, in pixels

_FILTERS = ("nearest", "bilinear", "bicubic", "lanczos")


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """Crop, resize, normalize: `(x - mean) / std` for channel values x of 0 to 255.

    Attributes:
        size: height and width of the result in pixels.
        crop_fraction: side of the square crop as a fraction of the picture's shorter side, in
            (0, 1].
        mean: one value for each channel, or one for all.
        std: likewise, above 0.
        resample: "nearest", "bilinear", "bicubic" or "lanczos" (all but the first antialias).

    Raises:
        InputError: a value is out of range.
    """

    size: int
    crop_fraction: float
    mean: float | tuple[float, float, float]
    std: float | tuple[float, float, float]
    resample: str = "bicubic"

    def __post_init__(self):
        if self.size < 1:
            raise InputError(f"size is {self.size}; at least 1 is needed")
        if not 0 < self.crop_fraction <= 1:
            raise InputError(f"crop_fraction is {self.crop_fraction}; (0, 1] is allowed")
        if self.resample not in _FILTERS:
            raise InputError(f"resample is {self.resample!r}; choose one of {', '.join(_FILTERS)}")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if np.shape(values) not in ((), (3,)):
                raise InputError(f"{name} is {values}; one value or three are needed")
        if not np.all(np.asarray(self.std) > 0):
            raise InputError(f"std is {self.std}; values above 0 are needed")

    def __call__(self, image: Image.Image) -> np.ndarray:
        """Prepares the centre of a picture: float32[size, size, 3]."""
        return self.at(image, self.boxes(image)[0])

    def at(self, image: Image.Image, box: Box, *, flip: bool = False) -> np.ndarray:
        """Prepares one part of a picture.

        Args:
            image: any Pillow picture; it is converted to RGB.
            box: left, upper, right, lower, in pixels of the picture.
            flip: mirror left and right.

        Returns:
            float32[size, size, 3].
        """
        pillow = require("PIL.Image", "demo")
        resample = pillow.Resampling[self.resample.upper()]
        part = image.convert("RGB").crop(box).resize((self.size, self.size), resample)
        pixels = np.asarray(part, np.float32)[:, :: -1 if flip else 1]
        return (pixels - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)

    def boxes(self, image: Image.Image) -> tuple[Box, Box, Box, Box, Box]:
        """The square crops of a picture: centre, upper left and right, lower left and right."""
        width, height = image.size
        side = max(1, int(self.crop_fraction * min(width, height)))
        right, lower = width - side, height - side

        def box(x: int, y: int) -> Box:
            return x, y, x + side, y + side

        centre = box((right + 1) // 2, (lower + 1) // 2)
        return centre, box(0, 0), box(right, 0), box(0, lower), box(right, lower)


def efficientnet_lite(size: int) -> Preprocess:
    """The preprocessing of the EfficientNet-Lite networks, for instance size 224.

    The crop leaves a margin of 16 pixels at the network's resolution: 224/256 of the shorter side
    for size 224.
    """
    return Preprocess(size=size, crop_fraction=size / (size + 32), mean=127.0, std=128.0)


_BY_NAME = {"efficientnet_lite": efficientnet_lite}


def preprocessing(name: str, size: int) -> Preprocess:
    """The preprocessing called `name` (as in a network's metadata) at a resolution.

    Raises:
        InputError: there is no preprocessing of this name.
    """
    if name not in _BY_NAME:
        raise InputError(
            f"no preprocessing is called {name!r}; choose one of {', '.join(_BY_NAME)}"
        )
    return _BY_NAME[name](size)
