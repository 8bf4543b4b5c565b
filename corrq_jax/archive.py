"""A file of `corrq_jax.storage.save`, read leaf by leaf, and checked as it is read."""

import dataclasses
import json
import math
import os
import pathlib
import re
import zlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from corrq_jax.codings import along_trellis, is_entropy_coded
from corrq_jax.core import coding, trellis
from corrq_jax.errors import FileFormatError
from corrq_jax.layout import (
    CODES,
    CONTAINERS,
    DTYPES,
    FREQUENCIES,
    KEY,
    LEVELS,
    PARTS,
    SCALES,
    STREAM,
    VERSION,
    Stored,
    are_sizes,
    most_decoded,
)
from corrq_jax.lazy import LazyArray
from corrq_jax.readers.safetensors_file import read_header, read_values
from corrq_jax.rebuild import tree_of
from corrq_jax.streams import keep_stream, packed_codes, symbols_of_levels
from corrq_jax.tensor import QuantizedTensor, Rows, largest_code


class Archive:
    """A saved network, read leaf by leaf; a context manager.

    >>> import numpy as np, tempfile, pathlib
    >>> from corrq_jax import save
    >>> file = pathlib.Path(tempfile.mkdtemp()) / "net.safetensors"
    >>> _ = save(file, {"dense": {"bias": np.zeros(2)}})
    >>> with Archive(file) as archive:
    ...     archive.names(), archive["dense/bias"].shape
    (['dense/bias'], (2,))
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path: str = os.fspath(path)
        if os.path.isdir(self.path):  # noqa: PTH112
            raise IsADirectoryError(f"{self.path} is a folder; give a file")
        try:
            self._header = read_header(self.path)
        except FileNotFoundError:
            raise FileNotFoundError(f"{self.path}: there is no such file") from None
        except (OSError, ValueError, RecursionError) as error:
            raise FileFormatError(
                f"{self.path}: not a whole safetensors file ({error}); the file is damaged, or not "
                "one that corrq quantize or corrq_jax.save wrote: make or fetch it again"
            ) from None
        self._entries = self._header.entries
        self._place = {name: i for i, name in enumerate(self._entries)}
        self._record = self._read_record(self._header.metadata)
        self._check()

    def __enter__(self) -> "Archive":
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is kept open: each read opens the file."""

    def __iter__(self) -> Iterator[str]:
        """`names`, as a dictionary has its keys."""
        return iter(self.names())

    def names(self) -> list[str]:
        """Names of the leaves: keys from the root, escaped as in a JSON pointer, joined by "/"."""
        stored = [n for n in self._entries if not self._belongs_to(n)]
        return sorted([*stored, *self._record["tensors"]])

    def record(self, name: str) -> dict[str, Any]:
        """Bits, shape, dtype, and the noise ``1 - rho**2`` if recorded, of a quantized leaf."""
        return dict(self._record["tensors"][name])

    def is_quantized(self, name: str) -> bool:
        """Whether a leaf is quantized."""
        return name in self._record["tensors"]

    def coding(self, name: str) -> str:
        """How the codes of a quantized leaf are stored, as `corrq_jax.Config.coding` names it."""
        how = self._record["tensors"][name].get("coding", "packed")
        if name + STREAM not in self._entries:
            return how
        return "entropy" if how == "packed" else f"entropy-{how}"

    def leaf_nbytes(self, name: str) -> int:
        """Bytes of a leaf's data."""
        names = [name + part for part in PARTS] if self.is_quantized(name) else [name]
        stored = (self._entries[n] for n in names if n in self._entries)
        return sum(entry.end - entry.start for entry in stored)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a leaf."""
        if self.is_quantized(name):
            return tuple(self._record["tensors"][name]["shape"])
        return self._entries[name].shape

    def dtype(self, name: str) -> str:
        """Dtype of a leaf, in the names of safetensors ("F32")."""
        if self.is_quantized(name):
            return self._record["tensors"][name]["dtype"]
        return self._entries[name].dtype

    def __getitem__(self, name: str) -> np.ndarray | QuantizedTensor:
        """One leaf, its checksum verified."""
        return jax.tree.map(lambda array: array.load(), self.lazy(name))

    def lazy(self, name: str) -> LazyArray | QuantizedTensor:
        """One leaf whose arrays are read, and their checksums verified, when they are asked for."""
        if not self.is_quantized(name):
            return self._array(name)
        record = self._record["tensors"][name]
        shape, bits = tuple(record["shape"]), record["bits"]
        rows = Rows(*record["rows"]) if "rows" in record else None
        levels = self._array(name + LEVELS)
        how = self.coding(name)
        coded = is_entropy_coded(how)
        read = self._decoded if coded else self._packed
        codes = read(name, math.prod(shape), bits, levels, how)
        scales = self._array(name + SCALES) if rows is not None else None
        if not fit(shape, bits, how, codes, levels, scales, rows):
            raise self._broken(f"codes and levels of {name!r} do not fit its shape {shape}")
        dtype = DTYPES[record["dtype"]]
        arrays: dict[str, Any] = {"codes": codes, "levels": levels, "scales": scales}
        tensor = QuantizedTensor(
            shape=shape, dtype=dtype, bits=bits, rows=rows, coding=how, **arrays
        )
        if coded and not self._is_of_version_1(name):
            keep_stream(tensor, self._array(name + STREAM))
        return tensor

    def _packed(self, name: str, size: int, bits: int, levels: LazyArray, how: str) -> LazyArray:
        """Codes, each of which has a level."""
        stored = self._array(name + CODES)
        count = symbols_of_levels(levels.shape[-1] if levels.ndim else 0, how)
        if count >= 2**bits:
            return stored

        def load() -> np.ndarray:
            codes = stored.load()
            if (largest := largest_code(codes, size, bits)) >= count:
                raise self._broken(f"{name!r} has a code {largest} and levels for {count}")
            return codes

        return dataclasses.replace(stored, load=load)

    def _decoded(self, name: str, size: int, bits: int, levels: LazyArray, how: str) -> LazyArray:
        """Packed codes of an entropy-coded tensor."""
        stream = self._array(name + STREAM)
        table = self._array(name + FREQUENCIES) if self._is_of_version_1(name) else None
        if levels.ndim != 1 or symbols_of_levels(levels.size, how) > 2**bits:
            raise self._broken(f"the levels of {name!r} do not fit {bits} bits")

        def load() -> np.ndarray:
            try:
                frequencies = None if table is None else table.load()
                return packed_codes(stream.load(), size, bits, levels.size, how, frequencies)
            except ValueError as error:
                if isinstance(error, FileFormatError):
                    raise
                raise self._broken(f"{name!r} cannot be decoded: {error}") from None

        return LazyArray((coding.packed_size(size, bits),), np.dtype(np.uint8), load)

    def tree(self, *, lazy: bool = False) -> Any:
        """The whole tree.

        Args:
            lazy: whether its leaves are those of `lazy`, not numpy arrays and `QuantizedTensor` of
                numpy arrays.
        """
        read = self.lazy if lazy else self.__getitem__
        leaves = {name: read(name) for name in self.names()}
        try:
            return tree_of(leaves, self._record.get("containers", {}))
        except (ValueError, RecursionError) as error:
            raise self._broken(f"its record contradicts itself ({error})") from None

    def _array(self, name: str) -> LazyArray:
        if name not in self._entries:
            raise self._broken(f"the tensor {name!r} cannot be read (it is missing)")
        entry = self._entries[name]
        if entry.dtype not in DTYPES:
            raise self._broken(f"the tensor {name!r} cannot be read (its dtype is {entry.dtype})")
        at = 8 * (self._place[name] + 1)

        def load() -> np.ndarray:
            try:
                array = read_values(self.path, entry)
            except (OSError, ValueError) as error:
                raise self._broken(f"the tensor {name!r} cannot be read ({error})") from None
            if f"{zlib.crc32(_bytes_of(array)):08x}" != self._record["crc32"][at : at + 8]:
                raise self._broken(f"the checksum of {name!r} does not fit its data")
            return array

        return LazyArray(entry.shape, np.dtype(jnp.dtype(DTYPES[entry.dtype])), load)

    def _belongs_to(self, name: str) -> bool:
        base, colon, end = name.rpartition(":")
        return colon + end in PARTS and base in self._record["tensors"]

    def _read_record(self, metadata: dict[str, str]) -> dict[str, Any]:
        if KEY not in metadata:
            raise FileFormatError(
                f"{self.path}: a safetensors file, but not one that corrq_jax.save wrote; read it "
                "with corrq_jax.readers.read_weights"
            )
        try:
            record = json.loads(metadata[KEY])
            version = record["version"]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise self._broken("its corrq record is unreadable") from None
        if version not in range(1, VERSION + 1):
            raise FileFormatError(
                f"{self.path}: format version {version!r}, and this corrq_jax reads versions 1 to "
                f"{VERSION}; upgrade corrq_jax"
            )
        return record

    def _check(self) -> None:
        """Everything in the record is of the right kind, and names what the file has."""
        record = self._record
        tensors, containers = record.get("tensors"), record.get("containers", {})
        whole = (
            isinstance(tensors, dict)
            and isinstance(containers, dict)
            and isinstance(record.get("crc32"), str)
            and re.fullmatch("[0-9a-f]*", record["crc32"])
            and len(record["crc32"]) == 8 * (len(self._entries) + 1)
            and all(is_record(r) for r in tensors.values())
            and all(k in CONTAINERS for k in containers.values())
            and all(self._is_whole(n, r) for n, r in tensors.items())
        )
        if not whole:
            raise self._broken("its corrq record does not fit its tensors")
        header, digits = self._header.text, record["crc32"].encode()
        if f"{zlib.crc32(header.replace(digits, b'0' * len(digits))):08x}" != digits[:8].decode():
            raise self._broken("the checksum of the header does not fit it")
        decoded = {
            name: coding.packed_size(math.prod(r["shape"]), r["bits"])
            for name, r in (tensors or {}).items()
            if is_entropy_coded(self.coding(name))
        }
        total, whole = sum(decoded.values()), pathlib.Path(self.path).stat().st_size
        if total > most_decoded(whole):
            largest = max(decoded, key=lambda name: decoded[name])
            raise self._broken(
                f"its entropy-coded tensors, {largest!r} the largest, would take {total} bytes"
            )

    def _is_whole(self, name: str, record: dict[str, Any]) -> bool:
        """Whether the file has just the parts of a quantized leaf that its record asks for."""
        found = {part for part in PARTS if name + part in self._entries}
        codes = {STREAM} if STREAM in found else {CODES}
        if STREAM in found and self._record["version"] == 1:
            codes.add(FREQUENCIES)
        return found == codes | {LEVELS} | ({SCALES} if "rows" in record else set())

    def _is_of_version_1(self, name: str) -> bool:
        """Whether the stream of an entropy-coded leaf is as files of version 1 have them."""
        return name + FREQUENCIES in self._entries

    def _broken(self, what: str) -> FileFormatError:
        return FileFormatError(f"{self.path}: {what}; the file is damaged, make or fetch it again")


def fit(
    shape: tuple[int, ...],
    bits: int,
    how: str,
    codes: Any,
    levels: Any,
    scales: Any,
    rows: Rows | None,
) -> bool:
    """Whether arrays of a quantized leaf, by their shapes and dtypes, fit its shape and bits."""
    size = math.prod(shape)
    fits = (
        codes.dtype == np.uint8
        and levels.dtype in (np.float32, np.float64)
        and codes.ndim >= 1
        and levels.ndim >= 1
        and codes.shape[:-1] == levels.shape[:-1]
        and codes.shape[-1] == coding.packed_size(size, bits)
        and levels.shape[-1] >= 1
    )
    if along_trellis(how):
        fits = fits and trellis.may_have(levels.shape[-1], bits, is_entropy_coded(how))
    else:
        fits = fits and levels.shape[-1] <= 2**bits
    if rows is None or scales is None:
        return fits
    return (
        fits
        and scales.dtype == np.float16
        and scales.shape == (*codes.shape[:-1], *rows.shape)
        and rows.before * rows.channels * rows.after == size
    )


def _bytes_of(array: np.ndarray) -> memoryview:
    """Little-endian bytes, row-major."""
    return Stored("", array).data()


def is_record(record: Any) -> bool:
    """Whether what a header says of a quantized leaf is complete, each entry of the right kind."""
    return (
        isinstance(record, dict)
        and type(record.get("bits")) is int
        and 1 <= record["bits"] <= 8
        and record.get("dtype") in ("F16", "BF16", "F32", "F64")
        and record.get("coding", "trellis") == "trellis"
        and are_sizes(record.get("shape"))
        and _are_rows(record.get("rows", [1, 1, 1, 1]))
        and type(record.get("noise", 0)) in (int, float)
        and 0 <= record.get("noise", 0) <= 1
    )


def _are_rows(rows: Any) -> bool:
    return (
        isinstance(rows, list)
        and len(rows) == 4
        and all(type(n) is int for n in rows)
        and min(rows) > 0
    )
