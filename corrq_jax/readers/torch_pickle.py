"""PyTorch state dicts (`.pth`, `.pt`) without PyTorch, and without running what is in the file.

Two layouts exist. Files of torch >= 1.6 are zip archives: `NAME/data.pkl` is the pickled object
and `NAME/data/KEY` the raw storages. Older ones are a row of five pickles (magic number, protocol
version, byte order, the object, the storage keys) followed by each storage: its number of elements
as int64, then its bytes. In both, the object refers to storages by key, and a tensor is a storage,
an offset, a shape and strides.
"""

import io
import math
import os
import pathlib
import struct
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from corrq_jax.errors import FileFormatError
from corrq_jax.readers.restricted_unpickle import UnpickleError, unpickle
from corrq_jax.readers.torch_records import FUNCTIONS, STORAGE_DTYPES, Storage, StorageTable, Tensor

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_MAX_DEPTH = 32


def read_torch(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads the tensors of a PyTorch state dict, or of a checkpoint that holds state dicts.

    Nested dictionaries and lists give dotted names: `{"state_dict": {"fc.weight": t}}` is read
    as `{"state_dict.fc.weight": t}`. Numbers, text, bytes and None between the tensors (an epoch,
    a learning rate) are no weights: they are left out.

    Args:
        path: a file written by `torch.save`, in the zip layout or in the older one.

    Returns:
        One array for each tensor, in the file's order, with the tensor's shape and dtype
        (bfloat16 as `ml_dtypes.bfloat16`). All are C-contiguous and read-only; tensors that share
        a storage may share memory.

    Raises:
        FileFormatError: if the file is no PyTorch file, is damaged or cut short, or asks for any
            Python object other than those that rebuild plain tensors.
        OSError: if the file cannot be opened.
    """
    path = pathlib.Path(path)
    with path.open("rb") as file:
        head = file.read(4)
    try:
        tree, storages = _read_zip(path) if head == b"PK\x03\x04" else _read_legacy(path)
        if isinstance(tree, Tensor):
            raise UnpickleError("it holds one tensor without a name instead of a dictionary")
        tensors = _flatten(tree)
        if not tensors:
            raise UnpickleError("it holds no tensors")
        return _materialize(tensors, storages)
    except UnpickleError as error:
        raise FileFormatError(
            f"cannot read {path} as a PyTorch state dict: {error}. If the file is complete, write "
            "it again in PyTorch with torch.save(model.state_dict(), path)."
        ) from error


def _load(file: io.BytesIO, table: StorageTable) -> Any:
    return unpickle(file, FUNCTIONS, frozenset(STORAGE_DTYPES), table.load)


# What zipfile raises on damaged archives: beside its own error those of seeking, of decoding names
# and numbers, of members that are not there, encrypted, compressed in a way it does not know, or of
# a size that no memory has.
_OF_ARCHIVES = (
    *(zipfile.BadZipFile, struct.error, zlib.error),
    *(OSError, EOFError, ValueError, OverflowError, LookupError, RuntimeError, MemoryError),
)


def _read_zip(path: pathlib.Path) -> tuple[Any, dict[str, bytes]]:
    table = StorageTable(path.stat().st_size)
    try:
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
            pickles = [n for n in names if n.count("/") == 1 and n.endswith("/data.pkl")]
            if len(pickles) != 1:
                raise UnpickleError("the zip archive has no single NAME/data.pkl")
            root = pickles[0].removesuffix("data.pkl")
            if f"{root}byteorder" in names and _member(archive, f"{root}byteorder") != b"little":
                raise UnpickleError("it was written on a big-endian machine")
            tree = _load(io.BytesIO(_member(archive, pickles[0])), table)
            return tree, {
                key: _checked(storage, _member(archive, f"{root}data/{key}"))
                for key, storage in table.by_key.items()
            }
    except (UnpickleError, FileNotFoundError):
        raise
    except _OF_ARCHIVES as error:
        raise UnpickleError(f"its zip archive is damaged or cut short ({error})") from error


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    # torch.save never compresses; a compressed member could unpack to any size.
    if archive.getinfo(name).compress_type != zipfile.ZIP_STORED:
        raise UnpickleError(f"the member {name} is compressed, which torch.save never does")
    return archive.read(name)


def _read_legacy(path: pathlib.Path) -> tuple[Any, dict[str, bytes]]:
    data = path.read_bytes()
    file = io.BytesIO(data)
    table = StorageTable(len(data))
    _check_legacy_header(file, data)
    tree = _load(file, table)
    keys = _load(file, table)
    if type(keys) is not list or not set(table.by_key) <= {k for k in keys if type(k) is str}:
        raise UnpickleError("its list of storages does not have those that the tensors use")
    storages = {}
    for key in keys:
        # A storage that no tensor uses has no known element size, hence no known end.
        if type(key) is not str or key not in table.by_key or key in storages:
            raise UnpickleError("its list of storages has an unused or a repeated storage")
        storage = table.by_key[key]
        if int.from_bytes(file.read(8), "little") != storage.size:
            raise UnpickleError(f"it is cut short or damaged at the storage {key!r}")
        storages[key] = _checked(storage, file.read(storage.size * storage.dtype.itemsize))
    return tree, storages


def _check_legacy_header(file: io.BytesIO, data: bytes) -> None:
    if data[:1] != b"\x80":
        raise UnpickleError("it is neither a zip archive nor a pickle, so no PyTorch file")
    table = StorageTable(0)
    if _load(file, table) != _MAGIC:
        raise UnpickleError("it is a pickle, but not a PyTorch file (the magic number is missing)")
    if (version := _load(file, table)) != _PROTOCOL:
        raise UnpickleError(f"its protocol version is {version!r}; only {_PROTOCOL} is known")
    info = _load(file, table)
    if type(info) is not dict or info.get("little_endian") is not True:
        raise UnpickleError("it was not written on a little-endian machine")


def _checked(storage: Storage, data: bytes) -> bytes:
    if len(data) != storage.size * storage.dtype.itemsize:
        raise UnpickleError(f"it is cut short or damaged at the storage {storage.key!r}")
    return data


def _flatten(tree: Any) -> dict[str, Tensor]:
    """Every tensor by its dotted name; refuses what a walk would not end on."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    barren: set[int] = set()  # without tensors; optimizers share tuples of hyperparameters

    def walk(node: Any, path: tuple[str, ...]) -> None:
        if isinstance(node, Tensor):
            name = ".".join(path)
            if name in found:
                raise UnpickleError(f"two tensors have the name {name!r}")
            found[name] = node
        elif isinstance(node, dict | list | tuple) and id(node) not in barren:
            if id(node) in seen or len(path) > _MAX_DEPTH:
                raise UnpickleError("its dictionaries share parts or are nested too deeply")
            seen.add(id(node))
            before = len(found)
            for key, child in node.items() if isinstance(node, dict) else enumerate(node):
                walk(child, (*path, str(key)))
            if len(found) == before:
                barren.add(id(node))

    walk(tree, ())
    return found


def _materialize(
    tensors: Mapping[str, Tensor], storages: Mapping[str, bytes]
) -> dict[str, np.ndarray]:
    flat = {
        key: np.frombuffer(data, np.uint8) if data else np.zeros(0, np.uint8)
        for key, data in storages.items()
    }
    # Copies are made of strided views only; without a bound, many views of one storage in a small
    # file could ask for any amount of memory.
    budget = sum(map(len, storages.values()))
    arrays = {}
    for name, tensor in tensors.items():
        if not tensor.contiguous:
            budget -= math.prod(tensor.shape) * tensor.storage.dtype.itemsize
        if budget < 0:
            raise UnpickleError("its strided tensors overlap and are larger than their storages")
        arrays[name] = _array(tensor, flat[tensor.storage.key])
    return arrays


def _array(tensor: Tensor, data: np.ndarray) -> np.ndarray:
    dtype = tensor.storage.dtype
    if not math.prod(tensor.shape):
        array = np.zeros(tensor.shape, dtype)
    else:
        elements = data.view(dtype)[tensor.offset :]
        strides = tuple(s * dtype.itemsize for s in tensor.strides)
        array = np.ascontiguousarray(
            np.lib.stride_tricks.as_strided(elements, tensor.shape, strides, writeable=False)
        ).reshape(tensor.shape)
    array.flags.writeable = False
    return array
