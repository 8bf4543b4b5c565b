"""Orbax checkpoints: folders that hold a tree of arrays."""

import errno
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from corrq_jax.errors import FileFormatError, require

_MARK = "_METADATA"  # of a tree; a step of a checkpoint manager has it in its items' folders


def is_checkpoint(path: pathlib.Path) -> bool:
    """Whether a folder is an Orbax checkpoint, or a step that a checkpoint manager wrote."""
    return (path / _MARK).is_file() or (path / "default" / _MARK).is_file()


def read_checkpoint(path: str | os.PathLike[str]) -> Any:
    """The tree of an Orbax checkpoint, numpy arrays in dictionaries and lists.

    Arrays are read to host memory whole, whatever devices they were sharded over.

    Args:
        path: the folder of a checkpoint, or of a step whose only item is a tree.

    Raises:
        FileNotFoundError: there is no such folder.
        FileFormatError: it is no checkpoint of a tree, or damaged.
        MissingDependencyError: orbax-checkpoint is not installed.
    """
    path = pathlib.Path(path).absolute()
    if not path.is_dir():
        raise FileNotFoundError(errno.ENOENT, "no such checkpoint folder", str(path))
    if not is_checkpoint(path):
        inside = [p.parent.name for p in sorted(path.glob(f"*/{_MARK}"))]
        hint = f"give one of its folders {', '.join(inside)}" if inside else "check the path"
        raise FileFormatError(f"{path}: not an Orbax checkpoint of a tree; {hint}")
    folder = path if (path / _MARK).is_file() else path / "default"
    ocp = require("orbax.checkpoint", "flax")
    jax = require("jax", "flax")
    as_numpy = ocp.RestoreArgs(restore_type=np.ndarray)
    try:
        with ocp.PyTreeCheckpointer() as checkpointer:
            described = checkpointer.metadata(folder).item_metadata.tree
            wanted = jax.tree.map(lambda _: as_numpy, described)
            return checkpointer.restore(folder, restore_args=wanted)
    except Exception as error:
        # Orbax, TensorStore and the JSON behind them raise what their damaged parts lead to, of no
        # common kind and another with each version; the reader's user has one kind to catch.
        raise FileFormatError(
            f"{folder}: a damaged checkpoint ({type(error).__name__}: {str(error)[:200]}); copy it "
            "again, or give an earlier one"
        ) from error


def read_orbax(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Every array of a checkpoint by its path, keys joined by "/".

    Raises:
        FileFormatError: as `read_checkpoint`, or something is not an array of numbers.
    """
    arrays: dict[str, np.ndarray] = {}

    def visit(node: Any, name: str) -> None:
        if isinstance(node, list | tuple):
            node = dict(enumerate(node))
        if isinstance(node, Mapping):
            for key, child in node.items():
                visit(child, f"{name}/{key}" if name else str(key))
        elif node is not None:
            array = np.asarray(node)
            if array.dtype.kind in "OUS":
                raise FileFormatError(f"{path}: {name} is a {type(node).__name__}, not an array")
            arrays[name] = array

    visit(read_checkpoint(path), "")
    return arrays
