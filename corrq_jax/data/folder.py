"""Pictures from a folder: one folder for each class, or a file with the labels."""

import dataclasses
import hashlib
import os
import pathlib
import warnings

from corrq_jax.data.classes import IMAGENET_CLASSES, indices_of_folders
from corrq_jax.data.labels import read_labels
from corrq_jax.data.source import Record
from corrq_jax.errors import InputError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".tif", ".tiff"})


@dataclasses.dataclass(frozen=True)
class ImageFolder:
    """The pictures of a folder; a `Source`.

    Attributes:
        directory: the folder.
        names: of the pictures, below the folder, with "/" between folders.
        labels: index of the class of each; -1 for unknown.
    """

    directory: pathlib.Path
    names: tuple[str, ...]
    labels: tuple[int, ...]

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.names)

    def __getitem__(self, index: int) -> Record:
        """Picture number `index`, as it lies in its file."""
        name = self.names[index]
        return Record(name, (self.directory / name).read_bytes(), self.labels[index])

    @property
    def identity(self) -> str:
        """Start of a SHA-256 of the pictures' names, sizes and labels, wherever the folder is."""
        hashed = hashlib.sha256()
        for name, label in zip(self.names, self.labels, strict=True):
            path = self.directory / name
            size = path.stat().st_size if path.exists() else -1  # reading it will say why
            hashed.update(f"{name}\0{size}\0{label}\n".encode())
        return f"folder:{hashed.hexdigest()[:16]}"


def read_folder(
    directory: str | os.PathLike[str],
    labels: str | os.PathLike[str] | None = None,
    *,
    classes: int = IMAGENET_CLASSES,
) -> ImageFolder:
    """Lists the pictures below a folder, sorted by class folder and name.

    Hidden files and folders, and files whose suffix is not a picture's, are passed over.

    Without `labels` there is one folder for each class, named by the index of the class or by its
    WordNet id; as many folders of any name as there are classes are all classes in order. Else
    the classes are unknown, which is a warning; so they are where names sort otherwise than the
    numbers that they are, such as 1 to 10.

    Args:
        directory: the folder; pictures may lie at any depth in the class folders.
        labels: a text file with the labels (see `read_labels`); pictures may then lie anywhere.
        classes: how many classes the network tells apart.

    Returns:
        The pictures, none of which has been read yet.

    Raises:
        InputError: `directory` is not a folder, or has no pictures where they are looked for.
        FileFormatError: the file with the labels does not fit the pictures.
    """
    root = pathlib.Path(directory)
    if not root.is_dir():
        raise InputError(f"{root} is not a folder; give one with a folder of pictures a class")
    return _class_folders(root, classes) if labels is None else _labelled(root, labels, classes)


def _class_folders(root: pathlib.Path, classes: int) -> ImageFolder:
    folders = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    pictures = [_pictures(root / name) for name in folders]
    if not any(pictures):
        raise InputError(
            f"{root} has no pictures in folders of their own for each class, such as "
            f"{root / 'n02123597' / '1.jpg'} (suffixes: {', '.join(sorted(SUFFIXES))}); pictures "
            "in one folder need a file with labels"
        )
    indices = indices_of_folders(folders, classes)
    if indices is None:
        warnings.warn(
            f"{len(folders)} class folders that are neither numbers of 0 to {classes - 1}, nor "
            f"WordNet ids of ImageNet, nor all {classes} classes in order: the pictures have no "
            "labels, so that top-1 and top-5 are not measured, only how closely the float network "
            "is followed",
            stacklevel=3,
        )
        indices = [-1] * len(folders)
    names = tuple(
        f"{folder}/{name}"
        for folder, inside in zip(folders, pictures, strict=True)
        for name in inside
    )
    labels = [
        label for label, inside in zip(indices, pictures, strict=True) for _ in range(len(inside))
    ]
    return ImageFolder(root, names, tuple(labels))


def _labelled(root: pathlib.Path, labels: str | os.PathLike[str], classes: int) -> ImageFolder:
    names = _pictures(root)
    if not names:
        raise InputError(f"{root} has no pictures (suffixes: {', '.join(sorted(SUFFIXES))})")
    return ImageFolder(root, tuple(names), tuple(read_labels(labels, names, classes)))


def _pictures(folder: pathlib.Path) -> list[str]:
    below = (path.relative_to(folder) for path in folder.rglob("*"))
    return sorted(
        path.as_posix()
        for path in below
        if path.suffix.lower() in SUFFIXES
        and not any(part.startswith(".") for part in path.parts)
        and not (folder / path).is_dir()
    )
