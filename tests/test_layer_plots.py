import dataclasses
import itertools

import numpy as np
import pytest

pytest.importorskip("matplotlib")
from matplotlib.backends.backend_agg import FigureCanvasAgg
from test_plots import assert_well_laid_out

from corrq_jax import plots
from corrq_jax.errors import InputError
from corrq_jax.results import LayerResult


def layers_of(count, methods=("linear", "linear + correlation", "optimal"), around=0.9):
    """Layers with a zigzag of correlations; a better method is ten times closer to 1."""
    return {
        method: [
            LayerResult(f"l{i}/kernel", (4,), 4, 3, 1 - (1 - around) * 0.1**m * (1 + i % 3), 9)
            for i in range(count)
        ]
        for m, method in enumerate(methods)
    }


@pytest.mark.parametrize("count", [1, 16, 54, 160])
@pytest.mark.parametrize("around", [0.7, 0.9999])
def test_layers_figure(count, around):
    layers = layers_of(count, around=around)
    figure = plots.layers_figure(layers, 3)
    assert_well_laid_out(figure)
    (axes,) = figure.axes
    assert axes.get_yscale() == "log"
    assert "3 bits" in axes.get_title(loc="left")
    styles = plots.method_styles(layers)
    for line, (method, found) in zip(axes.get_lines(), layers.items(), strict=True):
        expected = [(i, 1 - layer.correlation**2) for i, layer in enumerate(found, start=1)]
        np.testing.assert_allclose(line.get_xydata(), expected, rtol=1e-6)
        assert (line.get_color(), line.get_marker()) == (
            styles[method].color,
            styles[method].marker,
        )
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(layers)


@pytest.mark.parametrize(
    "rhos",
    [[0.5], [0.03, 0.9], [0.97, 0.9701], [0.985, 0.985000001], [0.1, 1 - 1e-7], [1 - 1e-6, 0.9999]],
)
def test_both_axes_of_layers_can_be_read(rhos):
    """Labels of rho stand where 1 - rho^2 says, apart from each other, and there are some."""
    layers = [LayerResult(f"l{i}", (4,), 4, 3, rho, 9) for i, rho in enumerate(rhos)]
    figure = plots.layers_figure({"linear": layers}, 3)
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    (axes,) = figure.axes
    (right,) = axes.child_axes
    low, high = axes.get_ylim()
    shown = list(zip(right.yaxis.get_ticklocs(), right.yaxis.get_ticklabels(), strict=True))
    assert shown
    for at, label in shown:
        np.testing.assert_allclose(at, 1 - float(label.get_text()) ** 2, rtol=1e-6)
        assert low <= at <= high
    for side in (axes.yaxis, right.yaxis):
        texts = [t for t in side.get_ticklabels() if t.get_text()]
        boxes = sorted((t.get_window_extent(renderer) for t in texts), key=lambda box: box.y0)
        assert boxes
        assert all(a.y1 < b.y0 for a, b in itertools.pairwise(boxes))


def test_a_layer_without_correlation_is_a_gap():
    layers = layers_of(5)
    for index, rho in ((1, None), (3, 1.0)):
        layers["linear"][index] = dataclasses.replace(layers["linear"][index], correlation=rho)
    line, *others = plots.layers_figure(layers, 4).axes[0].get_lines()
    assert np.isnan(line.get_ydata()).tolist() == [False, True, False, True, False]
    assert not any(np.isnan(other.get_ydata()).any() for other in others)
    assert "are left out" in plots.layers_caption(layers, 4)
    assert "are left out" not in plots.layers_caption(layers_of(5), 4)


def test_layers_caption_names_first_last_and_worst():
    layers = layers_of(4)
    layers["optimal"][1] = dataclasses.replace(layers["optimal"][1], correlation=0.25)
    caption = plots.layers_caption(layers, 1)
    assert "to 1 bit," in caption
    assert "Layer 1 is l0/kernel, layer 4 is l3/kernel." in caption
    assert "Lowest: layer 2, l1/kernel, ρ = 0.25000 (optimal)." in caption  # noqa: RUF001


def test_layers_that_cannot_be_drawn():
    layers = layers_of(3)
    with pytest.raises(InputError, match="different layers"):
        plots.layers_figure({**layers, "nf4": layers["linear"][::-1]}, 3)
    exact = [dataclasses.replace(layer, correlation=1.0) for layer in layers["linear"]]
    for nothing in ({}, {"linear": []}, {"linear": exact}):
        with pytest.raises(InputError, match=r"nothing to draw.*LayerResult"):
            plots.layers_figure(nothing, 3)
