"""Loading a folder that `corrq_jax.save_sharded` wrote, onto any mesh or into host memory."""

import dataclasses
import math
import os
import pathlib
import zlib
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from corrq_jax import layout, paths
from corrq_jax.archive import Archive, fit, is_record
from corrq_jax.core import coding
from corrq_jax.errors import InputError
from corrq_jax.layout import CODES, LEVELS, SCALES
from corrq_jax.lazy import LazyArray
from corrq_jax.readers.safetensors_file import read_header
from corrq_jax.rebuild import tree_of
from corrq_jax.sharded_index import broken, part_name, read_index
from corrq_jax.sharding import blocks_of
from corrq_jax.tensor import QuantizedTensor, Rows


class _Folder:
    """A saved tree, read part by part."""

    def __init__(self, root: pathlib.Path) -> None:
        self.root, self.index = root, read_index(root)
        self.broken = partial(broken, root)
        self._archives: dict[int, Archive] = {}

    def _archive(self, number: int) -> Archive:
        """One of the files; that it is the one which the index means is checked once."""
        if number not in self._archives:
            file = self.index["files"][number]
            path = self.root / file["name"]
            archive = Archive(path)
            if f"{zlib.crc32(read_header(path).text):08x}" != file["crc32"]:
                raise self.broken(f"{file['name']} is not the file that its index names")
            self._archives[number] = archive
        return self._archives[number]

    def read(self, name: str, index: Any) -> np.ndarray:
        """A region of an array, from the parts that hold it."""
        array = self.index["arrays"][name]
        spans = [s.indices(n)[:2] for s, n in zip(index, array["shape"], strict=True)]
        size = [b - a for a, b in spans]
        found, covered = [], 0
        for number, start, shape in array["parts"]:
            inside = _overlap(spans, [(a, a + n) for a, n in zip(start, shape, strict=True)])
            if inside is not None:
                found.append((self._part(name, number, start, shape), inside, start))
                covered += math.prod(b - a for a, b in inside)
        if covered != math.prod(size):  # asked before any memory is
            raise self.broken(f"no file holds all of {name!r}")
        out = np.empty(size, self.struct(name).dtype)
        for part, inside, start in found:
            here = tuple(slice(a - s, b - s) for (a, b), (s, _) in zip(inside, spans, strict=True))
            there = tuple(slice(a - s, b - s) for (a, b), s in zip(inside, start, strict=True))
            out[here] = part.load()[there]
        return out

    def _part(self, name: str, number: int, start: list[int], shape: list[int]) -> LazyArray:
        """A part of an array, not read yet."""
        own = part_name(name, tuple(start))
        part, dtype = self._archive(number).lazy(own), self.struct(name).dtype
        if not isinstance(part, LazyArray) or (part.shape, part.dtype) != (tuple(shape), dtype):
            raise self.broken(f"the part {own!r} is not what its index says")
        return part

    def struct(self, name: str) -> jax.ShapeDtypeStruct:
        """Shape and dtype of an array."""
        array = self.index["arrays"][name]
        return jax.ShapeDtypeStruct(array["shape"], jnp.dtype(layout.DTYPES[array["dtype"]]))

    def whole(self, name: str) -> np.ndarray:
        return self.read(name, tuple(slice(None) for _ in self.struct(name).shape))


def _overlap(a: list[tuple[int, int]], b: list[tuple[int, int]]) -> list[tuple[int, int]] | None:
    """What two regions have in common; None if it is nothing."""
    both = [(max(p[0], q[0]), min(p[1], q[1])) for p, q in zip(a, b, strict=True)]
    return both if all(start < end for start, end in both) else None


def load_sharded(folder: str | os.PathLike[str], *, shardings: Any = None) -> Any:
    """Read a tree that `save_sharded` wrote, onto any mesh or into host memory.

    Args:
        folder: the folder.
        shardings: a tree of the same paths with a `jax.sharding.NamedSharding` in place of each
            array and quantized tensor: where the array is to lie, such as
            ``jax.tree.map(lambda w: w.sharding, params)``. Each process then reads only what its
            devices need, whatever the mesh that the tree was saved from. None: numpy arrays.

    Returns:
        The tree; its weights are those that were saved, to the last bit.

    Raises:
        FileFormatError: the index or a file is damaged, or of a newer version.
        FileNotFoundError: there is no such folder or file.
        InputError: the paths of ``shardings`` are not those of the tree, or an array cannot be
            shared out evenly in that way.
    """
    source = _Folder(pathlib.Path(folder))
    tensors = source.index["tensors"]
    plain = [name for name in source.index["arrays"] if not _belongs_to(name, tensors)]
    wanted = None if shardings is None else dict(paths.flatten(shardings)[0])
    names = sorted([*tensors, *plain])
    if wanted is not None:
        _check_paths(folder, wanted, names)

    def leaf(name: str) -> Any:
        sharding = None if wanted is None else wanted[_path(name)]
        if name in tensors:
            return _tensor(source, name, sharding)
        if sharding is None:
            return source.whole(name)
        return jax.make_array_from_callback(
            source.struct(name).shape, sharding, lambda index: source.read(name, index)
        )

    leaves = {name: leaf(name) for name in names}
    try:
        return tree_of(leaves, source.index["containers"])
    except (ValueError, RecursionError) as error:
        raise source.broken(f"its index contradicts itself ({error})") from None


def _belongs_to(name: str, tensors: dict[str, Any]) -> bool:
    base, colon, end = name.rpartition(":")
    return colon + end in layout.PARTS and base in tensors


def _path(name: str) -> str:
    return "/".join(map(paths.unescape, name.split("/"))) if name else name


def _check_paths(folder: Any, wanted: dict[str, Any], names: list[str]) -> None:
    found = {_path(name) for name in names}
    missing, extra = sorted(found - wanted.keys()), sorted(wanted.keys() - found)
    if missing or extra:
        raise InputError(
            f"shardings: its paths are not those of {folder}: {missing[:5]} are missing in it, "
            f"{extra[:5]} are only there"
        )
    for path, sharding in wanted.items():
        if not isinstance(sharding, NamedSharding):
            raise InputError(
                f"shardings: {path} has a {type(sharding).__name__}; give NamedSharding"
            )


def _tensor(source: _Folder, name: str, sharding: NamedSharding | None) -> QuantizedTensor:
    record = source.index["tensors"][name]
    if not _is_whole(source, name, record):
        raise source.broken(f"its index does not say what belongs to {name!r}")
    shape = tuple(record["shape"])
    blocks = tuple(record["blocks"]) if "blocks" in record else None
    rows = Rows(*record["rows"]) if "rows" in record else None
    tensor = QuantizedTensor(
        levels=source.whole(name + LEVELS),
        codes=np.empty(0, np.uint8),
        shape=shape,
        dtype=layout.DTYPES[record["dtype"]],
        bits=record["bits"],
        scales=source.whole(name + SCALES) if rows is not None else None,
        rows=rows,
        coding=record.get("coding", "packed"),
        blocks=blocks,
    )
    if sharding is None:
        return dataclasses.replace(tensor, codes=source.whole(name + CODES))
    return _tensor_on_mesh(source, name, tensor, sharding)


def _is_whole(source: _Folder, name: str, record: Any) -> bool:
    """Whether a quantized tensor's record is complete and fits its arrays."""
    if not is_record(record):
        return False
    ends = [CODES, LEVELS] + ([SCALES] if "rows" in record else [])
    if any(name + end not in source.index["arrays"] for end in ends):
        return False
    codes, levels, *scales = (source.struct(name + end) for end in ends)
    shape, bits, blocks = tuple(record["shape"]), record["bits"], record.get("blocks")
    if blocks is not None:
        if not (
            isinstance(blocks, list)
            and len(blocks) == len(shape)
            and all(type(n) is int and n > 0 for n in blocks)
            and not any(n % count for n, count in zip(shape, blocks, strict=True))
            and codes.shape[:-1] == tuple(blocks)
        ):
            return False
        shape = tuple(n // count for n, count in zip(shape, blocks, strict=True))
        codes = jax.ShapeDtypeStruct(codes.shape[-1:], codes.dtype)
    rows = Rows(*record["rows"]) if scales else None
    how = record.get("coding", "packed")
    return fit(shape, bits, how, codes, levels, scales[0] if scales else None, rows)


def _tensor_on_mesh(
    source: _Folder, name: str, tensor: QuantizedTensor, sharding: NamedSharding
) -> QuantizedTensor:
    blocks, stored = blocks_of(sharding, tensor.ndim), source.struct(name + CODES).shape
    if blocks is not None and (
        tensor.rows is not None
        or tensor.levels.ndim > 1
        or tensor.dtype == "float64"
        or tensor.is_along_trellis
    ):
        raise InputError(
            f"{name}: tensors with scales or along a trellis, stacks and float64 are not shared "
            "out over a mesh; give a sharding without axes, or none at all"
        )
    if any(n % count for n, count in zip(tensor.shape, blocks or (), strict=False)):
        raise InputError(
            f"{name}: its shape {tensor.shape} cannot be cut into {blocks} equal parts"
        )
    everywhere = NamedSharding(sharding.mesh, PartitionSpec())
    levels, scales = (
        None
        if a is None
        else jax.make_array_from_callback(a.shape, everywhere, np.asarray(a).__getitem__)
        for a in (tensor.levels, tensor.scales)
    )
    new = dataclasses.replace(tensor, levels=levels, scales=scales, blocks=blocks)
    if blocks == tensor.blocks:
        where = everywhere if blocks is None else NamedSharding(sharding.mesh, sharding.spec)
        codes = jax.make_array_from_callback(
            stored, where, lambda index: source.read(name + CODES, index)
        )
        return dataclasses.replace(new, codes=codes)
    cut = new.block_shape
    size = coding.packed_size(math.prod(cut), tensor.bits)

    def read(index: Any) -> np.ndarray:
        at = [s.indices(n)[0] for s, n in zip(index, (*(blocks or ()), size), strict=True)][:-1]
        at = at or [0] * len(cut)
        region = [(i * n, (i + 1) * n) for i, n in zip(at, cut, strict=True)]
        codes = np.asarray(coding.pack(_codes_in(source, name, tensor, region), tensor.bits))
        return codes.reshape((*(1 for _ in blocks or ()), size))

    shape = (*(blocks or ()), size)
    where = everywhere if blocks is None else NamedSharding(sharding.mesh, sharding.spec)
    return dataclasses.replace(new, codes=jax.make_array_from_callback(shape, where, read))


def _codes_in(
    source: _Folder, name: str, tensor: QuantizedTensor, region: list[tuple[int, int]]
) -> np.ndarray:
    """uint8[any]: codes of a region of a tensor, flat, whatever blocks it is saved in."""
    cut, blocks = tensor.block_shape, tensor.blocks or (1,) * tensor.ndim
    out = np.empty([b - a for a, b in region], np.uint8)
    for at in np.ndindex(*blocks):
        block = [(i * n, (i + 1) * n) for i, n in zip(at, cut, strict=True)]
        inside = _overlap(region, block)
        if inside is None:
            continue
        index = tuple(slice(i, i + 1) for i in at) if tensor.blocks else ()
        stream = source.read(name + CODES, (*index, slice(None))).reshape(-1)
        codes = np.asarray(coding.unpack(stream, math.prod(cut), tensor.bits)).reshape(cut)
        here = tuple(slice(a - s, b - s) for (a, b), (s, _) in zip(inside, region, strict=True))
        there = tuple(slice(a - s, b - s) for (a, b), (s, _) in zip(inside, block, strict=True))
        out[here] = codes[there]
    return out.reshape(-1)
