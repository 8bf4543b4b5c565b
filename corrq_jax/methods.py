"""The ways to quantize that are compared, by the names that tables and figures show."""

import dataclasses
from collections.abc import Iterable

from corrq_jax.config import Config
from corrq_jax.errors import InputError
from corrq_jax.peers import PEERS, Peer


@dataclasses.dataclass(frozen=True)
class Method:
    """A way to quantize, by the name that tables and figures show.

    Attributes:
        name: the name.
        grid: as in `corrq_jax.Config`, like fit and levels.
        fit: see there.
        levels: see there.
        bits: the widths that are compared; with mixed bits targets of stored bits a weight.
        coding: as in `corrq_jax.Config`.
        granularity: "tensor", "channel" or a number of weights.
        mixed: whether each tensor has bits of its own, so that all together meet the target.
        match: whether moments are matched afterwards (`corrq_jax.moments`).
    """

    name: str
    grid: str
    fit: str
    levels: str
    bits: tuple[float, ...] = tuple(range(1, 9))
    coding: str = "packed"
    granularity: str | int = "tensor"
    mixed: bool = False
    match: bool = False

    def config(self, bits: float) -> Config:
        """The configuration for a bit width or, with mixed bits, for a target."""
        return Config(
            bits=None if self.mixed else int(bits),
            grid=self.grid,
            fit=self.fit,
            levels=self.levels,
            coding=self.coding,
            granularity=self.granularity,
            bits_per_weight=bits if self.mixed else None,
        )

    def has(self, bits: float) -> bool:
        """Whether it can be compared at these bits; mixed ones at any fraction."""
        return bits in self.bits or (self.mixed and bits != int(bits))

    @property
    def is_plain(self) -> bool:
        """Whether a tensor has one table of levels, and nothing but its bits counts for it."""
        return not (self.mixed or self.match) and self.granularity == "tensor"


_OPTIMAL = ("optimal", "correlation", "mean")

METHODS = (
    Method("linear", "linear", "range", "grid"),
    Method("exponential", "exponential", "range", "grid"),
    Method("linear + correlation", "linear", "correlation", "mean"),
    Method("exponential + correlation", "exponential", "correlation", "mean"),
    Method("optimal", *_OPTIMAL),
    Method("nf4", "nf4", "range", "grid", bits=(4,)),
    Method("optimal, channel scales", *_OPTIMAL, granularity="channel"),
    Method("optimal + moments", *_OPTIMAL, match=True),
    Method("mixed bits", *_OPTIMAL, bits=(2, 2.5, 3, 3.5, 4), mixed=True, match=True),
    Method(
        *("mixed bits, trellis-coded", *_OPTIMAL),
        bits=(1.5, 2, 2.5, 3, 3.5, 4),
        coding="trellis",
        mixed=True,
        match=True,
    ),
    Method(
        *("mixed bits, entropy-coded", *_OPTIMAL),
        bits=(1.5, 2, 2.5, 3, 3.5, 4),
        coding="entropy",
        mixed=True,
        match=True,
    ),
    Method(
        *("mixed bits, entropy-coded trellis", *_OPTIMAL),
        bits=(1.5, 2, 2.5, 3, 3.5, 4),
        coding="entropy-trellis",
        mixed=True,
        match=True,
    ),
)
"""The paper's four methods (Pushkareva and Karandashev, 2020), the optimum, NF4, and what goes
beyond one table of levels a tensor."""

PEER_BITS = (2, 3, 4)

Cell = tuple[Method | Peer, float]
"""A method, and the bits that it is tried at."""


def methods(names: Iterable[str]) -> tuple[Method, ...]:
    """Methods by name.

    Raises:
        InputError: there is no such method.
    """
    known = {method.name: method for method in METHODS}
    names = tuple(names)
    for name in names:
        if name not in known:
            raise InputError(f"there is no method {name!r}; choose from {'; '.join(known)}")
    return tuple(known[name] for name in names)


def without_wiring(chosen: Iterable[Method]) -> tuple[Method, ...]:
    """The methods as they are for weights alone, whose network is not known.

    No moments are matched then. Methods that differ from another in that only are left out.
    """
    return tuple(
        dataclasses.replace(method, match=False)
        for method in chosen
        if method.mixed or not method.match
    )


def cells(chosen: Iterable[Method], bits: Iterable[float]) -> list[Cell]:
    """Every method at every bit width that it has, most bits first.

    Args:
        chosen: the methods.
        bits: the widths, in any order.

    Returns:
        The cells, method by method.

    >>> [bits for _, bits in cells(methods(["nf4", "optimal"]), (3, 4))]
    [4, 4, 3]
    """
    order = sorted(set(bits), reverse=True)
    return [(method, b) for method in chosen for b in order if method.has(b)]


def short_cells() -> list[Cell]:
    """A comparison of all methods that takes minutes: fewer widths, each method where it tells."""
    plain = [method for method in METHODS if method.is_plain]
    mixed = [method for method in METHODS if method.mixed]
    others = [method for method in METHODS if not (method.is_plain or method.mixed)]
    return cells(plain, (8, 5, 4, 3, 2)) + cells(others, (4, 3)) + cells(mixed, (4, 3, 2.5, 2))


def peer_cells(bits: Iterable[int] = PEER_BITS) -> list[Cell]:
    """Every peer at every bit width that it has, most bits first."""
    order = sorted(set(bits), reverse=True)
    return [(peer, b) for peer in PEERS for b in order if b in peer.bits]
