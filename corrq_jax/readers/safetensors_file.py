"""The `.safetensors` format: a length, a JSON header, the values.

The format's own library maps a file into memory whole, where every page read stays resident, and
writes only what is in memory whole. Here one tensor at a time, or a part of it, is read, and one
at a time is written.
"""

import json
import os
from collections.abc import Mapping
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from corrq_jax.atomic import atomic_write
from corrq_jax.errors import FileFormatError, InputError
from corrq_jax.lazy import LazyArray
from corrq_jax.readers.arrays import BFLOAT16, checked, in_memory_order, reading, to_write

DTYPES = {
    "F64": np.dtype("<f8"), "F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": BFLOAT16,
    "I64": np.dtype("<i8"), "I32": np.dtype("<i4"), "I16": np.dtype("<i2"), "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"), "U32": np.dtype("<u4"), "U16": np.dtype("<u2"), "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}  # fmt: skip
_NAMES = {dtype.newbyteorder("="): name for name, dtype in DTYPES.items()}
_MOST_HEADER = 100_000_000  # bytes; the format's own limit
_MOST_RANK = 64  # numpy's


class Entry(NamedTuple):
    """What a header says of a tensor.

    Attributes:
        dtype: its name in the format, such as "F32".
        shape: its shape.
        start: where its values begin, in bytes from the beginning of the file.
        end: where they end.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


class Header(NamedTuple):
    """The header of a file.

    Attributes:
        entries: the tensors by name, in the order of their values in the file.
        metadata: `__metadata__`, texts by name.
        text: the header as it is in the file.
    """

    entries: dict[str, Entry]
    metadata: dict[str, str]
    text: bytes


def read_header(path: str | os.PathLike[str]) -> Header:
    """Reads and checks the header of a file: what it names fills the file without holes.

    Raises:
        ValueError: the header does not fit the format or the file.
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:  # noqa: PTH123
        whole = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(whole - 8, _MOST_HEADER):
            raise ValueError(f"a header of {length} bytes in a file of {whole}")
        text = file.read(length)
    # A text with an unpaired surrogate has no bytes in UTF-8, and could not be written again.
    found = json.loads(text.decode(), object_pairs_hook=_without_repetition)
    json.dumps(found, ensure_ascii=False).encode()
    if not isinstance(found, dict) or text[:1] != b"{":
        raise ValueError("the header is not an object")
    metadata = found.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError("__metadata__ is not texts by name")
    entries = {name: _entry(name, item, 8 + length) for name, item in found.items()}
    entries = dict(sorted(entries.items(), key=lambda pair: pair[1][2:]))
    at = 8 + length
    for name, entry in entries.items():
        if entry.start != at:
            raise ValueError(f"the values of {name!r} do not follow those before them")
        at = entry.end
    if at != whole:
        raise ValueError(f"values of {at - 8 - length} bytes in a file of {whole}")
    return Header(entries, metadata, text)


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name is there twice")
    return found


def _entry(name: str, item: Any, first: int) -> Entry:
    if not isinstance(item, dict) or item.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{name!r} has not a dtype, a shape and data_offsets")
    dtype, shape, offsets = item["dtype"], item["shape"], item["data_offsets"]
    whole = (
        isinstance(dtype, str)
        and isinstance(shape, list)
        and len(shape) <= _MOST_RANK
        and isinstance(offsets, list)
        and len(offsets) == 2
        and all(type(n) is int and 0 <= n < 2**60 for n in (*shape, *offsets))
        and offsets[0] <= offsets[1]
    )
    if not whole:
        raise ValueError(f"the dtype, shape or data_offsets of {name!r} are malformed")
    if dtype in DTYPES:
        size = DTYPES[dtype].itemsize
        for n in shape:
            size *= n
        if size != offsets[1] - offsets[0]:
            raise ValueError(f"the shape {shape} of {name!r} does not fit its values")
    return Entry(dtype, tuple(shape), first + offsets[0], first + offsets[1])


def read_values(path: str | os.PathLike[str], entry: Entry) -> np.ndarray:
    """Reads the values of a tensor of one of `DTYPES` into new memory.

    Raises:
        ValueError: the file has become shorter.
        OSError: the file cannot be read.
    """
    array = np.empty(entry.shape, DTYPES[entry.dtype])
    with open(path, "rb") as file:  # noqa: PTH123
        file.seek(entry.start)
        if file.readinto(array.reshape(-1).view(np.uint8).data) != entry.end - entry.start:
            raise ValueError("the file has become shorter")
    return in_memory_order(array)


def open_safetensors(path: str | os.PathLike[str]) -> dict[str, LazyArray]:
    """The tensors of a `.safetensors` file by name, in its order; BF16 as ml_dtypes.bfloat16.

    Raises:
        FileFormatError: the file is damaged, or holds a dtype that numpy has no array for.
    """
    with reading(path, "a .safetensors file"):
        entries = read_header(path).entries
    return {name: _lazy(path, name, entry) for name, entry in entries.items()}


def _lazy(path: str | os.PathLike[str], name: str, entry: Entry) -> LazyArray:
    if entry.dtype not in DTYPES:
        raise FileFormatError(
            f"{os.fspath(path)}: tensor {name!r} has dtype {entry.dtype}, which cannot be read; "
            f"convert it to one of {', '.join(sorted(DTYPES))}"
        )

    dtype = DTYPES[entry.dtype]

    def load(entry: Entry = entry) -> np.ndarray:
        with reading(path, "a .safetensors file"):
            return checked(path, name, read_values(path, entry))

    def part(first: int, size: int) -> np.ndarray:
        start = entry.start + first * dtype.itemsize
        return load(Entry(entry.dtype, (size,), start, start + size * dtype.itemsize))

    return LazyArray(entry.shape, dtype.newbyteorder("="), load, part)


def write_safetensors(
    path: str | os.PathLike[str],
    arrays: Mapping[str, Any],
    *,
    overwrite: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes arrays to a `.safetensors` file, one after the other; lazy ones are read in turn.

    Args:
        path: the file.
        arrays: by name; the file has them by element size, widest first, then in this order.
        overwrite: whether an existing file may be replaced.
        metadata: texts by name, for the header.

    Raises:
        InputError: there are no arrays, or a name or dtype cannot be written.
        OSError: as `atomic_write`.
    """
    ready = _writable(arrays)
    with atomic_write(path, overwrite=overwrite) as temporary, temporary.open("wb") as file:
        file.write(_header(ready, metadata))
        for array in ready.values():
            _write_values(file, array)


def _writable(arrays: Mapping[str, Any]) -> dict[str, Any]:
    ready = to_write(arrays)
    for name, array in ready.items():
        if name == "__metadata__":
            raise InputError("array name '__metadata__' is reserved in .safetensors; rename it")
        if array.dtype.newbyteorder("=") not in _NAMES:
            allowed = ", ".join(sorted(str(dtype) for dtype in _NAMES))
            raise InputError(
                f"array {name!r} has dtype {array.dtype}, which .safetensors has no name for; "
                f"convert it to one of {allowed}"
            )
    # Widest elements first keeps every tensor aligned to its element without padding.
    return dict(sorted(ready.items(), key=lambda pair: -pair[1].dtype.itemsize))


def _header(arrays: Mapping[str, Any], metadata: Mapping[str, str] | None) -> bytes:
    body: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    start = 0
    for name, array in arrays.items():
        end = start + array.size * array.dtype.itemsize
        body[name] = {
            "dtype": _NAMES[array.dtype.newbyteorder("=")],
            "shape": [int(n) for n in array.shape],
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(body, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _write_values(file: BinaryIO, array: Any) -> None:
    values = np.ascontiguousarray(array)
    values = values.astype(values.dtype.newbyteorder("<"), copy=False)
    file.write(values.reshape(-1).view(np.uint8).data)
