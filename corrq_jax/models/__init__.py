"""Networks by name. They are Flax NNX modules, loaded only when one is asked for."""

from __future__ import annotations

import dataclasses
import importlib
import os
import pathlib
import types
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from corrq_jax.errors import InputError, require

if TYPE_CHECKING:
    import numpy as np
    from flax import nnx

__all__ = ["ModelInfo", "create", "info", "load", "names", "trained_weights"]


@dataclasses.dataclass(frozen=True)
class ModelInfo:
    """What has to be known to use a network.

    Attributes:
        name: the name in this registry.
        resolution: height and width of its pictures, in pixels.
        classes: number of logits of the trained weights; other weights may have another.
        preprocessing: name of its preprocessing in `corrq_jax.data.preprocess`.
        module: the module that builds it, with `create(name, classes, *, rngs)`; beside it, under
            the same name plus `_weights`, another that says where its weights are in a file.
        layout: whose names and layouts its weights have, "keras", "torch" or, for its own, "flax".
        trained: where its trained weights come from: "package", "download" or "" for nowhere.
        dataset: what they were trained on, "imagenet" or "fashion_mnist"; its classes are theirs.
    """

    name: str
    resolution: int
    classes: int
    preprocessing: str
    module: str
    layout: str
    trained: str = ""
    dataset: str = "imagenet"


def _entry(
    name: str, resolution: int, preprocessing: str, module: str, layout: str, trained: str = ""
) -> ModelInfo:
    path = f"corrq_jax.models.{module}"
    return ModelInfo(name, resolution, 1000, preprocessing, path, layout, trained)


_FASHION_RESNET = ModelInfo(
    *("fashion_resnet", 28, 10, "fashion_mnist", "corrq_jax.models.fashion_resnet", "flax"),
    trained="package",
    dataset="fashion_mnist",
)


_MODELS = {
    entry.name: entry
    for entry in [
        _entry("vgg16", 224, "caffe", "vgg16", "keras", "download"),
        _entry("resnet50", 224, "caffe", "resnet", "keras", "download"),
        _entry("resnet152v2", 224, "tf", "resnet_v2", "keras", "download"),
        _entry("xception", 299, "tf", "xception", "keras", "download"),
        _entry("inception_v3", 299, "tf", "inception_v3", "keras", "download"),
        _entry("mobilenet_v2", 224, "tf", "mobilenet_v2", "keras", "download"),
        # The same networks as torchvision trains and names them.
        _entry("vgg16_torchvision", 224, "torch", "vgg16", "torch"),
        _entry("resnet50_torchvision", 224, "torch", "resnet", "torch"),
        *(
            _entry(
                f"efficientnet_lite{index}",
                resolution,
                "efficientnet_lite",
                "efficientnet_lite",
                "torch",
                "package" if index < 3 else "",
            )
            for index, resolution in enumerate((224, 240, 260, 280, 300))
        ),
        _FASHION_RESNET,
    ]
}


def names() -> tuple[str, ...]:
    """The names of all networks."""
    return tuple(_MODELS)


def info(name: str) -> ModelInfo:
    """Metadata of a network.

    Raises:
        InputError: there is no network of this name.

    >>> info("xception").resolution
    299
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
        An `nnx.Module` that maps images float32[batch, height, width, 3], or [..., 1] if they are
        grey, to logits float32[batch, classes].

    Raises:
        InputError: there is no network of this name.
        MissingDependencyError: Flax is not installed.
    """
    module = info(name).module
    if rngs is None:
        rngs = require("flax.nnx", "flax").Rngs(0)
    return _import(module).create(name, info(name).classes, rngs=rngs)


def load(
    name: str, weights: str | os.PathLike[str] | Mapping[str, np.ndarray] | None = None
) -> Any:
    """Builds a network with trained weights.

    Args:
        name: one of `names()`.
        weights: None for the trained ones, from an installed package, or as keras.io publishes
            them, which are fetched once and kept; or a file. Files of the networks of
            keras.applications are '.h5', '.weights.h5' or '.keras'; of the others any that
            `corrq_jax.readers` reads, with PyTorch's names (of "fashion_resnet" with the network's
            own, such as "stem/conv/kernel"), and such arrays by name will do, too.

    Returns:
        The network as from `create`, in float32, with as many classes as the weights have.

    Raises:
        InputError: there is no such network, no trained weights are known, or the weights do not
            fit; every missing, unknown or misshapen array is listed.
        FileFormatError: the file cannot be read.
        MissingDependencyError: Flax, a library that reads the file, or the package with the
            weights is not installed.
        OSError: the weights cannot be fetched; the message says what to put where.
    """
    entry = info(name)
    if isinstance(weights, Mapping):
        return _from_arrays(entry, weights)
    path = trained_weights(name) if weights is None else pathlib.Path(weights)
    # Imported here so that arrays in memory can be loaded without the libraries for files.
    from corrq_jax.readers import read_weights
    from corrq_jax.readers.keras_layers import read_keras_layers

    _check_suffix(entry, path)
    try:
        if entry.layout != "keras":
            return _from_arrays(entry, read_weights(path))
        return _from_keras(entry, read_keras_layers(path))
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def trained_weights(name: str) -> pathlib.Path:
    """The file with the trained weights of a network, fetched if it is not at hand.

    Raises:
        InputError: none are known.
        MissingDependencyError: the package with the weights, or pooch to fetch them, is missing.
        OSError: they cannot be fetched; the message says what to put where.
    """
    entry = info(name)
    if entry.trained == "package":
        return _import(f"{entry.module}_weights").installed_weights(name)
    if entry.trained == "download":
        from corrq_jax.models.fetch import fetch
        from corrq_jax.models.published import PUBLISHED

        return fetch(PUBLISHED[name])
    known = ", ".join(n for n, e in _MODELS.items() if e.trained)
    raise InputError(
        f"no trained weights of {name} are known; give `weights`, a file (known: {known})"
    )


def _check_suffix(entry: ModelInfo, path: pathlib.Path) -> None:
    """Keras's networks come in its own files; others are often given by mistake."""
    if entry.layout == "keras" and path.suffix.lower() in (".pth", ".pt", ".safetensors", ".npz"):
        other = f"{entry.name}_torchvision"
        advice = f"; PyTorch's weights are for {other}" if other in _MODELS else ""
        raise InputError(f"{path}: {entry.name} takes .h5, .weights.h5 or .keras files{advice}")


def _from_arrays(entry: ModelInfo, arrays: Mapping[str, np.ndarray]) -> Any:
    if entry.layout == "flax":
        return _import("corrq_jax.models.filling").fill_own(entry.name, _builder(entry), arrays)
    if entry.layout != "torch":
        raise InputError(
            f"the weights of {entry.name} come from Keras's files, whose names alone do not tell "
            f"the layers; give the file, or quantize it with --model {entry.name}"
        )
    names = _import(f"{entry.module}_weights").torch_names(entry.name)
    convert = _import("corrq_jax.models.torch_weights")
    return convert.from_arrays(entry.name, _builder(entry), names, arrays)


def _from_keras(entry: ModelInfo, stored: Any) -> Any:
    layers = _import(f"{entry.module}_weights").keras_layers(entry.name)
    convert = _import("corrq_jax.models.keras_weights")
    return convert.from_layers(entry.name, _builder(entry), layers, stored)


def _builder(entry: ModelInfo) -> Callable[[int], Any]:
    """Builds the network with a number of classes, for its shapes."""
    create = _import(entry.module).create
    rngs = _import("corrq_jax.models.filling").OneKey
    return lambda classes: create(entry.name, classes, rngs=rngs())


def _import(module: str) -> types.ModuleType:
    require("flax", "flax")
    return importlib.import_module(module)
