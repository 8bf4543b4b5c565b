"""How figures are drawn: one style sheet, texts that cover nothing, PNG files."""

import contextlib
import io
import itertools
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from corrq_jax.atomic import atomic_write
from corrq_jax.errors import missing
from corrq_jax.method_styles import PEER_COLOR

try:
    import matplotlib.style
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.text import Text
    from matplotlib.transforms import Bbox
except ModuleNotFoundError as error:
    raise missing("matplotlib", "plots") from error

_WIDTH = 4.6  # Inches: at this width 9-point text is about 10 pixels high on a phone.
_DPI = 200

_RC: dict[str, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#555555",
    "axes.grid": True,
    "axes.labelsize": 9,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "figure.facecolor": "white",
    "font.family": "DejaVu Sans",
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "savefig.bbox": "standard",
    "savefig.facecolor": "auto",
    "text.usetex": False,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
}


# Where a text may be, as seen from its point, with its alignment.
_SIDES = {
    (1.0, 0.0): ("left", "center"),
    (-1.0, 0.0): ("right", "center"),
    (0.7, 0.7): ("left", "bottom"),
    (0.7, -0.7): ("left", "top"),
    (-0.7, 0.7): ("right", "bottom"),
    (-0.7, -0.7): ("right", "top"),
}
_DISTANCES = (5, 11)  # points


def styled() -> contextlib.AbstractContextManager[None]:
    """Within it figures are made in this package's style, whatever the user's settings are."""
    return matplotlib.style.context(["default", _RC])


def new_figure(height: float) -> Figure:
    """An empty figure, 4.6 inches wide and `height` inches high, unknown to pyplot."""
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def legend_below(figure: Figure, handles: Sequence[Any], columns: int) -> None:
    """Puts the legend under the axes, where it covers no data."""
    legend = figure.legend(handles=list(handles), loc="outside lower center", ncols=columns)
    for text in legend.get_texts():
        text.set_parse_math(False)  # A name with two dollar signs is no formula.


def label_points(
    figure: Figure, axes: Axes, points: Sequence[tuple[float, float, str, str]]
) -> None:
    """Writes texts beside points as far as there is room, off lines and other points.

    Limits and layout have to be final.

    Args:
        figure: the figure.
        axes: its axes.
        points: x, y, a name, and the text; each name gets its text once, at its first free point.
    """
    figure.draw_without_rendering()
    inside = axes.get_window_extent()
    taken = [_around(xy, 4 * figure.dpi / 72) for xy in _occupied(axes, points)]
    named: set[str] = set()

    def is_free(box: Bbox) -> bool:
        within = inside.contains(box.x0, box.y0) and inside.contains(box.x1, box.y1)
        return within and not any(map(box.overlaps, taken))

    for x, y, name, words in points:
        box = None if name in named else _place(axes, (x, y), words, is_free)
        if box is not None:
            taken.append(box)
            named.add(name)


def _place(
    axes: Axes, point: tuple[float, float], words: str, is_free: Callable[[Bbox], bool]
) -> Bbox | None:
    """Writes beside a point where it is free, as near as can be; the text's box, if any."""
    for distance, (side, aligned) in itertools.product(_DISTANCES, _SIDES.items()):
        leader = {"arrowstyle": "-", "color": PEER_COLOR, "linewidth": 0.4, "shrinkB": 2}
        text = axes.annotate(
            *(words, point, (distance * side[0], distance * side[1])),
            **{"textcoords": "offset points", "ha": aligned[0], "va": aligned[1], "fontsize": 6.5},
            **{"color": "#444444", "parse_math": False},
            arrowprops={**leader, "shrinkA": 0} if distance > _DISTANCES[0] else None,
        )
        text.set_in_layout(False)
        text.get_window_extent()  # brings the text's own box, without the leader, up to date
        box = Text.get_window_extent(text)
        if is_free(box):
            return box
        text.remove()
    return None


def _occupied(axes: Axes, points: Sequence[tuple[float, float, str, str]]) -> np.ndarray:
    """float[count, 2]: pixels of the points, and of all lines at short distances."""
    transform = axes.transData.transform
    found = [transform([(x, y) for x, y, _, _ in points] or np.zeros((0, 2)))]
    for line in axes.get_lines():
        corners = transform(line.get_xydata())
        found.append(corners)
        steps = np.linspace(0, 1, 60)[:, None]
        found += [start + steps * (end - start) for start, end in itertools.pairwise(corners)]
    return np.concatenate(found)


def _around(centre: np.ndarray, size: float) -> Bbox:
    return Bbox.from_bounds(centre[0] - size / 2, centre[1] - size / 2, size, size)


def png_bytes(figure: Figure) -> bytes:
    """The figure as a PNG file's bytes, 200 dots an inch; equal figures give equal bytes."""
    out = io.BytesIO()
    with styled():
        figure.savefig(out, format="png", dpi=_DPI, metadata={"Software": None})
    return out.getvalue()


def save_png(figure: Figure, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Writes the figure as a PNG file, whole or not at all.

    Raises:
        FileExistsError: the file exists and `overwrite` is False.
        OSError: as `atomic_write`.
    """
    data = png_bytes(figure)
    with atomic_write(path, overwrite=overwrite) as temporary:
        temporary.write_bytes(data)
