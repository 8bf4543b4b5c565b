"""What every reader and writer checks of an array, of its name and of its file."""

import contextlib
import lzma
import os
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from corrq_jax.errors import FileFormatError, InputError

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)

# All that damaged files make zipfile, numpy and h5py raise.
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    KeyError,
    NotImplementedError,
    OSError,
    OverflowError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    tokenize.TokenError,
)


@contextlib.contextmanager
def reading(path: str | os.PathLike[str], kind: str, *more: type[Exception]) -> Iterator[None]:
    """Turns what a damaged file makes a library raise into an error that names the file.

    Args:
        path: the file being read.
        kind: what it should be, such as 'an .npz file'.
        *more: the library's own exceptions.

    Raises:
        FileFormatError: the block raised it, or anything that damage explains. A file that is
            missing or may not be read keeps its own error.
    """
    try:
        yield
    except (FileFormatError, FileNotFoundError, IsADirectoryError, PermissionError):
        raise
    except (*_DAMAGE, *more) as error:
        raise FileFormatError(
            f"{os.fspath(path)}: not {kind}, or a damaged one ({type(error).__name__}: {error}); "
            "copy or download it again"
        ) from error


def is_numeric(dtype: np.dtype) -> bool:
    """Whether `dtype` can hold weights: booleans, integers, floats, bfloat16."""
    return dtype.kind in "biuf" or dtype == BFLOAT16


def check_dtype(path: str | os.PathLike[str], name: str, dtype: np.dtype) -> None:
    """Checks that a dtype can hold weights.

    Raises:
        FileFormatError: it cannot.
    """
    if not is_numeric(dtype):
        raise FileFormatError(
            f"{os.fspath(path)}: array {name!r} has dtype {dtype}; only booleans, integers "
            "and floats can be weights: save the file again without it or in one of these dtypes"
        )


def checked(path: str | os.PathLike[str], name: str, array: np.ndarray) -> np.ndarray:
    """`array` in this machine's byte order (JAX takes no other), if it can hold weights.

    Raises:
        FileFormatError: the array's dtype cannot hold weights.
    """
    check_dtype(path, name, array.dtype)
    return in_memory_order(array)


def in_memory_order(array: np.ndarray) -> np.ndarray:
    """`array` in this machine's byte order."""
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def to_write(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The arrays, if both names and dtypes can be written; lazy ones are not read for that.

    Raises:
        InputError: there are no arrays, or a name or a dtype cannot be written.
    """
    if not arrays:
        raise InputError("no arrays to write; give at least one")
    for name in arrays:
        _check_name(name)
    ready = {n: a if hasattr(a, "dtype") else np.asarray(a) for n, a in arrays.items()}
    for name, array in ready.items():
        if not is_numeric(np.dtype(array.dtype)):
            raise InputError(
                f"array {name!r} has dtype {array.dtype}; only booleans, integers and floats "
                "can be written: pack or convert it first"
            )
    return ready


def _check_name(name: object) -> None:
    if not isinstance(name, str) or not name or "\0" in name or not name.isprintable():
        raise InputError(f"array name {name!r}: a name has to be a printable, non-empty string")
    if len(name.encode()) > 4096:
        raise InputError(f"array name {name[:40]!r}...: a name may take 4,096 bytes at most")
