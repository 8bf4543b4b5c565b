"""How figures look: one style sheet, a colour and a marker a method, PNG files.

Colours are of Okabe and Ito's palette, which colour-blind readers can tell apart. The colour says
the grid; a dashed line with open markers says that it was fitted to the plain range of weights.
"""

import contextlib
import dataclasses
import io
import os
from collections.abc import Iterable, Sequence
from typing import Any

from corrq_jax.atomic import atomic_write
from corrq_jax.errors import missing

try:
    import matplotlib.style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
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


@dataclasses.dataclass(frozen=True)
class MethodStyle:
    """How a method is drawn: a colour, a marker, and whether its line is dashed."""

    color: str
    marker: str
    dashed: bool = False

    def line(self) -> dict[str, Any]:
        """Keyword arguments for `Axes.plot`."""
        return {
            "color": self.color,
            "marker": self.marker,
            "markersize": 10 if self.marker == "*" else 5,
            "linewidth": 1.5,
            "linestyle": "--" if self.dashed else "-",
            "markerfacecolor": "white" if self.dashed else self.color,
        }


_STYLES = {
    "linear": MethodStyle("#0072B2", "o", dashed=True),
    "linear + correlation": MethodStyle("#0072B2", "o"),
    "exponential": MethodStyle("#D55E00", "s", dashed=True),
    "exponential + correlation": MethodStyle("#D55E00", "s"),
    "optimal": MethodStyle("#000000", "D"),
    "nf4": MethodStyle("#CC79A7", "*"),
}
_MORE_STYLES = tuple(
    MethodStyle(color, marker)
    for color, marker in (
        *(("#009E73", "^"), ("#E69F00", "v"), ("#56B4E9", "P"), ("#777777", "X")),
        *(("#009E73", "<"), ("#E69F00", ">"), ("#56B4E9", "h"), ("#777777", "d")),
    )
)


def method_styles(methods: Iterable[str]) -> dict[str, MethodStyle]:
    """A style a method: fixed for the package's own, one of eight more for others, in order."""
    styles = {}
    others = 0
    for method in dict.fromkeys(methods):
        styles[method] = _STYLES.get(method) or _MORE_STYLES[others % len(_MORE_STYLES)]
        others += method not in _STYLES
    return styles


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
