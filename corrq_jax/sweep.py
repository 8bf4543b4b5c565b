"""Quantize one tree by many methods at many bit widths, and measure each: sizes, rho, fidelity."""

import math
import os
import pathlib
import platform
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np

from corrq_jax import leaf as leaves
from corrq_jax.anatomy import Anatomy, file_anatomy, tensor_anatomy
from corrq_jax.core.fit import fit_batch
from corrq_jax.encoding import levels_in_weight_units
from corrq_jax.errors import InputError
from corrq_jax.evaluation import Metrics
from corrq_jax.histograms import entropy_of_codes, level_table
from corrq_jax.menu import BATCH
from corrq_jax.methods import (
    METHODS,
    Cell,
    Method,
    cells,
    methods,
    peer_cells,
    short_cells,
    without_wiring,
)
from corrq_jax.moments import Wiring, match_moments
from corrq_jax.paths import flatten
from corrq_jax.peers import Peer, PeerRow, stored_bits
from corrq_jax.report import Report, Row
from corrq_jax.results import LayerDensity, LayerResult, Result, Run
from corrq_jax.storage import save
from corrq_jax.tensor import QuantizedTensor
from corrq_jax.tree import quantize

__all__ = [
    "METHODS",
    "Cell",
    "Method",
    "cells",
    "float_run",
    "layer_density",
    "layer_results",
    "methods",
    "peer_cells",
    "short_cells",
    "sweep",
    "typical_paths",
    "without_wiring",
]

Measure = Callable[[Any], tuple[Metrics, Metrics]]


def sweep(
    params: Any,
    chosen: Iterable[Cell],
    measure: Measure | None = None,
    wiring: Wiring | None = None,
) -> Iterator[tuple[Result, tuple[LayerResult, ...]]]:
    """Quantize, save to a file for its true size, and measure, one method and width at a time.

    Peers have no file: their size is what they count themselves and the bytes of all other leaves,
    without any header. Mixed bits are left out, with a warning, where a target cannot be met.

    Args:
        params: the float tree.
        chosen: from `cells` or `peer_cells`.
        measure: quantized tree to metrics on the photos and on all views; None for sizes and
            correlations alone.
        wiring: of the network, from `corrq_jax.moments.trace`; methods that match moments need it,
            and with mixed bits it says how much each tensor counts.

    Yields:
        The result and its quantized tensors, as each is done.

    Raises:
        InputError: there is nothing to quantize, a method needs the wiring, or as
            `corrq_jax.quantize`.
    """
    with tempfile.TemporaryDirectory(prefix="corrq-") as folder:
        file = pathlib.Path(folder) / "network.safetensors"
        for method, bits in chosen:
            if isinstance(method, Peer):
                made = _by_peer(params, method, int(bits))
            else:
                made = _by_method(params, method, bits, wiring, file)
            if made is None:
                continue
            if not made.layers:
                raise InputError("the tree has no kernel to quantize")
            photos, views = measure(made.tree) if measure else (None, None)
            yield _result(method, bits, made, photos, views), made.layers


class _Quantized(NamedTuple):
    tree: Any
    layers: tuple[LayerResult, ...]
    bits_per_weight: float
    file_nbytes: int
    anatomy: Anatomy | None = None

    @property
    def correlations(self) -> list[float]:
        """Of the layers; those that were quantized all have one."""
        return [layer.correlation for layer in self.layers if layer.correlation is not None]


def _by_method(
    params: Any, method: Method, bits: float, wiring: Wiring | None, file: pathlib.Path
) -> _Quantized | None:
    """Quantized and saved; None if the target cannot be met."""
    if method.match and wiring is None:
        raise InputError(
            f"{method.name} needs the network's wiring: give wiring=corrq_jax.moments.trace(...)"
        )
    importance = wiring.importance if method.mixed and wiring is not None else None
    try:
        tree, report = quantize(params, config=method.config(bits), importance=importance)
    except InputError as error:
        if not method.mixed:
            raise
        warnings.warn(f"left out {method.name} at {bits:g} bits: {error}", stacklevel=3)
        return None
    if method.match and wiring is not None:
        tree, _ = match_moments(wiring, params, tree)
    size = save(file, tree)
    layers = layer_results(report, params, tree)
    return _Quantized(tree, layers, report.bits_per_weight, size, file_anatomy(tree))


def _by_peer(params: Any, peer: Peer, bits: int) -> _Quantized:
    """Decoded, with the bytes that the peer counts and those of the other leaves."""
    tree, rows = peer.quantize_tree(params, bits)
    arrays = dict(flatten(params)[0])
    layers = tuple(_peer_layer(row, arrays[row.path], bits) for row in rows)
    rest = arrays.keys() - {row.path for row in rows}
    nbytes = sum(row.nbytes for row in rows) + sum(np.asarray(arrays[p]).nbytes for p in rest)
    return _Quantized(tree, layers, stored_bits(rows), nbytes)


def _peer_layer(row: PeerRow, array: Any, bits: int) -> LayerResult:
    rho = math.sqrt(1 - row.noise)
    return LayerResult(row.path, np.shape(array), row.size, bits, rho, row.nbytes, noise=row.noise)


def _labels(method: Method | Peer) -> dict[str, Any]:
    """What a result says of its method."""
    if isinstance(method, Peer):
        no_options = dict.fromkeys(("grid", "fit", "levels", "granularity"), "")
        return {"method": method.name, **no_options, "peer": True}
    return {
        "method": method.name,
        "grid": method.grid,
        "fit": method.fit,
        "levels": method.levels,
        "coding": method.coding,
        "granularity": str(method.granularity),
        "mixed": method.mixed,
        "matched": method.match,
    }


def _result(
    method: Method | Peer,
    bits: float,
    made: _Quantized,
    photos: Metrics | None,
    views: Metrics | None,
) -> Result:
    rho = made.correlations
    return Result(
        **_labels(method),
        bits=bits,
        bits_per_weight=made.bits_per_weight,
        file_nbytes=made.file_nbytes,
        mean_correlation=sum(rho) / len(rho),
        min_correlation=min(rho),
        top1=photos.top1 if photos else None,
        top5=photos.top5 if photos else None,
        agreement=views.agreement if views else None,
        kl=_finite(views.kl) if views else None,
        logit_correlation=_finite(views.correlation) if views else None,
        lost=views.lost if views else None,
        gained=views.gained if views else None,
        **(_bytes_of_file(made.anatomy) if made.anatomy else {}),
    )


def _bytes_of_file(anatomy: Anatomy) -> dict[str, Any]:
    return {f"{part}_nbytes": nbytes for part, nbytes in anatomy._asdict().items()}


def _finite(value: float | None) -> float | None:
    return value if value is not None and np.isfinite(value) else None


def layer_results(report: Report, params: Any, tree: Any) -> tuple[LayerResult, ...]:
    """The rows of a report as records, with what the tensors show of themselves.

    Args:
        report: of the quantization.
        params: the float tree.
        tree: its quantized form.
    """
    arrays, tensors = dict(flatten(params)[0]), dict(flatten(tree)[0])
    return tuple(_layer(row, arrays[row.path], tensors[row.path]) for row in report)


def _layer(row: Row, array: Any, tensor: QuantizedTensor) -> LayerResult:
    codes, levels, scales = tensor_anatomy(tensor)
    is_one = tensor.codes.ndim == 1  # and no stack
    return LayerResult(
        *(row.path, row.shape, row.size, row.bits, row.correlation, row.nbytes, row.coding),
        noise=row.noise,
        codes_nbytes=codes,
        levels_nbytes=levels,
        scales_nbytes=scales,
        entropy=entropy_of_codes(tensor) if is_one else None,
        table=level_table(np.asarray(array), tensor),
    )


def layer_density(params: Any, path: str, method: Method, bits: int) -> LayerDensity:
    """The density of one tensor with the boundaries and levels that a method gives it.

    Args:
        params: the float tree.
        path: the tensor's path.
        method: the method.
        bits: its bits.

    Raises:
        InputError: with this method a tensor has more than one table of levels, or bits that the
            other tensors decide on.
    """
    if method.mixed or method.granularity != "tensor":
        raise InputError(f"{method.name}: its levels are not those of one tensor alone")
    leaf = leaves.read(path, dict(flatten(params)[0])[path])
    density, norm = leaves.measure(leaf)
    arguments = (density, np.float32(leaf.lo), np.float32(leaf.hi), norm)
    # The shape that `quantize` has compiled.
    batch = jax.tree.map(lambda a: np.broadcast_to(a, (BATCH, *np.shape(a))), arguments)
    found = fit_batch(*batch, method.config(bits).method(bits), 1)
    fitted = jax.tree.map(lambda a: np.asarray(a)[0], found)
    counts = np.asarray(density.counts)
    present = counts > 0

    def in_weight_units(x: Any) -> np.ndarray:
        return levels_in_weight_units(leaf, norm, x)

    return LayerDensity(
        path=path,
        points=in_weight_units(density.points)[present],
        counts=counts[present],
        boundaries=in_weight_units(fitted.boundaries),
        levels=in_weight_units(fitted.values),
        bits=bits,
        method=method.name,
        correlation=float(np.sqrt(1 - fitted.noise)),
    )


def typical_paths(layers: Report | Sequence[LayerResult], count: int = 3) -> list[str]:
    """Paths of layers worth a look: the largest, the one of smallest rho, and the median in rho."""
    rows = sorted(layers, key=lambda row: row.correlation or 0.0)
    if not rows:
        return []
    picks = [max(rows, key=lambda row: row.size), rows[0], rows[len(rows) // 2]]
    return list(dict.fromkeys(row.path for row in picks))[:count]


def environment() -> dict[str, str]:
    """Versions and hardware, to be written beside every figure."""
    from corrq_jax import __version__

    return {
        "corrq_jax": __version__,
        "jax": jax.__version__,
        "python": platform.python_version(),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "cpus": str(os.cpu_count()),
        "matmul precision": str(
            getattr(jax.config, "jax_default_matmul_precision", None) or "default"
        ),
    }


def float_run(
    network: str,
    params: Any,
    *,
    photos: int = 0,
    views: int = 0,
    reference: Metrics | None = None,
    about: Mapping[str, str] = MappingProxyType({}),
) -> Run:
    """The float network as a run without results, to which a sweep's are added.

    Args:
        network: its name.
        params: the float tree; saved once for its size.
        photos: photos behind the metrics.
        views: views of them.
        reference: the float network's metrics on the photos.
        about: what else to record beside `environment()`.
    """
    with tempfile.TemporaryDirectory(prefix="corrq-") as folder:
        float_nbytes = save(pathlib.Path(folder) / "float.safetensors", params)
    return Run(
        network=network,
        weights=0,
        float_nbytes=float_nbytes,
        photos=photos,
        views=views,
        float_top1=reference.top1 if reference else None,
        float_top5=reference.top5 if reference else None,
        results=(),
        layers={},
        densities=(),
        environment={**environment(), **about},
    )
