"""One safetensors file for a whole network: packed codes, levels, and the leaves left in float.

Any safetensors reader can open the files; this one also checks the version, the sizes and a
checksum of every tensor, and gives the tree back. `corrq_jax.layout` says what lies where.
"""

import os
import zlib
from typing import Any, BinaryIO

import jax

from corrq_jax import paths
from corrq_jax.archive import Archive
from corrq_jax.atomic import atomic_write
from corrq_jax.errors import InputError
from corrq_jax.layout import Plan, Stored, most_decoded, plan
from corrq_jax.report import Report


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
        report: if given, the correlation of each tensor is recorded beside it, in about 20 bytes.
        overwrite: whether an existing file may be replaced.

    Returns:
        The size of the file in bytes.

    Raises:
        InputError: a leaf or key cannot be stored; the message names the path.
        FileExistsError: the file exists and ``overwrite`` is False.
        OSError: it cannot be written.
    """
    layout = plan(tree, report)
    if (decoded := layout.decoded_nbytes()) > most_decoded(layout.file_nbytes):
        raise InputError(
            f"{os.fspath(path)}: the entropy-coded tensors are so uniform that {decoded} bytes "
            f"would come out of a file of {layout.file_nbytes}, which `load` takes for damage; "
            'quantize them with coding="packed"'
        )
    return write(path, layout, overwrite=overwrite)


def write(path: str | os.PathLike[str], layout: Plan, *, overwrite: bool) -> int:
    """Write the file of a plan; its size in bytes."""
    with atomic_write(path, overwrite=overwrite) as temporary, temporary.open("wb") as file:
        file.write(layout.header())
        checksums = [_write(file, stored) for stored in layout.stored.values()]
        size = file.tell()
        file.seek(0)
        file.write(layout.header(checksums))
    return size


def _write(file: BinaryIO, stored: Stored) -> int:
    """Write a tensor; its checksum."""
    data = stored.data()
    file.write(data)
    return zlib.crc32(data)


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
