"""One reader and one writer for all weight files; the file's content decides the format."""

import contextlib
import errno
import functools
import os
import pathlib
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from corrq_jax.errors import FileFormatError, InputError
from corrq_jax.lazy import LazyArray
from corrq_jax.readers.h5 import open_h5, open_keras
from corrq_jax.readers.model_folder import open_folder, weight_files
from corrq_jax.readers.npz import open_npz, write_npz
from corrq_jax.readers.orbax_folder import is_checkpoint, read_orbax
from corrq_jax.readers.safetensors_file import open_safetensors, write_safetensors
from corrq_jax.readers.torch_pickle import read_torch

_Opener = Callable[[pathlib.Path], contextlib.AbstractContextManager[dict[str, LazyArray]]]


def _open_safetensors(path: pathlib.Path) -> contextlib.nullcontext[dict[str, LazyArray]]:
    return contextlib.nullcontext(open_safetensors(path))


def _open_folder(path: pathlib.Path) -> contextlib.nullcontext[dict[str, LazyArray]]:
    return contextlib.nullcontext(open_folder(path))


def _open_whole(
    read: Callable[[pathlib.Path], dict[str, np.ndarray]], path: pathlib.Path
) -> contextlib.nullcontext[dict[str, LazyArray]]:
    """What is read at once: PyTorch's tensors are views of storages that they may share."""
    arrays = read(path).items()
    return contextlib.nullcontext(
        {n: LazyArray(a.shape, a.dtype, functools.partial(np.asarray, a)) for n, a in arrays}
    )


_open_torch = functools.partial(_open_whole, read_torch)
_open_orbax = functools.partial(_open_whole, read_orbax)

_BY_SUFFIX: dict[str, _Opener] = {
    ".npz": open_npz,
    ".safetensors": _open_safetensors,
    ".h5": open_h5,
    ".hdf5": open_h5,
    ".keras": open_keras,
    ".pt": _open_torch,
    ".pth": _open_torch,
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


@contextlib.contextmanager
def open_weights(path: str | os.PathLike[str]) -> Iterator[dict[str, LazyArray]]:
    """The arrays of a weight file, of which each is read when it is asked for.

    Only one array has to be in memory at a time; PyTorch's files, Orbax checkpoints and `.keras`
    archives that are compressed are read whole, though. The arrays can be read while the context is
    open.

    Args:
        path: the file, as for `read_weights`.

    Yields:
        The arrays by name; `numpy.asarray` reads one.

    Raises:
        FileNotFoundError: there is no such file.
        IsADirectoryError: `path` is a folder without weights.
        FileFormatError: as `read_weights`, damaged values when the array is read.
        MissingDependencyError: the format's library is not installed.
    """
    path = pathlib.Path(path)
    with _opener(path)(path) as arrays:
        if not arrays:
            raise FileFormatError(f"{path}: holds no arrays; give a file with a network's weights")
        yield arrays


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
    * a folder with a network of Hugging Face: its `model.safetensors`, or all the files that its
      `model.safetensors.index.json` lists.
    * an Orbax checkpoint, a folder: every array by its path, such as 'params/dense/kernel'.

    Args:
        path: the file or folder.

    Returns:
        The arrays by name, in the dtypes of the file and this machine's byte order; some may be
        read-only.

    Raises:
        FileNotFoundError: there is no such file.
        IsADirectoryError: `path` is a folder without such weights.
        InputError: nothing says which of a folder's safetensors files to take.
        FileFormatError: the file is empty, damaged, of an unknown format, or holds something
            that is not an array of numbers.
        MissingDependencyError: the format's library is not installed.

    >>> import tempfile
    >>> path = f"{tempfile.mkdtemp()}/net.npz"
    >>> np.savez(path, kernel=np.ones((2, 3), np.float32))
    >>> {name: array.shape for name, array in read_weights(path).items()}
    {'kernel': (2, 3)}
    """
    with open_weights(path) as arrays:
        return {name: array.load() for name, array in arrays.items()}


def write_weights(
    path: str | os.PathLike[str], arrays: Mapping[str, Any], *, overwrite: bool = False
) -> None:
    """Writes arrays to `.npz` or `.safetensors`, as the suffix says.

    The file appears whole or not at all: a full disk leaves neither a part of it nor harms the
    file that is replaced. npz has no name for bfloat16, so that such arrays are refused there.

    Args:
        path: the file; its folder must exist.
        arrays: the arrays by name, of any strides, numpy, JAX or lazy (`open_weights`), of which
            each is read in its turn.
        overwrite: whether an existing file may be replaced.

    Raises:
        InputError: the suffix is another, there are no arrays, or a name or dtype cannot be
            written in this format.
        FileExistsError: the file exists and `overwrite` is False.
        FileNotFoundError: the folder does not exist.
        OSError: the file cannot be written, for instance because the disk is full.
    """
    path = pathlib.Path(path)
    write = _WRITERS.get(path.suffix.lower())
    if write is None:
        raise InputError(
            f"{path}: cannot write suffix {path.suffix!r}; name the file {' or '.join(_WRITERS)}"
        )
    write(path, arrays, overwrite=overwrite)


def _opener(path: pathlib.Path) -> _Opener:
    """What opens a file of this content, or of this suffix where the content says nothing."""
    if path.is_dir() and weight_files(path):
        return _open_folder
    if is_checkpoint(path):
        return _open_orbax
    head = _head(path)
    opener = _opener_by_content(path, head) or _BY_SUFFIX.get(path.suffix.lower())
    for start, what in _FOREIGN.items():
        if head.lower().startswith(start):
            raise FileFormatError(f"{path}: {what}")
    if opener is None:
        raise FileFormatError(
            f"{path}: neither its first bytes nor its suffix {path.suffix!r} say what it is; "
            f"give one of {', '.join(_BY_SUFFIX)}"
        )
    return opener


def _opener_by_content(path: pathlib.Path, head: bytes) -> _Opener | None:
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _opener_of_archive(path)
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return open_h5
    # A header's length, then the header, a JSON object. Asked before pickles, whose mark the
    # length may begin with.
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size:
        return _open_safetensors
    if head.startswith(b"\x80"):  # A pickle's protocol mark: PyTorch before 1.6.
        return _open_torch
    return None


def _opener_of_archive(path: pathlib.Path) -> _Opener:
    """npz, .keras and PyTorch files are all zip archives; the members tell them apart."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError) as error:
        raise FileFormatError(
            f"{path}: a damaged or truncated zip archive ({error}); copy or download it again"
        ) from error
    if any(name.rpartition("/")[2] == "data.pkl" for name in names):
        return _open_torch
    return open_keras if "model.weights.h5" in names else open_npz


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
