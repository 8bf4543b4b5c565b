"""Weights under PyTorch's names and in its layouts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from corrq_jax.models.filling import ModuleT, Path, Source, fill, vector_length

# A count of training steps in every BatchNorm, of no use in inference.
_IGNORED = ".num_batches_tracked"

# (out, in, kh, kw) to (kh, kw, in, out), and (out, in) to (in, out), by the number of axes.
_AXES = {4: (2, 3, 1, 0), 2: (1, 0)}


def to_flax(array: np.ndarray) -> np.ndarray:
    """A kernel or matrix in Flax's layout; other arrays as they are."""
    return np.transpose(array, _AXES.get(array.ndim, range(array.ndim)))


class TorchArray(NamedTuple):
    """One entry of a state dictionary, and how it is brought into Flax's layout."""

    name: str
    to_flax: Callable[[np.ndarray], np.ndarray] = to_flax


Names = dict[Path, TorchArray]


def layer(path: Path, name: str, *, bias: bool = True) -> Names:
    """The entries of a convolution or a linear layer."""
    names = {(*path, "kernel"): TorchArray(f"{name}.weight")}
    return names | ({(*path, "bias"): TorchArray(f"{name}.bias")} if bias else {})


def norm(path: Path, name: str) -> Names:
    """The entries of a BatchNorm."""
    return {
        (*path, "scale"): TorchArray(f"{name}.weight"),
        (*path, "bias"): TorchArray(f"{name}.bias"),
        (*path, "mean"): TorchArray(f"{name}.running_mean"),
        (*path, "var"): TorchArray(f"{name}.running_var"),
    }


def from_arrays(
    title: str,
    build: Callable[[int], ModuleT],
    names: Names,
    arrays: Mapping[str, np.ndarray],
) -> ModuleT:
    """Builds a network from a state dictionary.

    Args:
        title: the network's name, for messages.
        build: makes the network with a number of classes, which are those of the classifier.
        names: the entry for every leaf.
        arrays: arrays by name: all that the network has, and no other but `*.num_batches_tracked`,
            which are ignored.

    Raises:
        InputError: names, shapes or dtypes are wrong; the message lists every problem.
    """
    known = {entry.name for entry in names.values()}
    unknown = sorted(n for n in arrays if n not in known and not n.endswith(_IGNORED))
    sources = {p: Source(e.name, arrays.get(e.name), e.to_flax) for p, e in names.items()}
    classes = vector_length(arrays.get(names["classifier", "bias"].name))
    return fill(title, lambda: build(classes), sources, [f"unknown: {n}" for n in unknown])
