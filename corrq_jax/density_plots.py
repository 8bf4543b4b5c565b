"""The figure of a layer's weight density with the cells and the levels of its quantizer."""

import numpy as np

from corrq_jax.errors import missing
from corrq_jax.method_styles import bits_text, method_styles
from corrq_jax.plot_style import legend_below, new_figure, styled
from corrq_jax.results import LayerDensity

try:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
except ModuleNotFoundError as error:
    raise missing("matplotlib", "plots") from error

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
        f"{layer.counts.sum():,} weights of {layer.path}, {layer.method} at "
        f"{bits_text(layer.bits)}: {layer.levels.size} levels, "
        f"correlation {layer.correlation:.6f}."
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
    rho = f"\N{GREEK SMALL LETTER RHO} = {layer.correlation:.5f}"
    second = f"{layer.method}, {bits_text(layer.bits)}, {rho}"
    figure.suptitle(
        f"{_shorten(layer.path)}\n{second}", fontsize=10, x=0.02, ha="left", parse_math=False
    )


def _shorten(path: str, longest: int = 52) -> str:
    """A long path without its middle."""
    if len(path) <= longest:
        return path
    return f"{path[: longest // 3]}…{path[-(longest - longest // 3 - 1) :]}"
