"""The papers' figure: the correlation of each layer by its number, a line a method."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from corrq_jax.errors import InputError, missing
from corrq_jax.method_styles import MethodStyle, bits_text, method_styles
from corrq_jax.plot_style import legend_below, new_figure, styled
from corrq_jax.results import LayerResult

try:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import (
        FixedFormatter,
        FixedLocator,
        FuncFormatter,
        LogLocator,
        MaxNLocator,
        NullLocator,
    )
except ModuleNotFoundError as error:
    raise missing("matplotlib", "plots") from error

# Correlations that the second axis may show: 0, 0.5, 0.8, 0.9, 0.95 and so on.
_RHOS = (0.0, *(round(1 - part * 10.0**-n, n) for n in range(1, 10) for part in (5, 2, 1)))
_APART = 0.055  # The least distance of two of its labels, as a share of the axis.
_LEAST_RATIO = 4.0  # Of the limits of 1 - rho^2: both axes have labels then.
# Up to so many layers: the size of markers, by that in other figures, and the width of lines.
_LOOKS = ((24, (0.9, 1.2)), (60, (0.5, 0.8)), (math.inf, (0.4, 0.35)))


def layers_figure(layers: Mapping[str, Sequence[LayerResult]], bits: int) -> Figure:
    """Draws rho of every layer by the layer's number, a line a method, at one bit width.

    The left axis is 1 - rho^2, logarithmic, for rho alone hardly differs where it is close to 1;
    the right axis says rho. A layer without rho, or with rho = 1, leaves a gap.

    Args:
        layers: the layers by method; they are numbered from 1 as they come.
        bits: the bit width, for the title.

    Raises:
        InputError: methods have different layers, or no layer has rho below 1.
    """
    noise = _noise_by_method(layers)
    styles = method_styles(layers)
    with styled():
        figure = new_figure(4.8)
        axes = figure.subplots()
        for method, values in noise.items():
            axes.plot(range(1, len(values) + 1), values, **_line(styles[method], len(values)))
        axes.set_title(f"Each layer's correlation at {bits_text(bits)}")
        axes.set_xlim(0.5, len(next(iter(noise.values()))) + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
        axes.set_xlabel("number of the layer")
        _noise_axis(axes)
        _rho_axis(axes)
        handles = [Line2D([], [], label=method, **styles[method].line()) for method in noise]
        legend_below(figure, handles, 2)
    return figure


def layers_caption(layers: Mapping[str, Sequence[LayerResult]], bits: int) -> str:
    """Sentences on what `layers_figure(layers, bits)` shows, with the names of some layers."""
    _noise_by_method(layers)
    paths = [layer.path for layer in next(iter(layers.values()))]
    text = (
        f"The correlation ρ of each layer's weights before and after quantization to "  # noqa: RUF001
        f"{bits_text(bits)}, on the right, and 1 − ρ², on the left. Lower is better. "  # noqa: RUF001
        f"Layer 1 is {paths[0]}"
    )
    text += f", layer {len(paths)} is {paths[-1]}. " if len(paths) > 1 else ". "
    known = [
        (layer.correlation, number, layer.path, method)
        for method, found in layers.items()
        for number, layer in enumerate(found, start=1)
        if layer.correlation is not None
    ]
    rho, number, path, method = min(known)
    text += f"Lowest: layer {number}, {path}, ρ = {rho:.5f} ({method})."  # noqa: RUF001
    if any(layer.correlation is None for found in layers.values() for layer in found):
        text += " Layers whose weights are all alike have no correlation and are left out."
    return text


def _noise_by_method(layers: Mapping[str, Sequence[LayerResult]]) -> dict[str, list[float]]:
    """1 - rho^2 of every layer, NaN where there is nothing to draw."""
    orders = {tuple(layer.path for layer in found) for found in layers.values()}
    if len(orders) > 1:
        raise InputError("methods have different layers; give each the same layers in one order")
    noise = {
        method: [_noise(layer.correlation) for layer in found] for method, found in layers.items()
    }
    if not any(value > 0 for values in noise.values() for value in values):
        raise InputError("nothing to draw: give at least one LayerResult with correlation below 1")
    return noise


def _noise(rho: float | None) -> float:
    # (1 - rho)(1 + rho) keeps the digits that 1 - rho**2 loses.
    noise = 0.0 if rho is None else (1 - rho) * (1 + rho)
    return noise if noise > 0 else math.nan


def _line(style: MethodStyle, layers: int) -> dict[str, Any]:
    """The method's style, lighter where there are many layers: lines that cross hide points."""
    line = style.line()
    marker, width = next(look for most, look in _LOOKS if layers <= most)
    line["markersize"] *= marker
    line["linewidth"] = width
    line["markeredgewidth"] = min(1.0, 2 * width)
    return line


def _noise_axis(axes: Axes) -> None:
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    wider = max(_LEAST_RATIO / (high / low), 1) ** 0.5
    axes.set_ylim(low / wider, high * wider)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylabel("1 \N{MINUS SIGN} \N{GREEK SMALL LETTER RHO}²   (lower is better)")


def _rho_axis(axes: Axes) -> None:
    """Says rho on the right of 1 - rho^2."""
    right = axes.secondary_yaxis("right")
    right.spines["right"].set_visible(True)
    low, high = np.log(axes.get_ylim())
    shown: list[float] = []
    for rho in _RHOS:
        at = np.log(_noise(rho))
        is_apart = not shown or np.log(_noise(shown[-1])) - at > _APART * (high - low)
        if low <= at <= high and is_apart:
            shown.append(rho)
    right.yaxis.set_major_locator(FixedLocator([_noise(rho) for rho in shown]))
    right.yaxis.set_major_formatter(FixedFormatter([f"{rho:.9g}" for rho in shown]))
    right.yaxis.set_minor_locator(NullLocator())
    axes.set_title("\N{GREEK SMALL LETTER RHO}", loc="right")
