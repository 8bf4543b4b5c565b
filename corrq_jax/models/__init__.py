"""Networks by name. They are Flax NNX modules, loaded only when one is asked for."""

from __future__ import annotations

import dataclasses
import importlib
import os
import pathlib
import types
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from corrq_jax.errors import InputError, require

if TYPE_CHECKING:
    import numpy as np
    from flax import nnx

__all__ = ["ModelInfo", "create", "info", "load", "names"]


@dataclasses.dataclass(frozen=True)
class ModelInfo:
    """What has to be known to use a network.

    Attributes:
        name: the name in this registry.
        resolution: height and width of its pictures, in pixels.
        classes: number of logits.
        preprocessing: name of its preprocessing in `corrq_jax.data.preprocess`.
        module: the module that builds it, with `create(name, *, rngs)`; beside it, under the same
            name plus `_weights`, another with `installed_weights(name)` and
            `from_torch_names(name, arrays)`.
    """

    name: str
    resolution: int
    classes: int
    preprocessing: str
    module: str


_MODELS = {
    entry.name: entry
    for entry in [
        ModelInfo(
            name=f"efficientnet_lite{index}",
            resolution=resolution,
            classes=1000,
            preprocessing="efficientnet_lite",
            module="corrq_jax.models.efficientnet_lite",
        )
        for index, resolution in enumerate((224, 240, 260, 280, 300))
    ]
}


def names() -> tuple[str, ...]:
    """The names of all networks."""
    return tuple(_MODELS)


def info(name: str) -> ModelInfo:
    """Metadata of a network.

    Raises:
        InputError: there is no network of this name.
    """
    if name not in _MODELS:
        raise InputError(f"there is no network {name!r}; choose one of: {', '.join(_MODELS)}")
    return _MODELS[name]


def create(name: str, *, rngs: nnx.Rngs | None = None) -> Any:
    """Builds a network with random weights.

    Args:
        name: one of `names()`.
        rngs: source of the weights; by default `nnx.Rngs(0)`.

    Returns:
        An `nnx.Module` that maps images float32[batch, height, width, 3] to logits
        float32[batch, classes].

    Raises:
        InputError: there is no network of this name.
        MissingDependencyError: Flax is not installed.
    """
    module = info(name).module
    if rngs is None:
        rngs = require("flax.nnx", "flax").Rngs(0)
    return _import(module).create(name, rngs=rngs)


def load(
    name: str, weights: str | os.PathLike[str] | Mapping[str, np.ndarray] | None = None
) -> Any:
    """Builds a network with trained weights.

    Args:
        name: one of `names()`.
        weights: arrays by their PyTorch names, or a file with such arrays in any format that
            `corrq_jax.readers` reads. By default the ImageNet weights from an installed package,
            which exists for efficientnet_lite0.

    Returns:
        The network as from `create`, in float32.

    Raises:
        InputError: there is no such network, or no package with its weights, or the weights do not
            fit; every missing, unknown or misshapen array is listed.
        FileFormatError: the file cannot be read.
        MissingDependencyError: Flax or the package with the weights is not installed.
    """
    converter = _import(f"{info(name).module}_weights")
    if isinstance(weights, Mapping):
        return converter.from_torch_names(name, weights)
    path = converter.installed_weights(name) if weights is None else pathlib.Path(weights)
    # Imported here so that arrays in memory can be loaded without the libraries for files.
    from corrq_jax.readers import read_weights

    try:
        return converter.from_torch_names(name, read_weights(path))
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _import(module: str) -> types.ModuleType:
    require("flax", "flax")
    return importlib.import_module(module)
