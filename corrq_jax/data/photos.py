"""Twenty-four labelled photos of ImageNet classes that are at hand without a download.

Twenty come with the package foolbox, which only has to be installed, and four cats with this one.
They are too few to measure accuracy; as 240 views they show how closely one network follows
another.
"""

from __future__ import annotations

import dataclasses
import importlib.resources
import importlib.util
import io
import pathlib
import re
import tarfile
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from corrq_jax.data.preprocess import Preprocess
from corrq_jax.data.source import decode
from corrq_jax.errors import FileFormatError, missing

if TYPE_CHECKING:
    from PIL import Image

PHOTOS = "photos"  # what they are called where a folder or another data set could be given

_FOOLBOX_COUNT = 20


@dataclasses.dataclass(frozen=True)
class Photo:
    """A photo with its ImageNet class.

    Attributes:
        name: the file's name.
        label: index of the class among the 1000 of ImageNet, in the usual order.
        image: Pillow picture, RGB.
    """

    name: str
    label: int
    image: Image.Image


def load_photos() -> list[Photo]:
    """Reads the 24 photos, always in the same order.

    Raises:
        MissingDependencyError: foolbox or Pillow is not installed.
        FileFormatError: the installed foolbox does not have its 20 photos.
    """
    return _foolbox_photos() + _cat_photos()


def views(photo: Photo, preprocess: Preprocess) -> np.ndarray:
    """Ten views of a photo: centre and four corners, each as it is and mirrored.

    Args:
        photo: the photo.
        preprocess: size of the crops, and how they are resized and normalized.

    Returns:
        float32[10, size, size, 3]. The first one is `preprocess(photo.image)`.
    """
    return np.stack(
        [
            preprocess.at(photo.image, box, flip=flip)
            for box in preprocess.boxes(photo.image)
            for flip in (False, True)
        ]
    )


def all_views(photos: Sequence[Photo], preprocess: Preprocess) -> tuple[np.ndarray, np.ndarray]:
    """The views of several photos with their labels.

    Args:
        photos: at least one.
        preprocess: the network's preprocessing.

    Returns:
        float32[10 photos, size, size, 3] and int32[10 photos], photo by photo.
    """
    images = np.concatenate([views(photo, preprocess) for photo in photos])
    labels = np.repeat(np.array([photo.label for photo in photos], np.int32), 10)
    return images, labels


def _foolbox_photos() -> list[Photo]:
    spec = importlib.util.find_spec("foolbox")  # finds the package without importing it
    if spec is None or spec.origin is None:
        raise missing("the package foolbox", "demo")
    folder = pathlib.Path(spec.origin).parent / "data"
    # Names are imagenet_NUMBER_CLASS.jpg.
    found = [
        (p, re.fullmatch(r"imagenet_\d+_(\d+)\.jpg", p.name)) for p in sorted(folder.glob("*"))
    ]
    photos = [_photo(p.name, int(m[1]), p.read_bytes()) for p, m in found if m]
    if len(photos) != _FOOLBOX_COUNT:
        raise FileFormatError(
            f"{folder} has {len(photos)} photos instead of {_FOOLBOX_COUNT}; "
            "run: pip install --force-reinstall 'foolbox==3.3.4'"
        )
    return photos


def _cat_photos() -> list[Photo]:
    packed = importlib.resources.files("corrq_jax.data").joinpath("assets/cats.tar.gz")
    with tarfile.open(fileobj=io.BytesIO(packed.read_bytes())) as archive:
        members = sorted(archive.getmembers(), key=lambda member: member.name)
        # Names are WORDNET-ID_CLASS_WORDS.jpg.
        return [
            _photo(member.name, int(member.name.split("_")[1]), file.read())
            for member in members
            if (file := archive.extractfile(member)) is not None
        ]


def _photo(name: str, label: int, data: bytes) -> Photo:
    return Photo(name, label, decode(data))
