"""How a tree lies in a file, known before a byte is written; documented in docs/format.md."""

import dataclasses
import functools
import json
import math
import zlib
from typing import Any

import jax
import numpy as np

from corrq_jax import paths
from corrq_jax.codings import along_trellis, is_entropy_coded
from corrq_jax.core.coding import packed_size
from corrq_jax.errors import InputError
from corrq_jax.lazy import LazyArray
from corrq_jax.report import Report
from corrq_jax.streams import stream_of
from corrq_jax.tensor import QuantizedTensor, Rows, is_quantized

VERSION = 2
KEY = "corrq"
CODES, LEVELS, SCALES = ":codes", ":levels", ":scales"
STREAM = ":stream"
FREQUENCIES = ":frequencies"  # only in files of version 1, beside the stream
PARTS = (CODES, FREQUENCIES, STREAM, LEVELS, SCALES)
"""What a quantized leaf can be stored as, by the end of the name."""
OF_CODES = (CODES, STREAM)
CONTAINERS = ("leaf", "none", "list", "tuple", "int", "dict")
"""What a node can be that is not a plain dictionary with text keys; "int" has int keys."""

MOST_AXES = 64
"""Rank of a tensor: numpy's limit."""


def are_sizes(value: Any) -> bool:
    """Whether what stands in a JSON text is a shape, or a place in an array."""
    return (
        isinstance(value, list)
        and len(value) <= MOST_AXES
        and all(type(n) is int and n >= 0 for n in value)
    )


def most_decoded(file_nbytes: int) -> int:
    """Most bytes of packed codes that the entropy-coded tensors of a file may decode to.

    A few bytes can stand for any number of equal codes; without a limit a small file could ask for
    all memory. Only constant tensors come near it.
    """
    return 2**26 + 1000 * file_nbytes


DTYPE_NAMES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16",
    "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8",
    "uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip
DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}


@functools.cache
def _stored_name(dtype: np.dtype) -> str:
    """Cached: numpy takes microseconds to name a dtype, and a plan asks for hundreds."""
    return DTYPE_NAMES[str(dtype)]


@dataclasses.dataclass(frozen=True)
class Stored:
    """One tensor of the file."""

    name: str
    array: Any

    @property
    def nbytes(self) -> int:
        """Bytes of its data."""
        return int(self.array.size) * self.array.dtype.itemsize

    def header(self, start: int) -> dict[str, Any]:
        """Its entry in the header, its data starting at byte ``start`` of all data."""
        return {
            "dtype": _stored_name(self.array.dtype),
            "shape": [int(n) for n in self.array.shape],
            "data_offsets": [start, start + self.nbytes],
        }

    def data(self) -> memoryview:
        """Little-endian bytes, row-major."""
        array = np.ascontiguousarray(self.array)
        array = array.astype(array.dtype.newbyteorder("<"), copy=False)
        return array.reshape(-1).view(np.uint8).data


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a file of a tree will hold, known before a byte is written.

    Attributes:
        leaves: the names of the tree's leaves, in its order.
        stored: the tensors by name, in file order.
        tensors: for each quantized leaf, what its arrays do not tell.
        containers: for each node that is not a plain dictionary with text keys, what it is.
    """

    leaves: tuple[str, ...]
    stored: dict[str, Stored]
    tensors: dict[str, dict[str, Any]]
    containers: dict[str, str]

    def header(self, checksums: list[int] | None = None) -> bytes:
        """The header, its length in front; with checksums of zero if none are given.

        The first checksum in the file is that of the header itself with all of them zero.
        """
        blank = self._header([0] * (len(self.stored) + 1))
        if checksums is None:
            return blank
        return self._header([zlib.crc32(blank[8:]), *checksums])

    def _header(self, checksums: list[int]) -> bytes:
        record: dict[str, Any] = {"version": VERSION, "tensors": self.tensors}
        if self.containers:
            record["containers"] = self.containers
        record["crc32"] = "".join(f"{value:08x}" for value in checksums)
        body: dict[str, Any] = {"__metadata__": {KEY: _compact(record)}}
        start = 0
        for stored in self.stored.values():
            body[stored.name] = stored.header(start)
            start += stored.nbytes
        text = _compact(body).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text

    @property
    def file_nbytes(self) -> int:
        """Size of the file."""
        return len(self.header()) + sum(stored.nbytes for stored in self.stored.values())

    def decoded_nbytes(self) -> int:
        """Bytes of packed codes that the entropy-coded tensors have in memory."""
        coded = (r for name, r in self.tensors.items() if name + STREAM in self.stored)
        return sum(-(-math.prod(r["shape"]) * r["bits"] // 8) for r in coded)

    def leaf_nbytes(self) -> list[int]:
        """Bytes of each leaf, in the tree's order: its data and what the header says of it."""
        sizes = []
        for leaf in self.leaves:
            names = [leaf + part for part in PARTS] if leaf in self.tensors else [leaf]
            parts = [self.stored[name] for name in names if name in self.stored]
            described = _described_nbytes(leaf, self.tensors.get(leaf), parts)
            sizes.append(described + sum(part.nbytes for part in parts))
        return sizes


def _described_nbytes(leaf: str, record: dict[str, Any] | None, parts: list[Stored]) -> int:
    """Bytes that the header spends on a leaf."""
    # Offsets are written for where the tensor lies; a checksum has 8 digits.
    total = sum(len(_compact({part.name: part.header(0)})) + 8 for part in parts)
    if record is not None:
        # The record is a JSON text inside of JSON: its quotes are escaped.
        total += len(_compact(_compact({leaf: record})))
    return total


@functools.lru_cache(1 << 12)  # a budget asks once for each width
def overhead_nbytes(
    path: str, shape: tuple[int, ...], dtype: str, rows: Rows | None, how: str
) -> int:
    """At most how many bytes a quantized leaf takes beside its codes or their stream, and levels.

    Args:
        path: its path.
        shape: its shape.
        dtype: name of its dtype.
        rows: which weights share a scale, if any.
        how: one of `corrq_jax.codings.CODINGS`.
    """

    def longest(name: str, *shape: int, dtype: Any = np.uint8) -> Stored:
        return Stored(name, np.broadcast_to(np.zeros((), dtype), shape))

    size = math.prod(shape)
    codes = {CODES: longest(path + CODES, size)}
    if is_entropy_coded(how):
        codes = {STREAM: longest(path + STREAM, size)}
    parts = {**codes, LEVELS: longest(path + LEVELS, 256, dtype=np.float64)}
    scales = 0
    if rows is not None:
        parts[SCALES] = longest(path + SCALES, *rows.shape, dtype=np.float16)
        scales = parts[SCALES].nbytes
    record: dict[str, Any] = {"bits": 8, "shape": list(shape), "dtype": DTYPE_NAMES[dtype]}
    record["noise"] = 1.23456e-05
    if along_trellis(how):
        record["coding"] = "trellis"
    if rows is not None:
        record["rows"] = list(dataclasses.astuple(rows))
    return _described_nbytes(path, record, list(parts.values())) + scales


def rest_nbytes(tree: Any, quantized: set[str]) -> int:
    """At most how many bytes of a tree's file are not those of the leaves to be quantized."""
    file = plan(tree, strict=False)
    entries, _ = paths.flatten(tree)
    own = zip(entries, file.leaf_nbytes(), strict=True)
    # Numbers of the header can become longer: two offsets a part, 12 digits at most.
    slack = 24 * (len(file.stored) + 4 * len(quantized)) + 8
    return file.file_nbytes - sum(n for (path, _), n in own if path in quantized) + slack


_compact = json.JSONEncoder(separators=(",", ":"), ensure_ascii=True).encode


def plan(
    tree: Any, report: Report | None = None, *, strict: bool = True, in_blocks: bool = False
) -> Plan:
    """Lay out a tree.

    Args:
        tree: any pytree of arrays and `QuantizedTensor`.
        report: if given, the correlation of each tensor is recorded.
        strict: whether what cannot be stored is an error; it is left out otherwise.
        in_blocks: whether codes are stored as they lie in memory, for a folder: packed, and those
            of a tensor that is cut into blocks in these.

    Raises:
        InputError: a leaf is not an array or of a dtype that safetensors cannot hold, or a key is
            neither text nor a whole number; the message names the path.
    """
    leaves: list[str] = []
    stored: list[Stored] = []
    tensors: dict[str, dict[str, Any]] = {}
    containers: dict[str, str] = {}
    noise = {row.path: row.noise for row in report} if report is not None else {}

    def visit(node: Any, keys: tuple[str, ...]) -> None:
        name = "/".join(map(paths.escape, keys))
        children = paths.children(node)
        if children is None:
            leaves.append(name)
            if strict and not in_blocks:
                _check_here("/".join(keys), node)
            if not keys:
                containers[""] = "leaf"
            if is_quantized(node):
                tensors[name] = record = _record(node, noise.get("/".join(keys)))
                parts = parts_of(dataclasses.replace(node, coding="packed") if in_blocks else node)
                if in_blocks and node.blocks is not None:
                    record["blocks"], parts[CODES] = list(node.blocks), node.codes
                stored.extend(Stored(name + end, array) for end, array in parts.items())
            elif strict or _is_storable(node):
                stored.append(Stored(name, _storable("/".join(keys), node)))
            return
        kind = _kind(node, children, "/".join(keys), strict)
        if kind is not None:
            containers[name] = kind
        for key, child in children:
            visit(child, (*keys, paths.key_name(key)))  # noqa: F821 (deleted below)

    visit(tree, ())
    del visit  # a function that names itself is a cycle: the arrays would be kept for a while
    # Widest elements first keeps every tensor aligned to its element without padding.
    stored.sort(key=lambda s: -s.array.dtype.itemsize)
    by_name = {s.name: s for s in stored}
    if strict and "__metadata__" in by_name:
        raise InputError("safetensors keeps the name '__metadata__' for itself; rename that leaf")
    # Also those parts that a tensor does not have: a reader could not tell them from a leaf.
    kept = {name + part for name in tensors for part in PARTS}
    if strict and (wrong := sorted(kept.intersection(leaves))):
        raise InputError(
            f"{wrong[0]!r} is a name of what a quantized leaf is stored as; rename that leaf"
        )
    return Plan(tuple(leaves), by_name, tensors, containers)


def _one_stream(tensor: QuantizedTensor) -> Any:
    """Packed codes; of a tensor that is cut into blocks they are put together when written."""
    if tensor.blocks is None:
        return tensor.codes
    shape = (*tensor.levels.shape[:-1], packed_size(tensor.size, tensor.bits))
    return LazyArray(shape, np.dtype(np.uint8), lambda: np.asarray(tensor.whole().codes))


def parts_of(tensor: QuantizedTensor) -> dict[str, Any]:
    """The arrays that a file holds of a tensor, by the end of their names."""
    parts = {LEVELS: tensor.levels}
    if tensor.scales is not None:
        parts[SCALES] = tensor.scales
    # Streams of a stack differ in length.
    if not is_entropy_coded(tensor.coding) or tensor.codes.ndim > 1:
        return {CODES: _one_stream(tensor), **parts}
    return {STREAM: stream_of(tensor), **parts}


def _record(tensor: QuantizedTensor, noise: float | None) -> dict[str, Any]:
    record: dict[str, Any] = {
        "bits": tensor.bits,
        "shape": list(tensor.shape),
        "dtype": DTYPE_NAMES[tensor.dtype],
    }
    if tensor.is_along_trellis:
        record["coding"] = "trellis"
    if tensor.rows is not None:
        record["rows"] = list(dataclasses.astuple(tensor.rows))
    return record if noise is None else {**record, "noise": float(f"{noise:.6g}")}


def _check_here(path: str, leaf: Any) -> None:
    for array in jax.tree.leaves(leaf):
        if isinstance(array, jax.Array) and not (
            array.is_fully_addressable or array.is_fully_replicated
        ):
            raise InputError(
                f"{path}: it lies on devices of several processes; save it with "
                "corrq_jax.save_sharded"
            )


def _as_array(leaf: Any) -> Any:
    if isinstance(leaf, jax.Array | LazyArray):
        return leaf
    array = np.asarray(leaf)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _is_storable(leaf: Any) -> bool:
    return str(_as_array(leaf).dtype) in DTYPE_NAMES


def _storable(path: str, leaf: Any) -> Any:
    array = _as_array(leaf)
    if str(array.dtype) in DTYPE_NAMES:
        return array
    raise InputError(
        f"{path or 'the tree'}: a {type(leaf).__name__} of dtype {array.dtype} cannot be stored; "
        f"safetensors holds {', '.join(DTYPE_NAMES)}"
    )


def _kind(node: Any, children: list[tuple[Any, Any]], path: str, strict: bool) -> str | None:
    """What a node has to be rebuilt as; None for a dictionary with text keys."""
    if node is None:
        return "none"
    if isinstance(node, list):
        return "list"
    if isinstance(node, tuple) and not hasattr(node, "_fields"):
        return "tuple"
    keys = [getattr(key, "key", paths.key_name(key)) for key, _ in children]
    if isinstance(node, dict) and not all(isinstance(key, str) for key in keys):
        if all(isinstance(key, int) and not isinstance(key, bool) for key in keys):
            return "int"
        if not strict:
            return None
        raise InputError(
            f"{path or 'the tree'}: the keys {keys[:3]} are neither all text nor all whole "
            "numbers; only such dictionaries can be stored"
        )
    return None if children else "dict"
