"""What a source of pictures is: encoded pictures by number, so that workers can share it."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from corrq_jax.errors import require

if TYPE_CHECKING:
    from PIL import Image


class Record(NamedTuple):
    """An encoded picture.

    Attributes:
        name: what to call the picture in messages; the same on every machine.
        data: the picture's file, such as a JPEG; it may be damaged.
        label: index of its class; -1 for unknown.
    """

    name: str
    data: bytes
    label: int


class Source(Protocol):
    """Pictures in a fixed order, each of which can be had by itself, from several threads at once.

    An `OSError` of `source[index]` stands for a picture that cannot be read.
    """

    @property
    def identity(self) -> str:
        """Short text that tells one data set from another, such as for the key of a cache."""
        ...

    def __len__(self) -> int:
        """Number of pictures."""
        ...

    def __getitem__(self, index: int, /) -> Record:
        """Picture number `index`, from 0 to the number of pictures less 1."""
        ...


def decode(data: bytes) -> Image.Image:
    """Decodes a picture of any format that Pillow knows: a Pillow picture, RGB, of 8 bits.

    Raises:
        Exception: of any kind, from Pillow's decoders, if the data are damaged.
        MissingDependencyError: Pillow is not installed.
    """
    pillow = require("PIL.Image", "data")
    with pillow.open(io.BytesIO(data)) as file:
        if file.mode[:4] == "I;16" or (file.mode == "I" and file.format in ("PNG", "PPM")):
            # Grey of 16 bits, of which Pillow makes white of all above 255.
            return pillow.fromarray((np.asarray(file) >> 8).astype(np.uint8)).convert("RGB")
        return file.convert("RGB")
