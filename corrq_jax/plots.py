"""Figures of what quantization keeps of a network and of its layers, sized for a phone's width.

Every function returns a matplotlib `Figure` that no pyplot state knows of: `save_png` or
`png_bytes` renders it, and a notebook shows it. A method looks the same in every figure.
"""

from collections.abc import Callable, Iterator, Sequence

from corrq_jax.density_plots import density_caption, density_figure, rebin
from corrq_jax.errors import InputError, missing
from corrq_jax.layer_plots import layers_caption, layers_figure
from corrq_jax.method_styles import (
    MethodStyle,
    method_styles,
    peer_family,
    peer_layout,
    peer_marker,
)
from corrq_jax.plot_style import (
    label_points,
    legend_below,
    new_figure,
    png_bytes,
    save_png,
    styled,
)
from corrq_jax.results import Result

try:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, NullFormatter, PercentFormatter, ScalarFormatter
except ModuleNotFoundError as error:
    raise missing("matplotlib", "plots") from error

__all__ = [
    "accuracy_figure",
    "beside_peers",
    "correlation_figure",
    "density_caption",
    "density_figure",
    "fidelity_figure",
    "layers_caption",
    "layers_figure",
    "method_styles",
    "png_bytes",
    "rebin",
    "save_png",
]


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
        _share_axis(above)
        above.set_title("Same best class as the float network")
        above.set_ylabel("agreement   (higher is better)")
        below.set_title("Divergence from the float network's output")
        below.set_ylabel("KL, nats   (lower is better)")
        _bits_axis(below)
        legend_below(figure, max(map(_handles, (above, below)), key=len), 2)
        _name_peers(figure, above, results, lambda r: r.agreement)
        _name_peers(figure, below, results, lambda r: r.kl or None)
    return figure


def accuracy_figure(
    results: Sequence[Result], float_top1: float | None = None, float_top5: float | None = None
) -> Figure:
    """Draws top-5, and top-1, against stored bits, with the float network's as horizontal lines.

    Args:
        results: results in any order; those of a method make a line, those of peers are points.
        float_top1: the float network's top-1; None for no line.
        float_top5: its top-5.

    Raises:
        InputError: no result has a top-5 or top-1.
    """
    panels: list[tuple[str, Value, float | None]] = [
        ("top-5", lambda r: r.top5, float_top5),
        ("top-1", lambda r: r.top1, float_top1),
    ]
    panels = [p for p in panels if any(p[1](result) is not None for result in results)]
    if not panels:
        raise InputError("nothing to draw: give at least one Result with top5 or top1")
    with styled():
        figure = new_figure(1.2 + 3 * len(panels))
        rows = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
        for axes, (name, value, _) in zip(rows, panels, strict=True):
            _draw(axes, results, value)
            _share_axis(axes)
            axes.set_title(f"Right answers, {name}")
            axes.set_ylabel(f"{name}   (higher is better)")
        _bits_axis(rows[-1])
        for axes, (_, _, level) in zip(rows, panels, strict=True):
            _draw_level(axes, level)
        legend_below(figure, max(map(_handles, rows), key=len), 2)
        for axes, (_, value, _) in zip(rows, panels, strict=True):
            _name_peers(figure, axes, results, value)
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


def _share_axis(axes: Axes) -> None:
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.set_ylim(-0.03, 1.03)


def _draw_level(axes: Axes, level: float | None) -> None:
    """The float network's value; a line between the limits, as names of peers keep off lines."""
    if level is not None:
        style = {"color": "#444444", "linewidth": 1.0, "linestyle": ":", "scalex": False}
        axes.plot(axes.get_xlim(), [level, level], label="float network", **style)


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
