import dataclasses
import io
import pathlib
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("matplotlib")
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.text import Text
from synthetic_run import METHODS, PEERS, synthetic_run

from corrq_jax import method_styles, plots
from corrq_jax.errors import InputError
from corrq_jax.results import LayerDensity

RUN = synthetic_run()
GAUSSIAN, LAPLACE = RUN.densities


def overlaps(a, b):
    return a.x0 < b.x1 and b.x0 < a.x1 and a.y0 < b.y1 and b.y0 < a.y1


def assert_well_laid_out(figure):
    """Nothing is cut, and no legend covers axes, ticks or labels."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    whole = figure.bbox
    boxes = [axes.get_tightbbox(renderer) for axes in figure.axes]
    (legend,) = (legend.get_window_extent(renderer) for legend in figure.legends)
    titles = [figure._suptitle.get_window_extent(renderer)] if figure._suptitle else []
    for box in (*boxes, legend, *titles):
        assert box.x0 >= -1, box
        assert box.y0 >= -1, box
        assert box.x1 <= whole.x1 + 1, box
        assert box.y1 <= whole.y1 + 1, box
    for box in (*boxes, *titles):
        assert not overlaps(box, legend)
    assert not any(overlaps(title, box) for title in titles for box in boxes)


@pytest.mark.parametrize("layer", RUN.densities, ids=["gaussian", "laplace"])
@pytest.mark.parametrize("log", [True, False])
def test_density_figure(layer, log):
    figure = plots.density_figure(layer, log=log)
    assert_well_laid_out(figure)
    above, below = figure.axes
    assert above.get_yscale() == ("log" if log else "linear")
    lines = {
        collection.get_label(): np.array([path[0, 0] for path in collection.get_segments()])
        for axes in (above, below)
        for collection in axes.collections
    }
    np.testing.assert_allclose(lines["cell boundary"], layer.boundaries)
    np.testing.assert_allclose(lines["level"], layer.levels)
    title = figure.get_suptitle()
    assert "4 bits" in title
    assert f"{layer.correlation:.5f}" in title


def test_density_title_names_the_layer():
    assert GAUSSIAN.path in plots.density_figure(GAUSSIAN).get_suptitle()
    assert "depthwise_convolution/kernel" in plots.density_figure(LAPLACE).get_suptitle()


def test_density_of_256_levels_and_odd_names():
    levels = np.linspace(-0.15, 0.15, 256)
    layer = dataclasses.replace(
        GAUSSIAN,
        path="a$b_{$/" + "deep/" * 60,
        levels=levels,
        boundaries=(levels[1:] + levels[:-1]) / 2,
        bits=8,
        method="my $own$ method, with quite a long name",
    )
    assert_well_laid_out(plots.density_figure(layer))


@pytest.mark.parametrize(
    ("points", "counts"),
    [([0.5], [7]), ([-1.0, 1.0], [5, 5]), ([0.0], [1]), ([1, 2, 3], [0, 4, 0])],
)
def test_density_of_few_values(points, counts):
    layer = LayerDensity("p", points, counts, [], [], 1, "linear", 1.0)
    edges, density = plots.rebin(layer)
    assert np.sum(density * np.diff(edges)) == pytest.approx(1)
    assert_well_laid_out(plots.density_figure(layer))


def test_rebinned_density_is_the_true_one():
    x = np.linspace(-0.18, 0.18, 4001)
    counts = np.round(1e7 * np.exp(-((x / 0.04) ** 2) / 2)).astype(int)
    edges, density = plots.rebin(dataclasses.replace(GAUSSIAN, points=x, counts=counts))
    centres = (edges[1:] + edges[:-1]) / 2
    truth = np.exp(-((centres / 0.04) ** 2) / 2) / (0.04 * np.sqrt(2 * np.pi))
    np.testing.assert_allclose(density, truth, rtol=2e-3)


def test_float16_points_do_not_beat_with_the_bins():
    """A flat density on float16's uneven points stays flat."""
    points = np.unique(np.linspace(0.25, 1, 40_000).astype(np.float16).astype(float))
    gaps = np.diff((points[1:] + points[:-1]) / 2, prepend=points[0], append=points[-1])
    layer = LayerDensity("p", points, np.round(1e8 * gaps).astype(int), [], [], 4, "linear", 1.0)
    _, density = plots.rebin(layer)
    inner = density[10:-10]
    assert inner.max() / inner.min() < 1.01


def test_occupied_points_alone_or_with_empty_ones():
    edges, density = plots.rebin(GAUSSIAN)
    assert np.sum(density * np.diff(edges)) == pytest.approx(1, abs=2e-3)
    assert len(edges) == 201


def test_outliers_leave_the_centre_visible_and_are_in_the_caption():
    edges, _ = plots.rebin(LAPLACE)
    assert edges[-1] < 1 < LAPLACE.points[-1]
    caption = plots.density_caption(LAPLACE)
    assert "200,001 weights of params/stage_3" in caption
    assert "0.069% of the weights (they span -0.6689 to 3.5)" in caption
    assert "levels." not in caption.partition("Outside")[2]
    far = dataclasses.replace(LAPLACE, levels=[-3.0, 0.0, 3.0])
    assert plots.density_caption(far).endswith("and 2 of the levels.")


def test_no_outliers_no_word_of_them():
    layer = LayerDensity("p", [-1, 0, 1], [1, 2, 1], [0], [-0.5, 0.5], 1, "linear", 0.9)
    assert "Outside" not in plots.density_caption(layer)
    assert " at 1 bit: 2 levels" in plots.density_caption(layer)


def test_near_levels_widen_the_range_and_far_ones_do_not():
    def range_with(level):
        edges, _ = plots.rebin(dataclasses.replace(GAUSSIAN, levels=[-level, level]))
        return edges[-1]

    assert range_with(0.16) > 0.16
    assert range_with(1.0) == range_with(0.01)


def test_correlation_figure():
    figure = plots.correlation_figure(RUN.results)
    assert_well_laid_out(figure)
    (axes,) = figure.axes
    assert axes.get_yscale() == "log"
    lines = {line.get_label(): line.get_xydata() for line in axes.get_lines()}
    assert list(lines) == list(METHODS)
    for method in ("optimal", "mixed bits"):
        chosen = [r for r in RUN.results if r.method == method]
        expected = [(r.bits_per_weight, 1 - r.mean_correlation**2) for r in chosen]
        np.testing.assert_allclose(lines[method], expected)
    assert lines["nf4"].shape == (1, 2)


def test_correlation_figure_leaves_out_what_is_exact():
    exact = dataclasses.replace(RUN.results[0], mean_correlation=1.0)
    figure = plots.correlation_figure([exact, RUN.results[1]])
    assert figure.axes[0].get_lines()[0].get_xydata().shape == (1, 2)
    with pytest.raises(InputError, match=r"nothing to draw.*mean_correlation"):
        plots.correlation_figure([exact])
    with pytest.raises(InputError, match="nothing to draw"):
        plots.correlation_figure([])


def test_fidelity_figure():
    figure = plots.fidelity_figure(RUN.results)
    assert_well_laid_out(figure)
    above, below = figure.axes
    assert below.get_yscale() == "log"
    assert [line.get_label() for line in above.get_lines()] == list(METHODS)
    linear = [r for r in RUN.results if r.method == "linear"]
    np.testing.assert_allclose(
        above.get_lines()[0].get_xydata(), [(r.bits_per_weight, r.agreement) for r in linear]
    )
    np.testing.assert_allclose(
        below.get_lines()[0].get_xydata(), [(r.bits_per_weight, r.kl) for r in linear]
    )


def test_fidelity_figure_of_what_was_measured():
    no_kl = [dataclasses.replace(r, kl=None) for r in RUN.results]
    assert not plots.fidelity_figure(no_kl).axes[1].get_lines()
    equal = [dataclasses.replace(r, kl=0.0) for r in RUN.results]
    assert not plots.fidelity_figure(equal).axes[1].get_lines()
    no_agreement = [dataclasses.replace(r, agreement=None) for r in RUN.results if not r.peer]
    figure = plots.fidelity_figure(no_agreement)
    assert len(figure.legends[0].get_texts()) == len(METHODS)
    with pytest.raises(InputError, match="agreement or kl"):
        plots.fidelity_figure([dataclasses.replace(r, agreement=None) for r in no_kl])


def test_accuracy_figure():
    figure = plots.accuracy_figure(RUN.results, 0.8125, 0.9625)
    assert_well_laid_out(figure)
    nf4 = [r for r in RUN.results if r.method == "nf4"]
    for axes, kind, level in zip(figure.axes, ("top5", "top1"), (0.9625, 0.8125), strict=True):
        lines = {line.get_label(): line.get_xydata() for line in axes.get_lines()}
        assert list(lines) == [*METHODS, "float network"]
        np.testing.assert_allclose(
            lines["nf4"], [(r.bits_per_weight, getattr(r, kind)) for r in nf4]
        )
        np.testing.assert_allclose(lines["float network"][:, 0], axes.get_xlim())
        np.testing.assert_allclose(lines["float network"][:, 1], level)


def test_accuracy_figure_of_what_was_measured():
    no_top1 = [dataclasses.replace(r, top1=None) for r in RUN.results]
    (axes,) = plots.accuracy_figure(no_top1).axes
    assert "top-5" in axes.get_ylabel()
    assert "float network" not in [line.get_label() for line in axes.get_lines()]
    with pytest.raises(InputError, match="top5 or top1"):
        plots.accuracy_figure([dataclasses.replace(r, top5=None) for r in no_top1])


@pytest.mark.parametrize(
    "draw", [plots.correlation_figure, plots.fidelity_figure, plots.accuracy_figure]
)
def test_peers_are_grey_points_with_names(draw):
    shown = plots.beside_peers(RUN.results)
    figure = draw(shown)
    assert_well_laid_out(figure)
    methods = [text.get_text() for text in figure.legends[0].get_texts()]
    families = [name.partition(",")[0] for name in PEERS]
    assert methods == ["optimal", "mixed bits", "mixed bits, entropy-coded", *families]
    for axes in figure.axes:
        points = np.concatenate([c.get_offsets() for c in axes.collections])
        assert len(points) == sum(r.peer for r in shown)
        colors = {to_hex(c.get_edgecolor()[0]) for c in axes.collections}
        assert colors == {method_styles.PEER_COLOR}
        names = [text.get_text() for text in axes.texts]
        assert len(names) >= 3
        assert set(names) <= {name.partition(", ")[2] for name in PEERS}


def test_names_cover_no_line_point_or_other_name():
    figure = plots.fidelity_figure(plots.beside_peers(RUN.results))
    figure.draw_without_rendering()
    for axes in figure.axes:
        boxes = [Text.get_window_extent(text) for text in axes.texts]
        points = [c.get_offsets() for c in axes.collections]
        points += [line.get_xydata() for line in axes.get_lines()]
        for box in boxes:
            assert not any(overlaps(box, other) for other in boxes if other is not box)
            assert not any(box.contains(*xy) for xy in axes.transData.transform(np.vstack(points)))


def test_beside_peers_are_free_levels_of_no_more_bits():
    shown = plots.beside_peers(RUN.results)
    assert [r for r in shown if r.peer] == [r for r in RUN.results if r.peer]
    others = [r for r in shown if not r.peer]
    assert {r.method for r in others} == {"optimal", "mixed bits", "mixed bits, entropy-coded"}
    assert max(r.bits for r in others) == 4
    assert plots.beside_peers(others) == []


def test_results_may_come_in_any_order():
    shuffled = np.random.default_rng(0).permutation(np.array(RUN.results, object)).tolist()
    lines = plots.correlation_figure(shuffled).axes[0].get_lines()
    assert all((np.diff(line.get_xdata()) > 0).all() for line in lines)


def test_a_method_looks_the_same_in_every_figure():
    def looks(figure):
        lines = figure.axes[0].get_lines()
        return {x.get_label(): (x.get_color(), x.get_marker(), x.get_linestyle()) for x in lines}

    assert looks(plots.correlation_figure(RUN.results)) == looks(plots.fidelity_figure(RUN.results))
    some = [r for r in RUN.results if r.method != "linear"]
    assert (
        looks(plots.correlation_figure(some)).items()
        <= looks(plots.correlation_figure(RUN.results)).items()
    )


def test_method_names_are_no_formulas():
    odd = [dataclasses.replace(r, method="a$b_{$") for r in RUN.results[:3]]
    assert_well_laid_out(plots.correlation_figure(odd))


def test_all_methods_look_different():
    styles = plots.method_styles([*METHODS, *(f"method {i}" for i in range(8))])
    assert len(set(styles.values())) == len(METHODS) + 8
    assert not {style.color for style in styles.values()} & {method_styles.PEER_COLOR}


def test_png_is_made_whole_and_the_same_each_time(tmp_path):
    image = pytest.importorskip("PIL.Image")
    first, second = (plots.png_bytes(plots.density_figure(GAUSSIAN)) for _ in range(2))
    assert first == second
    with image.open(io.BytesIO(first)) as picture:
        picture.load()
        assert picture.width == 920
    path = tmp_path / "a.png"
    plots.save_png(plots.density_figure(GAUSSIAN), path)
    assert path.read_bytes() == first
    with pytest.raises(FileExistsError):
        plots.save_png(plots.density_figure(GAUSSIAN), path)
    plots.save_png(plots.density_figure(LAPLACE), path, overwrite=True)
    assert path.read_bytes() != first


def test_the_users_matplotlib_is_left_alone_and_leaves_us_alone():
    code = """if True:
        import runpy, sys
        import matplotlib
        from corrq_jax import plots
        run = runpy.run_path(sys.argv[1])["synthetic_run"]()
        plain = plots.png_bytes(plots.correlation_figure(run.results))
        matplotlib.rcParams.update({"axes.facecolor": "red", "font.size": 30})
        before = dict(matplotlib.rcParams)
        assert plots.png_bytes(plots.correlation_figure(run.results)) == plain
        assert dict(matplotlib.rcParams) == before
    """
    script = str(pathlib.Path(__file__).with_name("synthetic_run.py"))
    command = [sys.executable, "-W", "error", "-c", code, script]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_pyplot_keeps_no_figure():
    pyplot = pytest.importorskip("matplotlib.pyplot")
    plots.density_figure(GAUSSIAN)
    assert pyplot.get_fignums() == []
