"""Level grids: boundaries and values from two parameters.

A `Grid` maps two search coordinates in [0, 1] to its own parameters (`Grid.place`), and those to
cell boundaries and on-grid values. The search for the largest correlation sees coordinates only, so
that it serves every grid. Everything is in normalized units; `Span.origin` is where weight zero
lies in them.

A new two-parameter grid is one `Grid` and one entry in `GRIDS` (docs/extend/grid.md).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

RANGE_OCTAVES = (0.2, 30.0)
"""Largest over smallest magnitude of an exponential grid, log2, that the search covers."""


class Span(NamedTuple):
    """Where the weights of a tensor lie, scalars in normalized units.

    Attributes:
        lo: the smallest weight.
        hi: the largest weight.
        origin: weight zero.
        median: the median weight.
        spread: the typical distance of the weights from their median.
        magnitude: the typical distance of the weights from zero.
    """

    lo: jax.Array
    hi: jax.Array
    origin: jax.Array
    median: jax.Array
    spread: jax.Array
    magnitude: jax.Array


class Grid(NamedTuple):
    """A two-parameter family of quantizers with ``levels`` levels.

    Attributes:
        place: ``(u1, u2, span, levels) -> (p1, p2)``, coordinates in [0, 1] to parameters.
        boundaries: ``(p1, p2, span, levels) -> float64[levels - 1]``, ascending.
        values: ``(p1, p2, span, levels) -> float64[levels]``, the values on the grid.
        locate: ``(position, span) -> u1``, the inverse of ``place``: the coordinate that puts the
            outermost boundary at a position.
        ordered: whether both coordinates are positions, of which only ``u1 < u2`` makes sense.
        plain: ``(u, span, levels) -> (boundaries, values)`` of the plain baseline, whose range is
            that of the weights; ``u`` in [0, 1] is what the range leaves open, if anything.
        plain_is_fitted: whether it leaves something open: ``u`` is then chosen by correlation.
    """

    place: Callable
    boundaries: Callable
    values: Callable
    locate: Callable
    ordered: bool
    plain: Callable
    plain_is_fitted: bool


def level_count(bits: int, zero: bool = False) -> int:
    """2**b levels, one less with a zero level (an odd number of levels is symmetric)."""
    return 2**bits - int(zero)


def _stretch(u, reach, typical):
    """[0, 1] to [0, reach], geometric from about ``typical / 4`` on, linear below.

    However far an outlier lies, the coordinate resolves the bulk of the weights and the outlier.
    """
    octaves = _octaves(reach, typical)
    return reach * jnp.expm1(u * octaves * jnp.log(2.0)) / (2.0**octaves - 1)


def _octaves(reach, typical):
    return jnp.clip(jnp.log2(4 * reach / jnp.maximum(typical, 1e-30 * reach)), 2.0, 60.0)


def _unstretch(distance, reach, typical):
    """The inverse of `_stretch`."""
    octaves = _octaves(reach, typical)
    return jnp.log2(1 + distance / reach * (2.0**octaves - 1)) / octaves


def place_linear(u1, u2, span: Span, levels: int):
    """Coordinates to the lowest and the highest boundary; 1/2 is the median."""
    del levels

    def position(u):
        side = 2 * u - 1
        reach = jnp.where(side > 0, span.hi - span.median, span.median - span.lo)
        return span.median + jnp.sign(side) * _stretch(jnp.abs(side), reach, span.spread)

    return position(u1), position(u2)


def locate_linear(position, span: Span):
    """The coordinate of a position within the weights: the inverse of `place_linear`."""
    distance = position - span.median
    reach = jnp.where(distance > 0, span.hi - span.median, span.median - span.lo)
    side = _unstretch(jnp.abs(distance), jnp.maximum(reach, 1e-30), span.spread)
    return 0.5 + 0.5 * jnp.sign(distance) * side


def linear_boundaries(first, last, span: Span, levels: int):
    """Equal intervals from the first boundary to the last, the outer two cells open."""
    del span
    step = (last - first) / max(levels - 2, 1)
    return first + step * jnp.arange(levels - 1, dtype=first.dtype)


def linear_values(first, last, span: Span, levels: int):
    """The middles of the intervals; the outer two continue the grid."""
    del span
    step = (last - first) / max(levels - 2, 1)
    return first + step * (jnp.arange(levels, dtype=first.dtype) - 0.5)


def plain_linear(u, span: Span, levels: int):
    """Equal intervals from the smallest weight to the largest, values in their middles."""
    del u
    edges = span.lo + (span.hi - span.lo) * (jnp.arange(levels + 1) / levels)
    return edges[1:-1], midpoints(edges)


def place_exponential(u1, u2, span: Span, levels: int):
    """Coordinates to the outermost boundary t and the ratio q of neighbouring magnitudes."""
    return _stretch(u1, largest_magnitude(span), span.magnitude), place_ratio(u2, levels)


def locate_exponential(position, span: Span):
    """The coordinate of the outermost boundary: the inverse of `place_exponential`."""
    distance = jnp.abs(position - span.origin)
    return _unstretch(distance, largest_magnitude(span), span.magnitude)


def place_ratio(u, levels: int):
    """A coordinate to the ratio q: even steps in the logarithm of the grid's range in octaves."""
    least, most = RANGE_OCTAVES
    octaves = least * (most / least) ** u
    return 2.0 ** (-octaves / max(levels // 2 - 1, 1))


def exponential_boundaries(t, q, span: Span, levels: int):
    """``+-t q**i`` between magnitudes; 0 between the signs, or two boundaries around a zero level.

    With m magnitudes a side, ``s q**i`` and ``s q**(i + 1)`` meet at ``t q**i`` where
    ``t = s (1 + q) / 2``. An odd number of levels has a zero level, which meets ``s q**(m - 1)`` at
    half of it, ``t q**(m - 1) / (1 + q)``.
    """
    side = levels // 2
    positive = t * _powers(q, side - 1)
    if levels % 2:
        inner = t * _powers(q, side)[0] / (1 + q) if side > 1 else t
        positive = jnp.concatenate([inner[None], positive])
        middle = []
    else:
        middle = [jnp.zeros(1, t.dtype)]
    return jnp.concatenate([-positive[::-1], *middle, positive]) + span.origin


def exponential_values(t, q, span: Span, levels: int):
    """``+-s q**i`` with ``s = 2 t / (1 + q)``, and 0 if the number of levels is odd."""
    return magnitudes(2 * t / (1 + q), q, levels) + span.origin


def plain_exponential(u, span: Span, levels: int):
    """``+-s q**i`` with s the largest magnitude; u is the ratio's coordinate."""
    largest = largest_magnitude(span)
    values = magnitudes(largest, place_ratio(u, levels), levels) + span.origin
    return midpoints(values), values


def largest_magnitude(span: Span):
    """The largest distance of a weight from zero."""
    return jnp.maximum(span.hi - span.origin, span.origin - span.lo)


def magnitudes(s, q, levels: int):
    """``+-s q**i``, ascending, and 0 in the middle if the number of levels is odd."""
    positive = s * _powers(q, levels // 2)
    return jnp.concatenate([-positive[::-1], jnp.zeros(levels % 2, s.dtype), positive])


def _powers(q, count: int):
    """``q**(count - 1), ..., q, 1``."""
    return jnp.exp2(jnp.log2(q) * jnp.arange(count - 1, -1, -1, dtype=q.dtype))


GRIDS = {
    "linear": Grid(
        place=place_linear,
        boundaries=linear_boundaries,
        values=linear_values,
        locate=locate_linear,
        ordered=True,
        plain=plain_linear,
        plain_is_fitted=False,
    ),
    "exponential": Grid(
        place=place_exponential,
        boundaries=exponential_boundaries,
        values=exponential_values,
        locate=locate_exponential,
        ordered=False,
        plain=plain_exponential,
        plain_is_fitted=True,
    ),
}


def midpoints(values: jax.Array) -> jax.Array:
    """Boundaries halfway between ascending values: nearest-neighbour assignment."""
    return (values[1:] + values[:-1]) / 2


def _nf4() -> np.ndarray:
    """NormalFloat-4 (Dettmers et al., QLoRA, arXiv:2305.14314, appendix E): 16 levels in [-1, 1].

    Quantiles of the normal distribution at 8 (positive, zero-sided) and 9 equally spaced
    probabilities up to 1 - (1/30 + 1/32) / 2 = 0.9677083, scaled to end at 1.
    """
    from statistics import NormalDist

    quantile = NormalDist().inv_cdf
    offset = 0.9677083
    positive = [quantile(p) for p in np.linspace(offset, 0.5, 9)[:-1]]
    negative = [-quantile(p) for p in np.linspace(offset, 0.5, 8)[:-1]]
    levels = np.sort(np.array([*negative, 0.0, *positive]))
    return levels / levels.max()


NF4 = _nf4()
"""float64[16]: the levels of NF4 for a largest magnitude of 1."""
