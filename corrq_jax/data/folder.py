"""Pictures from a folder that has one folder for each class."""

import os
import pathlib
from collections.abc import Iterator

import numpy as np

from corrq_jax.data.preprocess import Preprocess
from corrq_jax.errors import InputError, require

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".tif", ".tiff"})


class ImageFolder:
    """The pictures of a class folder, read one after the other when they are asked for.

    Attributes:
        classes: names of the class folders, sorted; a label is an index into them.
        files: (path, label) of every picture, sorted by class, then by name.
        corrupt: why, by the path of each picture that could not be read so far.
    """

    def __init__(self, classes: tuple[str, ...], files: tuple[tuple[pathlib.Path, int], ...]):
        self.classes = classes
        self.files = files
        self.corrupt: dict[str, str] = {}

    def examples(self, preprocess: Preprocess) -> Iterator[tuple[np.ndarray, int]]:
        """Yields (float32[size, size, 3], label) for each picture that can be read.

        Those that cannot are left out and entered in `corrupt`.
        """
        pillow = require("PIL.Image", "demo")
        self.corrupt.clear()
        for path, label in self.files:
            try:
                with pillow.open(path) as file:
                    image = file.convert("RGB")
            except Exception as error:  # decoders raise anything on damaged data
                self.corrupt[str(path)] = f"{type(error).__name__}: {error}"
                continue
            yield preprocess(image), label


def read_folder(directory: str | os.PathLike[str]) -> ImageFolder:
    """Lists the pictures below a folder with one folder for each class.

    Hidden files and folders, and files whose suffix is not a picture's, are passed over.

    Args:
        directory: the folder; pictures may lie at any depth in the class folders.

    Returns:
        The pictures, none of which has been read yet.

    Raises:
        InputError: `directory` is not a folder, or has no class folders with pictures.
    """
    root = pathlib.Path(directory)
    if not root.is_dir():
        raise InputError(f"{root} is not a folder; give one with a folder of pictures a class")
    folders = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    files = tuple(
        (path, label) for label, folder in enumerate(folders) for path in _pictures(folder)
    )
    if not files:
        raise InputError(
            f"{root} has no pictures in folders of their own for each class, such as "
            f"{root / 'cat' / '1.jpg'} (suffixes: {', '.join(sorted(SUFFIXES))})"
        )
    return ImageFolder(tuple(folder.name for folder in folders), files)


def _pictures(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
