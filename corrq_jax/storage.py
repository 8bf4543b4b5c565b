"""One safetensors file for a whole network: packed codes, levels, and the leaves left in float.

The layout is documented in docs/format.md. Any safetensors reader can open the files; this one also
checks the version, the sizes and a checksum of every tensor, and gives the tree back.
"""

import dataclasses
import json
import os
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from corrq_jax import paths
from corrq_jax.atomic import atomic_write
from corrq_jax.core import coding
from corrq_jax.errors import FileFormatError, InputError, require
from corrq_jax.report import Report
from corrq_jax.tensor import QuantizedTensor, is_quantized

VERSION = 1
KEY = "corrq"
CODES, LEVELS = ":codes", ":levels"

_NAMES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
    "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8",
    "uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}


@dataclasses.dataclass(frozen=True)
class _Stored:
    """One tensor of the file."""

    name: str
    array: Any

    @property
    def nbytes(self) -> int:
        return int(self.array.size) * self.array.dtype.itemsize

    def header(self, start: int) -> dict[str, Any]:
        return {
            "dtype": _NAMES[str(self.array.dtype)],
            "shape": [int(n) for n in self.array.shape],
            "data_offsets": [start, start + self.nbytes],
        }

    def data(self) -> bytes | memoryview:
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
    stored: dict[str, _Stored]
    tensors: dict[str, dict[str, Any]]
    containers: dict[str, str]

    def header(self, checksums: list[int] | None = None) -> bytes:
        """The header, its length in front; with checksums of zero if none are given."""
        checksums = [0] * len(self.stored) if checksums is None else checksums
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

    def leaf_nbytes(self) -> list[int]:
        """Bytes of each leaf, in the tree's order: its data and what the header says of it."""
        sizes = []
        for leaf in self.leaves:
            total = 0
            names = (leaf + CODES, leaf + LEVELS) if leaf in self.tensors else (leaf,)
            for stored in (self.stored[name] for name in names if name in self.stored):
                # Offsets are written for where the tensor lies; a checksum has 8 digits.
                total += stored.nbytes + len(_compact({stored.name: stored.header(0)})) + 8
            if leaf in self.tensors:
                # The record is a JSON text inside of JSON: its quotes are escaped.
                total += len(_compact(_compact({leaf: self.tensors[leaf]})))
            sizes.append(total)
        return sizes


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=True)


def plan(tree: Any, report: Report | None = None) -> Plan:
    """Lay out a tree.

    Raises:
        InputError: a leaf is not an array or of a dtype that safetensors cannot hold, or a key is
            neither text nor a whole number; the message names the path.
    """
    leaves: list[str] = []
    stored: list[_Stored] = []
    tensors: dict[str, dict[str, Any]] = {}
    containers: dict[str, str] = {}
    noise = {row.path: row.noise for row in report} if report is not None else {}

    def visit(node: Any, keys: tuple[str, ...]) -> None:
        name = "/".join(map(paths.escape, keys))
        children = paths.children(node)
        if children is None:
            leaves.append(name)
            if not keys:
                containers[""] = "leaf"
            if is_quantized(node):
                tensors[name] = _record(node, noise.get("/".join(keys)))
                stored.append(_Stored(name + CODES, node.codes))
                stored.append(_Stored(name + LEVELS, node.levels))
            else:
                stored.append(_Stored(name, _storable("/".join(keys), node)))
            return
        kind = _kind(node, children, "/".join(keys))
        if kind is not None:
            containers[name] = kind
        for key, child in children:
            visit(child, (*keys, paths.key_name(key)))

    visit(tree, ())
    # Widest elements first keeps every tensor aligned to its element without padding.
    stored.sort(key=lambda s: -s.array.dtype.itemsize)
    by_name = {s.name: s for s in stored}
    if len(by_name) < len(stored):
        names = [s.name for s in stored]
        twice = sorted({name for name in names if names.count(name) > 1})
        raise InputError(f"two leaves would be stored under the name {twice[0]!r}; rename one")
    return Plan(tuple(leaves), by_name, tensors, containers)


def _record(tensor: QuantizedTensor, noise: float | None) -> dict[str, Any]:
    record: dict[str, Any] = {
        "bits": tensor.bits,
        "shape": list(tensor.shape),
        "dtype": _NAMES[tensor.dtype],
    }
    return record if noise is None else {**record, "noise": float(f"{noise:.6g}")}


def _storable(path: str, leaf: Any) -> Any:
    array = leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
    if str(array.dtype.newbyteorder("=") if isinstance(array, np.ndarray) else array.dtype) in _NAMES:
        return array
    raise InputError(
        f"{path or 'the tree'}: a {type(leaf).__name__} of dtype {array.dtype} cannot be stored; "
        f"safetensors holds {', '.join(_NAMES)}"
    )


def _kind(node: Any, children: list[tuple[Any, Any]], path: str) -> str | None:
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
        raise InputError(
            f"{path or 'the tree'}: the keys {keys[:3]} are neither all text nor all whole "
            "numbers; only such dictionaries can be stored"
        )
    return None if children else "dict"


def save(
    path: str | os.PathLike[str],
    tree: Any,
    *,
    report: Report | None = None,
    overwrite: bool = True,
) -> int:
    """Write a tree, quantized or not, as one safetensors file.

    The file appears whole or not at all. Dictionaries, lists, tuples and None come back from
    `load` as they are; other nodes (dataclasses, named tuples) as dictionaries.

    Args:
        path: the file to write.
        tree: any pytree of arrays and `QuantizedTensor`.
        report: if given, the correlation of each tensor is recorded beside it.
        overwrite: whether an existing file may be replaced.

    Returns:
        The size of the file in bytes.

    Raises:
        InputError: a leaf or key cannot be stored; the message names the path.
        FileExistsError: the file exists and ``overwrite`` is False.
        OSError: it cannot be written.
    """
    layout = plan(tree, report)
    with atomic_write(path, overwrite=overwrite) as temporary, temporary.open("wb") as file:
        file.write(layout.header())
        checksums = []
        for stored in layout.stored.values():
            data = stored.data()
            checksums.append(zlib.crc32(data))
            file.write(data)
        size = file.tell()
        file.seek(0)
        file.write(layout.header(checksums))
    return size


class Archive:
    """A saved network, read leaf by leaf; a context manager.

    >>> import numpy as np, tempfile, pathlib
    >>> file = pathlib.Path(tempfile.mkdtemp()) / "net.safetensors"
    >>> _ = save(file, {"dense": {"bias": np.zeros(2)}})
    >>> with Archive(file) as archive:
    ...     archive.names(), archive["dense/bias"].shape
    (['dense/bias'], (2,))
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        safetensors = require("safetensors", "files")
        try:
            self._file = safetensors.safe_open(self.path, framework="numpy")
        except FileNotFoundError:
            raise FileNotFoundError(f"{self.path}: there is no such file") from None
        except IsADirectoryError:
            raise IsADirectoryError(f"{self.path} is a folder; give a file") from None
        except (safetensors.SafetensorError, OSError, ValueError) as error:
            raise self._broken(f"not a whole safetensors file ({error})") from None
        self._record = self._read_record(self._file.metadata() or {})
        self._order = list(self._file.offset_keys())
        self._check()

    def __enter__(self) -> "Archive":
        return self

    def __exit__(self, *_: object) -> None:
        del self._file

    def names(self) -> list[str]:
        """Names of the leaves: keys from the root, escaped as in a JSON pointer, joined by "/"."""
        stored = [n for n in self._order if not self._belongs_to(n)]
        return sorted([*stored, *self._record["tensors"]])

    def record(self, name: str) -> dict[str, Any]:
        """Bits, shape, dtype, and the noise ``1 - rho**2`` if recorded, of a quantized leaf."""
        return dict(self._record["tensors"][name])

    def is_quantized(self, name: str) -> bool:
        """Whether a leaf is quantized."""
        return name in self._record["tensors"]

    def leaf_nbytes(self, name: str) -> int:
        """Bytes of a leaf's data."""
        names = [name + CODES, name + LEVELS] if self.is_quantized(name) else [name]
        total = 0
        for stored in names:
            part = self._file.get_slice(stored)
            itemsize = jnp.dtype(_DTYPES[part.get_dtype()]).itemsize
            total += int(np.prod(part.get_shape(), dtype=np.int64)) * itemsize
        return total

    def __getitem__(self, name: str) -> np.ndarray | QuantizedTensor:
        """One leaf, its checksum verified."""
        if not self.is_quantized(name):
            return self._array(name)
        record = self._record["tensors"][name]
        codes, levels = self._array(name + CODES), self._array(name + LEVELS)
        shape, bits = tuple(record["shape"]), record["bits"]
        size = int(np.prod(shape, dtype=np.int64))
        fits = (
            codes.dtype == np.uint8
            and levels.dtype in (np.float32, np.float64)
            and codes.ndim >= 1
            and codes.shape[:-1] == levels.shape[:-1]
            and codes.shape[-1] == coding.packed_size(size, bits)
            and 1 <= levels.shape[-1] <= 2**bits
        )
        if not fits:
            raise self._broken(f"codes and levels of {name!r} do not fit its shape {shape}")
        return QuantizedTensor(codes, levels, shape, _DTYPES[record["dtype"]], bits)

    def tree(self) -> Any:
        """The whole tree; leaves are numpy arrays and `QuantizedTensor` of numpy arrays."""
        containers = self._record.get("containers", {})
        if containers.get("") == "leaf":
            return self[""]
        root: dict[str, Any] = {}
        for name in [*containers, *self.names()]:
            *parents, last = name.split("/")
            node = root
            for part in parents:
                node = node.setdefault(part, {})
            if name in containers:
                if name:
                    node.setdefault(last, {})
            else:
                node[last] = self[name]
        return _rebuild(root, "", containers)

    def _array(self, name: str) -> np.ndarray:
        try:
            array = self._file.get_tensor(name)
        except Exception as error:
            raise self._broken(f"the tensor {name!r} cannot be read ({error})") from None
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        at = self._order.index(name)
        if f"{zlib.crc32(data):08x}" != self._record["crc32"][8 * at : 8 * at + 8]:
            raise self._broken(f"the checksum of {name!r} does not fit its data")
        return array

    def _belongs_to(self, name: str) -> bool:
        base = name.removesuffix(CODES).removesuffix(LEVELS)
        return base != name and base in self._record["tensors"]

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
        if version != VERSION:
            raise FileFormatError(
                f"{self.path}: format version {version!r}, and this corrq_jax reads version "
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
            and len(record["crc32"]) == 8 * len(self._order)
            and all(_is_record(r) for r in tensors.values())
            and all(k in _KINDS for k in containers.values())
            and all(n + end in self._order for n in tensors for end in (CODES, LEVELS))
        )
        if not whole:
            raise self._broken("its corrq record does not fit its tensors")

    def _broken(self, what: str) -> FileFormatError:
        return FileFormatError(f"{self.path}: {what}; the file is damaged, make or fetch it again")


_KINDS = ("leaf", "none", "list", "tuple", "int", "dict")


def _is_record(record: Any) -> bool:
    return (
        isinstance(record, dict)
        and isinstance(record.get("bits"), int)
        and 1 <= record["bits"] <= 8
        and record.get("dtype") in ("F16", "BF16", "F32", "F64")
        and isinstance(record.get("shape"), list)
        and all(isinstance(n, int) and n >= 0 for n in record["shape"])
    )


def _rebuild(node: Any, name: str, containers: dict[str, str]) -> Any:
    if not isinstance(node, dict):
        return node
    kind = containers.get(name)
    if kind == "none":
        return None
    prefix = f"{name}/" if name else ""
    items = {key: _rebuild(child, prefix + key, containers) for key, child in node.items()}
    if kind in ("list", "tuple"):
        ordered = [items[key] for key in sorted(items, key=int)]
        return ordered if kind == "list" else tuple(ordered)
    if kind == "int":
        return {int(key): child for key, child in items.items()}
    return {paths.unescape(key): child for key, child in items.items()}


def load(path: str | os.PathLike[str], *, like: Any = None) -> Any:
    """Read a tree that `save` wrote.

    Args:
        path: the file.
        like: a tree of the same paths whose structure the result takes, for instance one with
            dataclasses; only its structure is used.

    Returns:
        The tree, its leaves numpy arrays and `QuantizedTensor`, ready for jax.

    Raises:
        FileFormatError: the file is truncated, damaged, of a newer version or not one of `save`'s.
        FileNotFoundError: there is no such file.
        InputError: the paths of ``like`` and of the file differ.
    """
    with Archive(path) as archive:
        tree = archive.tree()
    if like is None:
        return tree
    entries, treedef = paths.flatten(like)
    found = dict(paths.flatten(tree)[0])
    missing = [p for p, _ in entries if p not in found]
    extra = sorted(set(found) - {p for p, _ in entries})
    if missing or extra:
        raise InputError(
            f"{path}: its paths are not those of like: {missing[:5]} are missing in the file, "
            f"{extra[:5]} are only there"
        )
    return jax.tree_util.tree_unflatten(treedef, [found[p] for p, _ in entries])
