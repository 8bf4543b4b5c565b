"""One reader and one writer for all weight files; the file's content decides the format."""

import errno
import os
import pathlib
import zipfile
from collections.abc import Callable, Mapping

import numpy as np

from corrq_jax.errors import FileFormatError, InputError
from corrq_jax.readers.h5 import read_h5, read_keras
from corrq_jax.readers.npz import read_npz, write_npz
from corrq_jax.readers.safetensors_file import read_safetensors, write_safetensors
from corrq_jax.readers.torch_pickle import read_torch

_Reader = Callable[[pathlib.Path], dict[str, np.ndarray]]

_BY_SUFFIX: dict[str, _Reader] = {
    ".npz": read_npz,
    ".safetensors": read_safetensors,
    ".h5": read_h5,
    ".hdf5": read_h5,
    ".keras": read_keras,
    ".pt": read_torch,
    ".pth": read_torch,
}

_WRITERS = {".npz": write_npz, ".safetensors": write_safetensors}

# Files that are often mistaken for weights, by their first bytes.
_FOREIGN = {
    b"version https://git-lfs": "a Git LFS pointer, not the file itself: run `git lfs pull`",
    b"<!doctype html": "a web page: the download went wrong, download the file again",
    b"<html": "a web page: the download went wrong, download the file again",
    b"\x93numpy": "a single unnamed .npy array: save it under a name with numpy.savez",
    b"\x1f\x8b": "compressed with gzip: unpack it first",
}


def read_weights(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads every array of a weight file.

    The first bytes decide the format, the suffix only where they do not. No code stored in a
    file is ever run. Formats:

    * `.npz`: every member by its name (pickled objects are refused).
    * `.safetensors`: every tensor by its name; F16, BF16, F32, F64, integers, booleans.
    * `.h5`, `.weights.h5`: every dataset by its path, such as 'conv1/conv1/kernel:0' or
      'layers/dense/vars/0'. A whole Keras model saved as HDF5 keeps its weights under
      'model_weights/', which is left out of the names, so that they equal those of the
      weights-only file. Optimizer state ('optimizer_weights/' beside 'model_weights/',
      'optimizer/' in Keras 3) is skipped.
    * `.keras`: the archive's 'model.weights.h5', as above.
    * `.pt`, `.pth`: a PyTorch state dictionary.

    Args:
        path: the file.

    Returns:
        The arrays by name, in the dtypes of the file and this machine's byte order; some may be
        read-only.

    Raises:
        FileNotFoundError: there is no such file.
        IsADirectoryError: `path` is a folder.
        FileFormatError: the file is empty, damaged, of an unknown format, or holds something
            that is not an array of numbers.
        MissingDependencyError: the format's library is not installed.
    """
    path = pathlib.Path(path)
    arrays = _reader(path)(path)
    if not arrays:
        raise FileFormatError(f"{path}: holds no arrays; give a file with a network's weights")
    return arrays


def write_weights(
    path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray], *, overwrite: bool = False
) -> None:
    """Writes arrays to `.npz` or `.safetensors`, as the suffix says.

    The file appears whole or not at all: a full disk leaves neither a part of it nor harms the
    file that is replaced. npz has no name for bfloat16, so that such arrays are refused there.

    Args:
        path: the file; its folder must exist.
        arrays: the arrays by name, of any strides, numpy or JAX.
        overwrite: whether an existing file may be replaced.

    Raises:
        InputError: the suffix is another, there are no arrays, or a name or dtype cannot be
            written in this format.
        FileExistsError: the file exists and `overwrite` is False.
        FileNotFoundError: the folder does not exist.
        OSError: the file cannot be written, for instance because the disk is full.
        MissingDependencyError: safetensors is not installed.
    """
    path = pathlib.Path(path)
    write = _WRITERS.get(path.suffix.lower())
    if write is None:
        raise InputError(
            f"{path}: cannot write suffix {path.suffix!r}; name the file {' or '.join(_WRITERS)}"
        )
    write(path, arrays, overwrite=overwrite)


def _reader(path: pathlib.Path) -> _Reader:
    """The reader for the file's content, or for its suffix where the content says nothing."""
    head = _head(path)
    reader = _reader_by_content(path, head) or _BY_SUFFIX.get(path.suffix.lower())
    for start, what in _FOREIGN.items():
        if head.lower().startswith(start):
            raise FileFormatError(f"{path}: {what}")
    if reader is None:
        raise FileFormatError(
            f"{path}: neither its first bytes nor its suffix {path.suffix!r} say what it is; "
            f"give one of {', '.join(_BY_SUFFIX)}"
        )
    return reader


def _reader_by_content(path: pathlib.Path, head: bytes) -> _Reader | None:
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _reader_of_archive(path)
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return read_h5
    # A header's length, then the header, a JSON object. Asked before pickles, whose mark the
    # length may begin with.
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size:
        return read_safetensors
    if head.startswith(b"\x80"):  # A pickle's protocol mark: PyTorch before 1.6.
        return read_torch
    return None


def _reader_of_archive(path: pathlib.Path) -> _Reader:
    """npz, .keras and PyTorch files are all zip archives; the members tell them apart."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError) as error:
        raise FileFormatError(
            f"{path}: a damaged or truncated zip archive ({error}); copy or download it again"
        ) from error
    if any(name.rpartition("/")[2] == "data.pkl" for name in names):
        return read_torch
    return read_keras if "model.weights.h5" in names else read_npz


def _head(path: pathlib.Path) -> bytes:
    """The first bytes of a file that exists and is not empty."""
    if path.is_dir():
        raise IsADirectoryError(
            errno.EISDIR, "a folder where a weight file is needed; give a file in it", str(path)
        )
    try:
        with path.open("rb") as file:
            head = file.read(32)
    except FileNotFoundError:
        raise FileNotFoundError(
            errno.ENOENT, "no such weight file; check the path", str(path)
        ) from None
    if not head:
        raise FileFormatError(f"{path}: the file is empty; copy or download it again")
    return head
