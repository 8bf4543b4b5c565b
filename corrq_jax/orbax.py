"""Orbax checkpoints: quantized trees in and out, alone or inside of a training state.

With a tree of the same structure at hand Orbax restores a quantized tree by itself, since a
`corrq_jax.QuantizedTensor` is a pytree: ``checkpointer.restore(path, qparams)``. What is here does
without: `to_arrays` makes of a tree one of arrays alone, which says of itself what it is, and which
any checkpointer or checkpoint manager keeps; `from_arrays` makes of it what it was. Checkpoints of
float networks are read by `corrq_jax.readers.read_weights` and by ``corrq quantize``.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from corrq_jax.errors import FileFormatError, InputError, require
from corrq_jax.readers import read_checkpoint
from corrq_jax.tensor import QuantizedTensor, Rows, is_quantized

__all__ = ["from_arrays", "load", "save", "to_arrays"]

_ABOUT = "corrq_jax"  # the key of what is said of a tensor: JSON, as bytes


def to_arrays(params: Any) -> Any:
    """A tree with a dictionary of arrays in place of each quantized tensor.

    Args:
        params: any pytree with `corrq_jax.QuantizedTensor` leaves.

    Returns:
        The tree, quantized leaves being ``{"codes", "levels", "scales", "corrq_jax"}``; the last is
        a JSON text as uint8[bytes], and scales are there if the tensor has some.

    >>> import corrq_jax as corrq
    >>> qparams, _ = corrq.quantize({"kernel": np.linspace(-1, 1, 12).reshape(3, 4)}, bits=2)
    >>> sorted(to_arrays(qparams)["kernel"])
    ['codes', 'corrq_jax', 'levels']
    >>> from_arrays(to_arrays(qparams))["kernel"]
    QuantizedTensor(shape=(3, 4), dtype=float64, bits=2, levels=(4,))
    """
    return jax.tree.map(
        lambda leaf: _arrays(leaf) if is_quantized(leaf) else leaf, params, is_leaf=is_quantized
    )


def _arrays(tensor: QuantizedTensor) -> dict[str, Any]:
    about = {name: getattr(tensor, name) for name in ("shape", "dtype", "bits", "coding")}
    about["rows"] = None if tensor.rows is None else dataclasses.asdict(tensor.rows)
    if tensor.blocks is not None:
        about["blocks"] = tensor.blocks
    text = json.dumps(about, sort_keys=True)
    arrays = {"codes": tensor.codes, "levels": tensor.levels}
    if tensor.scales is not None:
        arrays["scales"] = tensor.scales
    return arrays | {_ABOUT: np.frombuffer(text.encode(), np.uint8)}


def from_arrays(tree: Any) -> Any:
    """The inverse of `to_arrays`, whatever holds the arrays.

    Raises:
        FileFormatError: what is said of a tensor cannot be understood.
    """
    return jax.tree.map(lambda x: _tensor(x) if _is_one(x) else x, tree, is_leaf=_is_one)


def _is_one(node: Any) -> bool:
    return isinstance(node, Mapping) and {"codes", "levels", _ABOUT} <= node.keys()


def _tensor(arrays: Mapping[str, Any]) -> QuantizedTensor:
    try:
        about = json.loads(np.asarray(arrays[_ABOUT], np.uint8).tobytes())
        rows = None if about["rows"] is None else Rows(**about["rows"])
        return QuantizedTensor(
            codes=arrays["codes"],
            levels=arrays["levels"],
            scales=arrays.get("scales"),
            shape=tuple(about["shape"]),
            dtype=about["dtype"],
            bits=about["bits"],
            rows=rows,
            coding=about["coding"],
            blocks=tuple(about["blocks"]) if "blocks" in about else None,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise FileFormatError(
            f"a quantized tensor whose {_ABOUT!r} entry is damaged: {error!r}; restore the "
            "checkpoint again, or one that was saved before"
        ) from error


def save(path: str | os.PathLike[str], params: Any) -> None:
    """Write a tree as an Orbax checkpoint, a folder; it appears whole or not at all.

    Args:
        path: the folder, which must not exist.
        params: any pytree that Orbax takes, with `corrq_jax.QuantizedTensor` leaves.

    Raises:
        FileExistsError: the folder exists.
        InputError: the tree holds no arrays.
        MissingDependencyError: orbax-checkpoint is not installed.
    """
    folder = pathlib.Path(path).absolute()
    if folder.exists():
        raise FileExistsError(f"{folder} exists; give a new folder")
    if not jax.tree.leaves(params):
        raise InputError("save: the tree holds no arrays")
    with require("orbax.checkpoint", "flax").StandardCheckpointer() as checkpointer:
        checkpointer.save(folder, to_arrays(params))


def load(path: str | os.PathLike[str]) -> Any:
    """A tree from an Orbax checkpoint, as dictionaries and lists, quantized tensors among them.

    Args:
        path: the folder that `save` wrote, or any checkpoint of a tree from `to_arrays`; of float
            arrays, too.

    Raises:
        FileNotFoundError: there is no such folder.
        FileFormatError: it is no checkpoint, or damaged.
        MissingDependencyError: orbax-checkpoint is not installed.
    """
    return from_arrays(read_checkpoint(path))
