"""Figures of layer densities and of what quantization keeps, sized for a phone's width.

Every function returns a matplotlib `Figure` that no pyplot state knows of: `save_png` or
`png_bytes` renders it, and a notebook shows it. A method looks the same in every figure.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from corrq_jax.errors import InputError, missing
from corrq_jax.plot_style import (
    MethodStyle,
    label_points,
    legend_below,
    method_styles,
    new_figure,
    peer_family,
    peer_layout,
    peer_marker,
    png_bytes,
    save_png,
    styled,
)
from corrq_jax.results import LayerDensity, Result

try:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, NullFormatter, PercentFormatter, ScalarFormatter
except ModuleNotFoundError as error:
    raise missing("matplotlib", "plots") from error

__all__ = [
    "beside_peers",
    "correlation_figure",
    "density_caption",
    "density_figure",
    "fidelity_figure",
    "method_styles",
    "png_bytes",
    "rebin",
    "save_png",
]

_BINS = 200
_TAIL = 5e-4  # The share of weights at either end that may be outliers.


def density_figure(layer: LayerDensity, *, log: bool = True) -> Figure:
    """Draws a layer's weight density with the cells and levels of its quantizer.

    The density is per unit of weight, over 200 equal bins across the range that holds all but a
    thousandth of the weights (and the levels, where they are near); `density_caption` says what
    lies outside.

    Args:
        layer: the density and the quantizer.
        log: whether the density's axis is logarithmic.

    Returns:
        The figure: the density and the cell boundaries above, the levels on a strip below.
    """
    edges, density = rebin(layer)
    color = method_styles([layer.method])[layer.method].color
    with styled():
        figure = new_figure(3.7)
        above, below = figure.subplots(2, sharex=True, height_ratios=[14, 1])
        above.stairs(density, edges, fill=True, color="#9fb4c4", label="weight density")
        _draw_cells(above, below, layer, color)
        above.set_xlim(edges[0], edges[-1])
        if log:
            _log_density_axis(above, density)
        above.set_ylabel("density per unit of weight")
        _strip_axis(below)
        _set_titles(figure, layer)
        legend_below(figure, [*above.get_legend_handles_labels()[0], *below.collections], 3)
    return figure


def density_caption(layer: LayerDensity) -> str:
    """One or two sentences on what `density_figure(layer)` shows and what lies outside it."""
    edges, _ = rebin(layer)
    text = (
        f"{layer.counts.sum():,} weights of {layer.path}, {layer.method} at {_bits(layer)}: "
        f"{layer.levels.size} levels, correlation {layer.correlation:.6f}."
    )
    outside = (layer.points < edges[0]) | (layer.points > edges[-1])
    held = outside & (layer.counts > 0)
    if held.any():
        share = layer.counts[held].sum() / layer.counts.sum()
        points = layer.points[layer.counts > 0]
        text += (
            f" Outside the figure: {100 * share:.2g}% of the weights"
            f" (they span {points[0]:.4g} to {points[-1]:.4g})"
        )
        levels = int(((layer.levels < edges[0]) | (layer.levels > edges[-1])).sum())
        text += f" and {levels} of the levels." if levels else "."
    return text


def rebin(layer: LayerDensity, bins: int = _BINS) -> tuple[np.ndarray, np.ndarray]:
    """The density per unit of weight over equal bins.

    A weight counts spread over its own point's surroundings, half-way to the neighbouring points
    but at most one bin wide: points as dense as the bins would otherwise beat with them.

    Args:
        layer: the density.
        bins: the number of bins.

    Returns:
        `edges`, (bins + 1,) float64, and `density`, (bins,) float64, which sums to the share of
        weights within the edges when multiplied by the bin's width.
    """
    low, high = _robust_range(layer)
    edges = np.linspace(low, high, bins + 1)
    width = edges[1] - edges[0]
    held = layer.counts > 0
    points, counts = layer.points[held], layer.counts[held]
    # Mid-points between all points of the support, occupied or not.
    middles = (layer.points[1:] + layer.points[:-1]) / 2
    starts = np.concatenate([[-np.inf], middles])[held]
    ends = np.concatenate([middles, [np.inf]])[held]
    starts, ends = np.maximum(starts, points - width / 2), np.minimum(ends, points + width / 2)
    after = np.cumsum(counts)
    x = np.stack([starts, ends], axis=1).ravel()
    below = np.interp(edges, x, np.stack([after - counts, after], axis=1).ravel())
    return edges, np.diff(below) / (counts.sum() * width)


def correlation_figure(results: Sequence[Result]) -> Figure:
    """Draws 1 - rho^2, the share of variance lost to quantization, against stored bits a weight.

    rho is `mean_correlation`; a result with rho = 1 has no place on the logarithmic axis and is
    left out.

    Args:
        results: results in any order; those of a method make a line, those of peers are points.

    Raises:
        InputError: no result has rho below 1.
    """
    with styled():
        figure = new_figure(4.8)
        axes = figure.subplots()
        axes.set_yscale("log")
        _draw(axes, results, lambda r: r.noise if r.mean_correlation < 1 else None)
        _require_points(axes, "mean_correlation below 1")
        _bits_axis(axes)
        axes.set_ylabel("1 \N{MINUS SIGN} \N{GREEK SMALL LETTER RHO}²   (lower is better)")
        axes.set_title("Variance of the weights lost to quantization")
        legend_below(figure, _handles(axes), 2)
        _name_peers(figure, axes, results, lambda r: r.noise)
    return figure


def fidelity_figure(results: Sequence[Result]) -> Figure:
    """Draws agreement with the float network, and KL divergence, against stored bits a weight.

    Args:
        results: results in any order; those of a method make a line, those of peers are points. A
            figure that was not measured (None) is left out, and so is a KL of zero.

    Raises:
        InputError: no result has an agreement or a KL divergence.
    """
    with styled():
        figure = new_figure(7.2)
        above, below = figure.subplots(2, sharex=True)
        below.set_yscale("log")
        _draw(above, results, lambda r: r.agreement)
        _draw(below, results, lambda r: r.kl or None)
        if not _handles(above):
            _require_points(below, "agreement or kl")
        above.yaxis.set_major_formatter(PercentFormatter(1))
        above.set_ylim(-0.03, 1.03)
        above.set_title("Same best class as the float network")
        above.set_ylabel("agreement   (higher is better)")
        below.set_title("Divergence from the float network's output")
        below.set_ylabel("KL, nats   (lower is better)")
        _bits_axis(below)
        legend_below(figure, max(map(_handles, (above, below)), key=len), 2)
        _name_peers(figure, above, results, lambda r: r.agreement)
        _name_peers(figure, below, results, lambda r: r.kl or None)
    return figure


def beside_peers(results: Sequence[Result]) -> list[Result]:
    """Peers, and of the others those with free levels at no more bits, so that names find room."""
    most = max((r.bits for r in results if r.peer), default=0)
    return [r for r in results if r.peer or (r.grid == "optimal" and r.bits <= most)]


Value = Callable[[Result], float | None]


def _draw(axes: Axes, results: Sequence[Result], value: Value) -> None:
    """Lines of methods and points of peers: a value against stored bits."""
    for line, style, label in _lines([r for r in results if not r.peer]):
        points = _points(line, value)
        if points:
            axes.plot(*zip(*points, strict=True), label=label, **style.line())
    families: dict[str, list[Result]] = {}
    for result in results:
        if result.peer:
            families.setdefault(peer_family(result.method), []).append(result)
    for family, members in families.items():
        points = _points(members, value)
        if points:
            axes.scatter(*zip(*points, strict=True), label=family, **peer_marker(family))


def _lines(results: Sequence[Result]) -> Iterator[tuple[list[Result], MethodStyle, str]]:
    """The results of each method by stored size, with its style, in order of appearance."""
    for method, style in method_styles(result.method for result in results).items():
        line = [result for result in results if result.method == method]
        yield sorted(line, key=lambda r: (r.bits, r.bits_per_weight)), style, method


def _points(results: Sequence[Result], value: Value) -> list[tuple[float, float]]:
    """(stored bits, value) where there is one."""
    found = [(r.bits_per_weight, value(r)) for r in results]
    return [(x, y) for x, y in found if y is not None]


def _handles(axes: Axes) -> list[Artist]:
    """What a legend explains: lines of methods, then markers of peers."""
    return [*axes.get_lines(), *axes.collections]


def _require_points(axes: Axes, what: str) -> None:
    if not _handles(axes):
        raise InputError(f"nothing to draw: give at least one Result with {what}")


def _bits_axis(axes: Axes) -> None:
    """Few bits, where methods differ most, get more room than many."""
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(range(1, 17)))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("stored bits a quantized weight")


def _name_peers(figure: Figure, axes: Axes, results: Sequence[Result], value: Value) -> None:
    """How peers group weights beside a point of each; with too little room the best come first."""
    peers = sorted((r for r in results if r.peer), key=lambda r: (-r.bits, r.noise))
    points = [(*xy, r.method, peer_layout(r.method)) for r in peers for xy in _points([r], value)]
    label_points(figure, axes, points)


def _robust_range(layer: LayerDensity) -> tuple[float, float]:
    """The range without outliers, widened to the levels unless that doubles it."""
    below = np.cumsum(layer.counts) / layer.counts.sum()
    last = layer.points.size - 1
    low, high = layer.points[np.minimum(np.searchsorted(below, [_TAIL, 1 - _TAIL]), last)]
    if layer.levels.size:
        wide = min(low, layer.levels.min()), max(high, layer.levels.max())
        if wide[1] - wide[0] <= 2 * (high - low):
            low, high = wide
    margin = 0.03 * (high - low) or 0.5 * abs(low) or 1.0
    return float(low - margin), float(high + margin)


def _draw_cells(above: Axes, below: Axes, layer: LayerDensity, color: str) -> None:
    """Boundaries as lines through the density, levels as ticks; thinner where there are many."""
    width = float(np.clip(24 / max(layer.levels.size, 1), 0.25, 1.0))
    low, high = above.get_xaxis_transform(), below.get_xaxis_transform()
    above.vlines(
        *(layer.boundaries, 0, 1),
        transform=low,
        colors="#333333",
        linewidths=width,
        linestyles="-",
        alpha=0.7,
        label="cell boundary",
    )
    below.vlines(
        *(layer.levels, 0, 1),
        transform=high,
        colors=color,
        linewidths=2 * width,
        label="level",
    )


def _log_density_axis(axes: Axes, density: np.ndarray) -> None:
    axes.set_yscale("log")
    smallest = density[density > 0].min()
    axes.set_ylim(smallest / 2, 2 * density.max())


def _strip_axis(axes: Axes) -> None:
    axes.set_yticks([])
    axes.grid(visible=False)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("weight")


def _set_titles(figure: Figure, layer: LayerDensity) -> None:
    second = f"{layer.method}, {_bits(layer)}, \N{GREEK SMALL LETTER RHO} = {layer.correlation:.5f}"
    figure.suptitle(
        f"{_shorten(layer.path)}\n{second}", fontsize=10, x=0.02, ha="left", parse_math=False
    )


def _bits(layer: LayerDensity) -> str:
    return "1 bit" if layer.bits == 1 else f"{layer.bits} bits"


def _shorten(path: str, longest: int = 52) -> str:
    """A long path without its middle."""
    if len(path) <= longest:
        return path
    return f"{path[: longest // 3]}…{path[-(longest - longest // 3 - 1) :]}"
