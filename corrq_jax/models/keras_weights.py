"""Weights in Keras's files: which layer of the file fills which leaves of a network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from corrq_jax.models.filling import ModuleT, Path, Source, fill, unchanged, vector_length
from corrq_jax.readers.keras_layers import StoredLayer


class KerasLayer(NamedTuple):
    """A layer of a network in keras.applications.

    Attributes:
        kind: its class, as Keras 3's files write it, such as 'conv2d'.
        name: its name; None where Keras numbers it.
        leaves: paths in our network, in the order of the layer's arrays.
    """

    kind: str
    name: str | None
    leaves: tuple[Path, ...]


def conv(name: str | None, path: Path, *, bias: bool = False) -> KerasLayer:
    """A convolution at `path`."""
    return KerasLayer("conv2d", name, _kernel_and_bias(path, bias))


def depthwise(name: str | None, path: Path) -> KerasLayer:
    """A depthwise convolution without bias at `path`."""
    return KerasLayer("depthwise_conv2d", name, _kernel_and_bias(path, bias=False))


def separable(name: str | None, depthwise: Path, pointwise: Path) -> KerasLayer:
    """A separable convolution without bias, in Keras one layer, as two convolutions."""
    return KerasLayer("separable_conv2d", name, ((*depthwise, "kernel"), (*pointwise, "kernel")))


def norm(name: str | None, path: Path, *, scale: bool = True) -> KerasLayer:
    """A BatchNorm at `path`."""
    leaves = ("scale", "bias", "mean", "var") if scale else ("bias", "mean", "var")
    return KerasLayer("batch_normalization", name, tuple((*path, leaf) for leaf in leaves))


def dense(name: str | None, path: Path) -> KerasLayer:
    """A dense layer with bias at `path`."""
    return KerasLayer("dense", name, _kernel_and_bias(path, bias=True))


def _kernel_and_bias(path: Path, bias: bool) -> tuple[Path, ...]:
    return ((*path, "kernel"), (*path, "bias")) if bias else ((*path, "kernel"),)


def from_layers(
    title: str,
    build: Callable[[int], ModuleT],
    layers: Sequence[KerasLayer],
    stored: Sequence[StoredLayer],
) -> ModuleT:
    """Builds a network with the weights of a Keras file.

    Keras 3's files tell the class of a layer and its place among those of its class. Older ones
    tell names: layers are matched by name, and those whose names are not Keras's own, because Keras
    numbered them or an older version called them otherwise, in the order of the file.

    Args:
        title: the network's name, for messages.
        build: makes the network with a number of classes.
        layers: in the order of `model.layers` in Keras; the last one is the classifier.
        stored: from `corrq_jax.readers.keras_layers.read_keras_layers`.

    Raises:
        InputError: the layers, their arrays or their shapes are others; the message lists every
            problem.
    """
    sources: dict[Path, Source] = {}
    problems = []
    classes = vector_length(None)
    for layer, found in _matched(layers, stored):
        if layer is None:
            problems.append(f"unknown: layer {found.name if found else ''}")
            continue
        arrays = found.arrays if found else ()
        if found and len(arrays) != len(layer.leaves):
            problems.append(
                f"layer {found.name} has {len(arrays)} arrays, {_title(layer)} {len(layer.leaves)}"
            )
        elif arrays and layer is layers[-1]:
            classes = vector_length(arrays[-1])
        sources |= _sources(layer, found)
    return fill(title, lambda: build(classes), sources, problems)


def _title(layer: KerasLayer) -> str:
    return layer.name or f"the {layer.kind} of {'.'.join(layer.leaves[0][:-1])}"


def _matched(
    layers: Sequence[KerasLayer], stored: Sequence[StoredLayer]
) -> Iterator[tuple[KerasLayer | None, StoredLayer | None]]:
    """Each layer with what the file has for it, and what the file has besides."""
    if all(item.kind is not None for item in stored):
        for kind in dict.fromkeys([x.kind for x in layers] + [str(s.kind) for s in stored]):
            of_kind = [x for x in layers if x.kind == kind]
            yield from _paired(of_kind, [s for s in stored if s.kind == kind])
        return
    by_name = {item.name: item for item in stored}
    named = {layer.name for layer in layers if layer.name in by_name}
    for layer in layers:
        if layer.name in named:
            yield layer, by_name[layer.name]
    yield from _paired(
        [layer for layer in layers if layer.name not in named],
        [item for item in stored if item.name not in named],
    )


def _paired(
    layers: Sequence[KerasLayer], stored: Sequence[StoredLayer]
) -> Iterator[tuple[KerasLayer | None, StoredLayer | None]]:
    for index in range(max(len(layers), len(stored))):
        yield (
            layers[index] if index < len(layers) else None,
            stored[index] if index < len(stored) else None,
        )


def _sources(layer: KerasLayer, found: StoredLayer | None) -> dict[Path, Source]:
    arrays = found.arrays if found and len(found.arrays) == len(layer.leaves) else None
    return {
        path: Source(
            f"{found.name if found and arrays else _title(layer)}, array {index}",
            None if arrays is None else arrays[index],
            # The first array of these is the depthwise kernel.
            _from_depthwise if index == 0 and layer.kind in _DEPTHWISE else unchanged,
        )
        for index, path in enumerate(layer.leaves)
    }


_DEPTHWISE = ("depthwise_conv2d", "separable_conv2d")


def _from_depthwise(kernel: np.ndarray) -> np.ndarray:
    """Keras has (kh, kw, channels, features a channel), Flax (kh, kw, 1, features)."""
    if kernel.ndim != 4:
        raise ValueError(kernel.shape)
    return kernel.reshape(*kernel.shape[:2], 1, -1)
