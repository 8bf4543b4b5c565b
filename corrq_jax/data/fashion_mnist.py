"""Fashion-MNIST: 70,000 grey pictures of clothing, 28 x 28 pixels, in ten classes.

Xiao, Rasul and Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning
Algorithms", 2017 (https://arxiv.org/abs/1708.07747). The files are IDX, as those of MNIST: numbers
in big-endian order, a magic one, the sizes, then bytes.
"""

import dataclasses
import gzip
import hashlib
import os
import pathlib
import struct
import zlib

import numpy as np

from corrq_jax.data.source import Record, decode
from corrq_jax.data.tfds import tfds_source
from corrq_jax.errors import FileFormatError, InputError, MissingDependencyError

FASHION_MNIST = "fashion_mnist"  # what it is called where a folder or another set could be given
FASHION_CLASSES = (
    *("T-shirt/top", "trouser", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
)
DEBIAN_FOLDER = pathlib.Path("/usr/share/datasets/fashion-mnist")

_SIDE = 28
_MOST = 60_000  # pictures in a file; a header that says more is damaged
_FILES = {"train": "train", "test": "t10k"}
_HOW_TO_GET = (
    "on Debian and Ubuntu run: apt-get install dataset-fashion-mnist; elsewhere name a folder with "
    "the four .gz files of https://github.com/zalandoresearch/fashion-mnist, or let TFDS prepare "
    "fashion_mnist (corrq_jax.data.tfds_source('fashion_mnist', 'test', classes=10, download=True))"
)


@dataclasses.dataclass(frozen=True, eq=False)
class FashionMnist:
    """One split; a `Source`.

    Attributes:
        split: "train" or "test".
        images: uint8[count, 28, 28], 0 for the background.
        labels: int32[count], an index into `FASHION_CLASSES`.
    """

    split: str
    images: np.ndarray
    labels: np.ndarray

    @property
    def identity(self) -> str:
        """The split with the start of a SHA-256 of its pictures and labels."""
        hashed = hashlib.sha256(self.images.tobytes() + self.labels.astype("<i4").tobytes())
        return f"{FASHION_MNIST}/{self.split}:{hashed.hexdigest()[:16]}"

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.labels)

    def __getitem__(self, index: int) -> Record:
        """Picture number `index`, as a file in the format PGM."""
        pixels = b"P5 %d %d 255\n" % (_SIDE, _SIDE) + self.images[index].tobytes()
        return Record(f"{FASHION_MNIST}/{self.split}[{index}]", pixels, int(self.labels[index]))


def read_fashion_mnist(
    split: str = "test", folder: str | os.PathLike[str] | None = None
) -> FashionMnist:
    """Reads a split of Fashion-MNIST, in the order of the files.

    Args:
        split: "train" (60,000 pictures) or "test" (10,000).
        folder: with the four files, such as `t10k-images-idx3-ubyte.gz`; None for where Debian's
            package `dataset-fashion-mnist` puts them or, if they are not there, for TFDS's
            `fashion_mnist`, if that has been prepared.

    Returns:
        The pictures and their labels.

    Raises:
        InputError: there is no such split, or the pictures are not found; the message says how to
            get them.
        FileFormatError: a file is damaged, or not of Fashion-MNIST.
    """
    if split not in _FILES:
        raise InputError(f"Fashion-MNIST has no split {split!r}; give 'train' or 'test'")
    if folder is None and not _path(DEBIAN_FOLDER, split, "images-idx3").is_file():
        return _from_tfds(split)
    folder = DEBIAN_FOLDER if folder is None else pathlib.Path(folder)
    images = _read_idx(_path(folder, split, "images-idx3"), (_SIDE, _SIDE))
    labels = _read_idx(_path(folder, split, "labels-idx1"), ())
    if len(images) != len(labels):
        raise FileFormatError(
            f"{folder}: {len(images)} pictures and {len(labels)} labels of {split}; get the files "
            "anew, all from one place"
        )
    if labels.size and labels.max() >= len(FASHION_CLASSES):
        raise FileFormatError(
            f"{_path(folder, split, 'labels-idx1')}: label {labels.max()}; Fashion-MNIST has "
            "labels from 0 to 9. Get the file anew"
        )
    return FashionMnist(split, images, labels.astype(np.int32))


def _path(folder: pathlib.Path, split: str, what: str) -> pathlib.Path:
    return folder / f"{_FILES[split]}-{what}-ubyte.gz"


def _read_idx(path: pathlib.Path, shape: tuple[int, ...]) -> np.ndarray:
    """The bytes of a compressed IDX file, uint8[count, *shape]."""
    if not path.is_file():
        raise InputError(f"there is no file {path}; {_HOW_TO_GET}")
    header = struct.Struct(f">{2 + len(shape)}I")
    magic = 0x0800 + 1 + len(shape)  # 8 for bytes, then the number of dimensions
    try:
        with gzip.open(path) as file:
            start = file.read(header.size)
            if len(start) < header.size:
                raise FileFormatError(f"{path}: it ends within its header; get the file anew")
            found, count, *sizes = header.unpack(start)
            if found != magic or tuple(sizes) != shape or count > _MOST:
                raise FileFormatError(
                    f"{path}: the header is {found:#010x}, {count}, {sizes}, not {magic:#010x}, a "
                    f"number up to {_MOST:,}, {list(shape)}; give a file of Fashion-MNIST"
                )
            data = file.read(count * int(np.prod(shape, dtype=int)) + 1)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise FileFormatError(f"{path}: {error}; get the file anew") from error
    if len(data) != count * int(np.prod(shape, dtype=int)):
        raise FileFormatError(
            f"{path}: it does not have the {count} entries that its header says; get the file anew"
        )
    return np.frombuffer(data, np.uint8).reshape(count, *shape)


def _from_tfds(split: str) -> FashionMnist:
    try:
        source = tfds_source(FASHION_MNIST, split, classes=len(FASHION_CLASSES))
    except (InputError, MissingDependencyError) as error:
        raise InputError(f"Fashion-MNIST is not on this machine: {_HOW_TO_GET}") from error
    records = [source[index] for index in range(len(source))]
    images = np.stack([np.asarray(decode(record.data).convert("L")) for record in records])
    return FashionMnist(split, images, np.array([r.label for r in records], np.int32))
