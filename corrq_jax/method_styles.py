"""How methods look in figures: a colour and a marker each, with or without matplotlib.

Colours are of Okabe and Ito's palette, which colour-blind readers can tell apart, and a brown, a
dark red and an indigo. A dashed line with open markers says that a grid was fitted to the plain
range. Peers are grey.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any


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
    "optimal, channel scales": MethodStyle("#56B4E9", "P"),
    "optimal + moments": MethodStyle("#E69F00", "v"),
    "mixed bits": MethodStyle("#009E73", "^"),
    "mixed bits, trellis-coded": MethodStyle("#6F4E37", "p"),
    "mixed bits, entropy-coded": MethodStyle("#882255", "X"),
    "mixed bits, entropy-coded trellis": MethodStyle("#332288", "H"),
}
PEER_COLOR = "#808080"
_PEER_MARKERS = {"int absmax": "x", "int min-max": "+", "NF4": "*", "HQQ": "s", "k-means": "o"}
_MORE_STYLES = tuple(
    MethodStyle(color, marker)
    for color, marker in (
        *(("#009E73", "<"), ("#E69F00", ">"), ("#56B4E9", "h"), ("#777777", "d")),
        *(("#009E73", "p"), ("#E69F00", "8"), ("#56B4E9", "D"), ("#777777", "X")),
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


def peer_family(name: str) -> str:
    """The first part of a peer's name: what it is."""
    return name.partition(", ")[0]


def peer_layout(name: str) -> str:
    """The rest of a peer's name: how it groups weights."""
    return name.partition(", ")[2]


def peer_marker(name: str) -> dict[str, Any]:
    """Keyword arguments for `Axes.scatter`: grey, a marker for each family of peers."""
    marker = _PEER_MARKERS.get(peer_family(name), "D")
    return {"marker": marker, "s": 22, "color": PEER_COLOR, "linewidths": 1.0, "zorder": 1.5}


def bits_text(bits: float) -> str:
    """A bit width in words, such as "1 bit" or "2.5 bits"."""
    return "1 bit" if bits == 1 else f"{bits:g} bits"
