"""Quantize one tree by many methods at many bit widths, and measure each: sizes, rho, fidelity."""

import dataclasses
import os
import pathlib
import platform
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np

from corrq_jax import leaf as leaves
from corrq_jax.config import Config
from corrq_jax.core.fit import fit_batch
from corrq_jax.errors import InputError
from corrq_jax.evaluation import Metrics
from corrq_jax.paths import flatten
from corrq_jax.report import Report
from corrq_jax.results import LayerDensity, LayerResult, Result, Run
from corrq_jax.storage import save
from corrq_jax.tree import quantize


@dataclasses.dataclass(frozen=True)
class Method:
    """A way to quantize, by the name that tables and figures show."""

    name: str
    grid: str
    fit: str
    levels: str
    bits: tuple[int, ...] = tuple(range(1, 9))

    def config(self, bits: int, **options: Any) -> Config:
        """The configuration for a bit width."""
        return Config(bits, self.grid, self.fit, self.levels, **options)


METHODS = (
    Method("linear", "linear", "range", "grid"),
    Method("exponential", "exponential", "range", "grid"),
    Method("linear + correlation", "linear", "correlation", "mean"),
    Method("exponential + correlation", "exponential", "correlation", "mean"),
    Method("optimal", "optimal", "correlation", "mean"),
    Method("nf4", "nf4", "range", "grid", bits=(4,)),
)
"""The paper's four methods (Pushkareva and Karandashev, 2020), the optimum, and NF4."""

Measure = Callable[[Any], tuple[Metrics, Metrics]]


def methods(names: Iterable[str]) -> tuple[Method, ...]:
    """Methods by name.

    Raises:
        InputError: there is no such method.
    """
    known = {method.name: method for method in METHODS}
    names = tuple(names)
    for name in names:
        if name not in known:
            raise InputError(f"there is no method {name!r}; choose from {', '.join(known)}")
    return tuple(known[name] for name in names)


def cells(chosen: Iterable[Method], bits: Iterable[int]) -> list[tuple[Method, int]]:
    """Every method at every bit width that it has, most bits first."""
    order = sorted(set(bits), reverse=True)
    return [(method, b) for method in chosen for b in order if b in method.bits]


def sweep(
    params: Any, chosen: Iterable[tuple[Method, int]], measure: Measure | None = None
) -> Iterator[tuple[Result, Report]]:
    """Quantize, save to a file for its true size, and measure, one method and width at a time.

    Args:
        params: the float tree.
        chosen: from `cells`.
        measure: quantized tree to metrics on the photos and on all views; None for sizes and
            correlations alone.

    Yields:
        The result and the report of each, as it is done.

    Raises:
        InputError: there is nothing to quantize, or as `corrq_jax.quantize`.
    """
    with tempfile.TemporaryDirectory(prefix="corrq-") as folder:
        file = pathlib.Path(folder) / "network.safetensors"
        for method, bits in chosen:
            qparams, report = quantize(params, config=method.config(bits))
            if not report.rows:
                raise InputError("the tree has no kernel to quantize")
            size = save(file, qparams)
            photos, views = measure(qparams) if measure else (None, None)
            yield _result(method, bits, report, size, photos, views), report


def _result(
    method: Method,
    bits: int,
    report: Report,
    size: int,
    photos: Metrics | None,
    views: Metrics | None,
) -> Result:
    return Result(
        method=method.name,
        grid=method.grid,
        fit=method.fit,
        levels=method.levels,
        bits=bits,
        bits_per_weight=report.bits_per_weight,
        file_nbytes=size,
        mean_correlation=report.mean_correlation,
        min_correlation=report.min_correlation,
        top1=photos.top1 if photos else None,
        top5=photos.top5 if photos else None,
        agreement=views.agreement if views else None,
        kl=_finite(views.kl) if views else None,
        logit_correlation=_finite(views.correlation) if views else None,
    )


def _finite(value: float | None) -> float | None:
    return value if value is not None and np.isfinite(value) else None


def layer_results(report: Report) -> tuple[LayerResult, ...]:
    """The rows of a report as records."""
    return tuple(
        LayerResult(row.path, row.shape, row.size, row.bits, row.correlation, row.nbytes)
        for row in report
    )


def layer_density(params: Any, path: str, method: Method, bits: int) -> LayerDensity:
    """The density of one tensor with the boundaries and levels that a method gives it.

    Args:
        params: the float tree.
        path: the tensor's path.
        method: the method.
        bits: its bits.
    """
    leaf = leaves.read(path, dict(flatten(params)[0])[path])
    density, norm = leaves.measure(leaf)
    arguments = (density, np.float32(leaf.lo), np.float32(leaf.hi), norm)
    one = jax.tree.map(lambda a: np.asarray(a)[None], arguments)
    fitted = jax.tree.map(
        lambda a: np.asarray(a)[0], fit_batch(*one, method.config(bits).method(bits))
    )
    counts = np.asarray(density.counts)
    present = counts > 0

    def in_weight_units(x: Any) -> np.ndarray:
        return leaves.levels_in_weight_units(leaf, norm, x)

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


def typical_paths(report: Report, count: int = 3) -> list[str]:
    """Paths of layers worth a look: the largest, the one of smallest rho, and the median in rho."""
    rows = sorted(report, key=lambda row: row.correlation)
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


def make_run(
    network: str,
    params: Any,
    measured: list[tuple[Result, Report]],
    densities: Iterable[LayerDensity] = (),
    *,
    photos: int = 0,
    views: int = 0,
    reference: Metrics | None = None,
) -> Run:
    """All of a sweep as one record, for figures, pages and files.

    Args:
        network: its name.
        params: the float tree; saved once for its size.
        measured: what `sweep` yielded.
        densities: layers to draw.
        photos: photos behind the metrics.
        views: views of them.
        reference: the float network's metrics on the photos.
    """
    with tempfile.TemporaryDirectory(prefix="corrq-") as folder:
        float_nbytes = save(pathlib.Path(folder) / "float.safetensors", params)
    weights = measured[0][1].size if measured else 0
    return Run(
        network=network,
        weights=weights,
        float_nbytes=float_nbytes,
        photos=photos,
        views=views,
        float_top1=reference.top1 if reference else None,
        float_top5=reference.top5 if reference else None,
        results=tuple(result for result, _ in measured),
        layers={result.key: layer_results(report) for result, report in measured},
        densities=tuple(densities),
        environment=environment(),
    )
