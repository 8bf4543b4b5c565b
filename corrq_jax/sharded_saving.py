"""Saving a tree on a mesh of devices as a folder: a file for each process, and an index.

Each process writes what lies on its devices, once for each part that lies on several. The index
names files and parts, with checksums; it is written last, so that a folder with an index is whole.
"""

import contextlib
import os
import pathlib
import secrets
import zlib
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from corrq_jax import layout
from corrq_jax.atomic import atomic_write
from corrq_jax.errors import FileFormatError
from corrq_jax.layout import Plan, Stored
from corrq_jax.readers.safetensors_file import read_header
from corrq_jax.report import Report
from corrq_jax.sharded_index import INDEX, index_text, part_name, read_index
from corrq_jax.storage import write


class _Part(NamedTuple):
    """A part of an array that one process writes."""

    process: int
    start: tuple[int, ...]
    shape: tuple[int, ...]
    data: Any  # None in all other processes


def save_sharded(
    folder: str | os.PathLike[str],
    tree: Any,
    *,
    report: Report | None = None,
    overwrite: bool = True,
) -> int:
    """Write a tree whose arrays lie on a mesh of devices: no array is put together.

    All processes call it with the same arguments and a folder that all of them see. What was saved
    in the folder before is there until the new index is, and then removed.

    Args:
        folder: is made if it does not exist.
        tree: any pytree of arrays and `QuantizedTensor`, as `corrq_jax.quantize` gives it. What is
            not on a mesh is written by the first process.
        report: if given, the correlation of each tensor is recorded.
        overwrite: whether what was saved in the folder before may be replaced.

    Returns:
        The bytes of all files.

    Raises:
        InputError: a leaf or key cannot be stored; the message names the path.
        FileExistsError: the folder holds a saved tree and ``overwrite`` is False.
        OSError: a process cannot write.

    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> _ = save_sharded(folder, {"bias": np.zeros(2, np.float32)})
    >>> sorted(file.suffix for file in pathlib.Path(folder).iterdir())
    ['.json', '.safetensors']
    """
    root = pathlib.Path(folder)
    root.mkdir(parents=True, exist_ok=True)
    if not overwrite and (root / INDEX).exists():
        raise FileExistsError(f"{root}: a tree is saved here; choose another folder")
    plan = layout.plan(tree, report, in_blocks=True)
    parts = {name: _parts(stored.array) for name, stored in plan.stored.items()}
    token = int(_from_first(np.uint32(secrets.randbits(32))))
    names = [
        f"{token:08x}-{i}-of-{jax.process_count()}.safetensors" for i in range(jax.process_count())
    ]
    files = _written(root, names, _own(parts))
    if jax.process_index() == 0:
        before = _files_of(root)
        with atomic_write(root / INDEX, overwrite=True) as temporary:
            temporary.write_text(index_text(_content(plan, parts, files)), encoding="utf-8")
        for name in before - set(names):
            (root / name).unlink(missing_ok=True)
    _from_first(np.uint32(0))  # nobody goes on before the index is there
    return sum(file["nbytes"] for file in files) + (root / INDEX).stat().st_size


def _from_first(value: Any) -> Any:
    """A value of the first process, in all of them."""
    return value if jax.process_count() == 1 else multihost_utils.broadcast_one_to_all(value)


def _parts(array: Any) -> list[_Part]:
    """An array in the parts that it lies in, each of them once."""
    if not isinstance(array, jax.Array) or len(array.sharding.device_set) == 1:
        shape = tuple(int(n) for n in array.shape)
        return [_Part(0, (0,) * len(shape), shape, array)]
    found = []
    for shard in array.global_shards:
        if shard.replica_id == 0:
            spans = [s.indices(n) for s, n in zip(shard.index, array.shape, strict=True)]
            start, shape = tuple(s[0] for s in spans), tuple(s[1] - s[0] for s in spans)
            found.append(_Part(shard.device.process_index, start, shape, shard.data))
    return sorted(found, key=lambda part: part.start)


def _own(parts: dict[str, list[_Part]]) -> Plan:
    """The file of this process."""
    here = jax.process_index()
    stored = [
        Stored(part_name(name, part.start), part.data)
        for name, some in parts.items()
        for part in some
        if part.process == here
    ]
    return Plan(tuple(s.name for s in stored), {s.name: s for s in stored}, {}, {})


def _written(root: pathlib.Path, names: list[str], own: Plan) -> list[dict[str, Any]]:
    """Write the file of this process; what the index says of those of all of them."""
    path = root / names[jax.process_index()]
    error: OSError | None = None
    size = crc = 0
    try:
        size = write(path, own, overwrite=True)
        crc = zlib.crc32(read_header(path).text)
    except OSError as e:
        error = e
    sent = np.array([error is not None, size >> 32, size % 2**32, crc], np.uint32)
    if jax.process_count() > 1:
        received = np.asarray(multihost_utils.process_allgather(sent))
    else:
        received = sent[None]
    if received[:, 0].any():
        path.unlink(missing_ok=True)
        raise error or OSError(f"{root}: process {received[:, 0].argmax()} cannot write its file")
    return [
        {"name": name, "nbytes": int(high) << 32 | int(low), "crc32": f"{int(crc):08x}"}
        for name, (_, high, low, crc) in zip(names, received, strict=True)
    ]


def _content(plan: Plan, parts: dict[str, list[_Part]], files: list[dict[str, Any]]) -> Any:
    """What the index says."""
    arrays = {
        name: {
            "dtype": stored.header(0)["dtype"],
            "shape": stored.header(0)["shape"],
            "parts": [[part.process, part.start, part.shape] for part in parts[name]],
        }
        for name, stored in plan.stored.items()
    }
    return {
        "tensors": plan.tensors,
        "containers": plan.containers,
        "files": files,
        "arrays": arrays,
    }


def _files_of(root: pathlib.Path) -> set[str]:
    """The files that the index of a folder names; none if it has no index, or a damaged one."""
    with contextlib.suppress(OSError, FileFormatError):
        return {pathlib.Path(file["name"]).name for file in read_index(root)["files"]}
    return set()
