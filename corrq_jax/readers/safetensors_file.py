"""The `.safetensors` format, by its own library."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from corrq_jax.atomic import atomic_write
from corrq_jax.errors import FileFormatError, InputError, require
from corrq_jax.readers.arrays import BFLOAT16, checked, reading, to_write

_READABLE = frozenset(
    "F64 F32 F16 BF16 I64 I32 I16 I8 U64 U32 U16 U8 BOOL".split()  # noqa: SIM905
)
_WRITABLE = frozenset(
    np.dtype(name)
    for name in "f8 f4 f2 i8 i4 i2 i1 u8 u4 u2 u1 ?".split()  # noqa: SIM905
) | {BFLOAT16}


def read_safetensors(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads every tensor of a `.safetensors` file by its name; BF16 as ml_dtypes.bfloat16.

    Raises:
        FileFormatError: the file is damaged, or holds a dtype that numpy has no array for.
        MissingDependencyError: safetensors is not installed.
    """
    safetensors = require("safetensors", "files")
    with (
        reading(path, "a .safetensors file", safetensors.SafetensorError),
        safetensors.safe_open(os.fspath(path), framework="numpy") as file,
    ):
        return {name: _read_tensor(path, file, name) for name in file.keys()}  # noqa: SIM118


def write_safetensors(
    path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray], *, overwrite: bool = False
) -> None:
    """Writes arrays to a `.safetensors` file.

    Raises:
        InputError: there are no arrays, or a name or dtype cannot be written.
        OSError: as `atomic_write`.
        MissingDependencyError: safetensors is not installed.
    """
    ready = _writable(arrays)
    safetensors = require("safetensors", "files")
    save_file = require("safetensors.numpy", "files").save_file
    with atomic_write(path, overwrite=overwrite) as temporary:
        try:
            save_file(ready, temporary)
        except safetensors.SafetensorError as error:
            # The library wraps the system's errors; all others are excluded by now.
            raise OSError(f"{os.fspath(path)}: cannot be written: {error}") from error


def _writable(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays as the library wants them: contiguous, for it stores others wrongly."""
    ready = to_write(arrays)
    for name, array in ready.items():
        if name == "__metadata__":
            raise InputError("array name '__metadata__' is reserved in .safetensors; rename it")
        if array.dtype.newbyteorder("=") not in _WRITABLE:
            allowed = ", ".join(sorted(str(dtype) for dtype in _WRITABLE))
            raise InputError(
                f"array {name!r} has dtype {array.dtype}, which .safetensors has no name for; "
                f"convert it to one of {allowed}"
            )
    return {n: a.astype(a.dtype.newbyteorder("="), copy=False) for n, a in ready.items()}


def _read_tensor(path: str | os.PathLike[str], file: Any, name: str) -> np.ndarray:
    dtype = file.get_slice(name).get_dtype()
    if dtype not in _READABLE:
        raise FileFormatError(
            f"{os.fspath(path)}: tensor {name!r} has dtype {dtype}, which cannot be read; "
            f"convert it to one of {', '.join(sorted(_READABLE))}"
        )
    return checked(path, name, file.get_tensor(name))
