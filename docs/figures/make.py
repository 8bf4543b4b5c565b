"""Draws the pages' figures from measured.json, which measure.py makes, as SVG files beside this.

python docs/figures/make.py
"""

import json
import pathlib
import sys
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from corrq_jax.method_styles import method_styles
from corrq_jax.plot_style import legend_below, new_figure, styled

MEAN = "mean of $1-\\rho^2$ over 50 kernels"
HERE = pathlib.Path(__file__).parent
# Agreement with the float network and KL divergence from it: README.md, "What it gives".
MATCHING = {
    "optimal": {4: (6.7, 4.311), 3: (0.0, 7.194)},
    "optimal + moments": {4: (78.3, 0.366), 3: (61.7, 1.588)},
    "mixed bits": {4: (94.6, 0.031), 3: (92.5, 0.160)},
    "mixed bits, entropy-coded": {4: (99.2, 0.014), 3: (95.0, 0.062)},
}


def densities(found: dict[str, Any]) -> Figure:
    """A kernel's density, and below it the boundaries and levels of each method."""
    layer = found["density"]
    names = list(layer["methods"])
    styles = method_styles(names)
    figure = new_figure(4.2)
    above, below = figure.subplots(2, sharex=True, height_ratios=[3, 4])
    counts = np.array(layer["counts"])
    edges = np.linspace(-layer["reach"], layer["reach"], len(counts) + 1)
    above.stairs(counts, edges, fill=True, color="#9fb4c4")
    above.set_ylabel("weights")
    for row, name in enumerate(names):
        method, style = layer["methods"][name], styles[name]
        y = len(names) - 1 - row
        below.vlines(method["boundaries"], y - 0.3, y + 0.3, colors="#999999", linewidth=0.8)
        below.plot(
            method["levels"], [y] * len(method["levels"]), "|", color=style.color, ms=11, mew=2
        )
    labels = [f"{name}\nrho {layer['methods'][name]['correlation']:.4f}" for name in names]
    below.set_yticks(range(len(names) - 1, -1, -1), labels, fontsize=7.5)
    below.grid(visible=False)
    below.set_xlabel("weight; levels in colour, boundaries grey")
    above.set_title(f"{layer['bits']} bits, {layer['path']}", fontsize=8.5)
    return figure


def noise_by_bits(found: dict[str, Any]) -> Figure:
    """Mean noise over bits, by grid and fit."""
    figure = new_figure(3.6)
    axes = figure.subplots()
    styles = method_styles(found["grids"])
    for name, cells in found["grids"].items():
        bits, noise = zip(*((int(b), cell["noise"]) for b, cell in cells.items()), strict=True)
        axes.plot(bits, noise, label=name, **styles[name].line())
    axes.set(yscale="log", xlabel="bits of a code", ylabel=MEAN)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend_below(figure, axes.get_legend_handles_labels()[0], 2)
    return figure


def noise_by_stored_bits(found: dict[str, Any]) -> Figure:
    """Mean noise over stored bits, by granularity."""
    names = {"tensor": "one table a tensor", "channel": "a scale a channel", "64": "groups of 64"}
    colors, markers = ("#000000", "#56B4E9", "#D55E00"), "DPs"
    figure = new_figure(3.4)
    axes = figure.subplots()
    for (key, label), color, marker in zip(names.items(), colors, markers, strict=True):
        cells = found["granularities"][key].values()
        x, y = zip(*((cell["bits_per_weight"], cell["noise"]) for cell in cells), strict=True)
        axes.plot(x, y, color=color, marker=marker, markersize=5, label=label)
    axes.set(
        yscale="log", xlabel="stored bits a weight", ylabel="mean of $1-\\rho^2$ over 50 kernels"
    )
    legend_below(figure, axes.get_legend_handles_labels()[0], 3)
    return figure


def budget(found: dict[str, Any]) -> Figure:
    """Who gets which bits of 3 a weight, and what that leaves of noise times importance."""
    figure = new_figure(4.4)
    above, below = figure.subplots(2, sharex=True)
    at = np.arange(1, len(found["budget"]) + 1)
    for key, color, marker, label in (
        ("uniform", "#777777", "o", "3 bits for all"),
        ("budget", "#009E73", "^", "a budget of 3 bits a weight"),
    ):
        bits = [row[1] for row in found[key]]
        lost = [found["importance"].get(path, 1.0) * noise for path, _, noise in found[key]]
        above.plot(at, bits, marker, color=color, markersize=4, label=label)
        below.plot(at, lost, marker, color=color, markersize=4)
    above.set_ylabel("stored bits a weight")
    below.set(
        yscale="log", xlabel="kernel, in the tree's order", ylabel="importance times $1-\\rho^2$"
    )
    legend_below(figure, above.get_legend_handles_labels()[0], 2)
    return figure


def matching(found: dict[str, Any]) -> Figure:
    """What matching of moments, a budget and entropy coding do to the network's answers."""
    del found
    figure = new_figure(3.2)
    axes = figure.subplots()
    styles = method_styles(MATCHING)
    for row, (name, cells) in enumerate(MATCHING.items()):
        for offset, (bits, (agreement, kl)) in zip((0.19, -0.19), cells.items(), strict=True):
            y = len(MATCHING) - 1 - row + offset
            color = styles[name].color
            axes.barh(y, agreement, 0.34, color=color, alpha=1.0 if bits == 4 else 0.55)
            axes.text(
                agreement + 1, y, f"{bits} bits: {agreement} %, KL {kl}", va="center", fontsize=7.5
            )
    axes.set_yticks(range(len(MATCHING) - 1, -1, -1), list(MATCHING), fontsize=8)
    axes.set(xlim=(0, 175), xlabel="agreement with the float network, %")
    axes.set_xticks(range(0, 101, 25))
    axes.grid(visible=False, axis="y")
    return figure


FIGURES = {
    "densities": densities,
    "noise_by_bits": noise_by_bits,
    "noise_by_stored_bits": noise_by_stored_bits,
    "budget": budget,
    "matching": matching,
}


def draw(folder: pathlib.Path) -> None:
    """All figures, the same bytes each time by one version of matplotlib."""
    found = json.loads((HERE / "measured.json").read_text())
    rc = {"svg.hashsalt": "corrq", "svg.fonttype": "path", "axes.titlesize": 9}
    for name, figure_of in FIGURES.items():
        with styled(), matplotlib.rc_context(rc):
            figure_of(found).savefig(folder / f"{name}.svg", metadata={"Date": None})


if __name__ == "__main__":
    draw(pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
