"""numpy's `.npz`: a zip archive of `.npy` files."""

import collections
import contextlib
import functools
import math
import os
import pathlib
import zipfile
from collections.abc import Iterator, Mapping
from typing import IO, Any

import numpy as np

from corrq_jax import lazy
from corrq_jax.atomic import atomic_write
from corrq_jax.errors import FileFormatError, InputError
from corrq_jax.lazy import LazyArray
from corrq_jax.readers.arrays import BFLOAT16, check_dtype, in_memory_order, reading, to_write

_BLOCK = 1 << 20  # bytes read at a time
_MOST_COMPRESSION = 2000  # more than deflate can ever save; only a hostile file claims it


@contextlib.contextmanager
def open_npz(path: str | os.PathLike[str]) -> Iterator[dict[str, LazyArray]]:
    """The arrays of an `.npz` file by name, none of them read yet; no pickled code is run.

    Raises:
        FileFormatError: the file is damaged, is another kind of zip archive, or holds objects,
            text or bfloat16 (which npz stores without its name). Damaged values are noticed when
            an array is read.
    """
    with contextlib.ExitStack() as stack:
        with reading(path, "an .npz file"):
            # zipfile also finds an archive behind other bytes; numpy takes those for a pickle.
            file = stack.enter_context(pathlib.Path(path).open("rb"))
            if file.read(4) not in (b"PK\x03\x04", b"PK\x05\x06"):
                raise ValueError("it does not begin as a zip archive does")
            archive, bands = stack.enter_context(zipfile.ZipFile(file)), lazy.Bands()
            arrays = {
                _array_name(path, info): _lazy(path, archive, info, bands)
                for info in _members(path, archive)
            }
        yield arrays


def write_npz(
    path: str | os.PathLike[str], arrays: Mapping[str, Any], *, overwrite: bool = False
) -> None:
    """Writes arrays to an uncompressed `.npz` file; equal arrays give equal bytes.

    One after the other; lazy ones are read in turn.

    Raises:
        InputError: there are no arrays, or a name or dtype cannot be written; npz has no name
            for bfloat16.
        OSError: as `atomic_write`.
    """
    ready = to_write(arrays)
    for name, array in ready.items():
        if array.dtype == BFLOAT16:
            raise InputError(
                f"array {name!r} is bfloat16, which .npz has no name for; write .safetensors, "
                "or convert it to float32 first (which loses nothing)"
            )
    with (
        atomic_write(path, overwrite=overwrite) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive,
    ):
        # numpy.savez cannot name an array 'file', and stamps the time into the file.
        for name, array in ready.items():
            # np.require keeps scalars scalar, which np.ascontiguousarray makes vectors of.
            values = np.require(array, requirements="C")
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, values, allow_pickle=False)


def _members(path: str | os.PathLike[str], archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    infos = archive.infolist()
    counts = collections.Counter(info.filename for info in infos)
    if repeated := [name for name, count in counts.items() if count > 1]:
        raise FileFormatError(
            f"{os.fspath(path)}: array {repeated[0]!r} is there twice; save the file again"
        )
    return infos


def _array_name(path: str | os.PathLike[str], info: zipfile.ZipInfo) -> str:
    if not info.filename.endswith(".npy"):
        raise FileFormatError(
            f"{os.fspath(path)}: a zip archive, but its member {info.filename!r} is not a .npy "
            "array; give a file written by numpy.savez"
        )
    return info.filename.removesuffix(".npy")


def _lazy(
    path: str | os.PathLike[str],
    archive: zipfile.ZipFile,
    info: zipfile.ZipInfo,
    bands: lazy.Bands,
) -> LazyArray:
    name = _array_name(path, info)
    with archive.open(info) as member:
        shape, fortran_order, dtype = _header(member)
        held = info.file_size - member.tell()
    if dtype.hasobject:
        raise FileFormatError(
            f"{os.fspath(path)}: array {name!r} holds Python objects, which are pickled code and "
            "are not read; save it as an array of numbers"
        )
    if dtype == np.dtype("V2"):
        raise FileFormatError(
            f"{os.fspath(path)}: array {name!r} is of an unnamed 2-byte type, as bfloat16 becomes "
            "in .npz; save it as float32, or as .safetensors"
        )
    # Before memory is allocated for what the header claims.
    claimed = math.prod(shape) * dtype.itemsize
    if claimed != held:
        raise ValueError(f"array {name!r} claims {claimed} bytes and holds {held}")
    if claimed > _MOST_COMPRESSION * info.compress_size:
        raise ValueError(f"array {name!r} claims {claimed} bytes in {info.compress_size}")
    check_dtype(path, name, dtype)

    def load() -> np.ndarray:
        with reading(path, "an .npz file"):
            return _read_values(archive, info)

    native = dtype.newbyteorder("=")
    axes = tuple(n for n in shape if n != 1)
    if fortran_order and len(axes) > 1 and 0 not in axes:

        def band(index: tuple[slice]) -> np.ndarray:
            with reading(path, "an .npz file"):
                return _read_band(archive, info, axes, *index)

        lines = max(lazy.largest_band(math.prod(axes)) // math.prod(axes[1:]), 1)
        return LazyArray(shape, native, load, bands.part(axes, native, 0, lines, band))

    values = _InParts(archive, info, math.prod(shape), dtype)

    def part(first: int, size: int) -> np.ndarray:
        with reading(path, "an .npz file"):
            return values.read(first, size)

    return LazyArray(shape, native, load, part)


class _InParts:
    """The values of a member in parts, read on from where the last one ended.

    A member is a stream: where a part does not follow the last one, all before it is read anew. Its
    checksum is compared where it ends, which is once in each pass over all values.
    """

    def __init__(
        self, archive: zipfile.ZipFile, info: zipfile.ZipInfo, size: int, dtype: np.dtype
    ) -> None:
        self._open = functools.partial(archive.open, info)
        self._size, self._dtype = size, dtype
        self._member: IO[bytes] | None = None
        self._at = 0

    def read(self, first: int, size: int) -> np.ndarray:
        """So many values from an index on."""
        if self._member is None or first < self._at:
            self._member, self._at = self._open(), 0
            _header(self._member)
        while self._at < first:
            self._next(min(first - self._at, _BLOCK))
        return in_memory_order(self._next(size))

    def _next(self, size: int) -> np.ndarray:
        assert self._member is not None
        data = self._member.read(size * self._dtype.itemsize)
        self._at += size
        if self._at == self._size:
            self._member.read(1)  # at the end, so that the checksum is compared
        return np.frombuffer(data, self._dtype, size)


def _read_values(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    """One array; read to the member's end, for only then its checksum is compared."""
    with archive.open(info) as member:
        shape, fortran_order, dtype = _header(member)
        array = np.empty(shape, dtype, order="F" if fortran_order else "C")
        values = array.reshape(-1, order="A").view(np.uint8)
        for start in range(0, values.size, _BLOCK):
            block = member.read(min(_BLOCK, values.size - start))
            values[start : start + _BLOCK] = np.frombuffer(block, np.uint8)
        if member.read(1):
            raise ValueError(f"{info.filename!r} is longer than its array")
    return in_memory_order(array)


def _read_band(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, axes: tuple[int, ...], rows: slice
) -> np.ndarray:
    """Rows of an array that lies columns first; all is gone through, and its checksum compared."""
    with archive.open(info) as member:
        _, _, dtype = _header(member)
        columns, size = math.prod(axes[1:]), axes[0] * dtype.itemsize
        found = np.empty((rows.stop - rows.start, columns), dtype)
        step = max(_BLOCK // size, 1)
        for start in range(0, columns, step):
            here = np.arange(start, min(start + step, columns))
            values = np.frombuffer(member.read(here.size * size), dtype).reshape(-1, axes[0])
            # More axes than two lie in the opposite order, too.
            there = np.ravel_multi_index(np.unravel_index(here, axes[1:], order="F"), axes[1:])
            found[:, there] = values[:, rows].T
    return in_memory_order(found)


def _header(member: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, order and dtype in a .npy header; leaves `member` at the array's first byte."""
    version = np.lib.format.read_magic(member)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(member)
    # Versions 2 and 3 differ in the header's text encoding only.
    return np.lib.format.read_array_header_2_0(member)
