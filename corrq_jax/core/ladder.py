"""Many quantizers of one density in one call, from coarse to fine: what a bit budget chooses from.

`by_width` has the best quantizer of every number of bits: the table of one dynamic programming
(`corrq_jax.core.optimal`) holds them all. `by_step` has quantizers for entropy-coded files, whose
codes take about as many bits as the entropy of the levels.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from corrq_jax.core import correlation as corr
from corrq_jax.core.compiling import each, jit_search
from corrq_jax.core.density import BINS, Density, bins_below, is_binned, snap
from corrq_jax.core.optimal import lloyd, program_table, reduce, trace_back

LEVELS = 256
POINTS = 512
"""Points of the reduced density: two a level at 8 bits, where Lloyd's iteration does the rest."""
STEPS = tuple(2.0 ** (k / 4) for k in range(-22, 8))
"""Initial steps of `by_step`, in standard deviations: 0.02 to 3.4, for about 7.5 to 0.5 bits."""
UNIFORM = 32
"""So many levels on each side of the median are equally spaced at first, at least."""
RATE_ITERATIONS = 40
TRADE = np.log(2) / 6
"""Squared steps that a bit is worth: at high rate ``D = step**2 / 12`` falls by 2 ln(2) D a bit."""


class Ladder(NamedTuple):
    """Quantizers of one density, in normalized units; the first axis counts them.

    Attributes:
        boundaries: float32[n, LEVELS - 1], ascending; inf beyond the last level.
        values: float64[n, LEVELS], the means of the cells.
        mass: float64[n, LEVELS], weights in each cell; 0 for levels that are not there.
        noise: float64[n], ``1 - rho**2``.
    """

    boundaries: jax.Array
    values: jax.Array
    mass: jax.Array
    noise: jax.Array


def _finish(density: Density, m: corr.Moments, boundaries: jax.Array) -> Ladder:
    """Cells, values and noise for boundaries float[LEVELS - 1]."""
    boundaries = boundaries.astype(jnp.float32)
    used = jnp.isfinite(boundaries)
    # Sorted weights can be closer than a bin, and small tensors need their exact optimum.
    boundaries = jnp.where(used & is_binned(density), snap(boundaries), boundaries)
    edges = jnp.where(used, corr.bin_edges(m, boundaries), BINS)
    c = corr.cells(m.sums, edges)
    values = _exact(density, edges, c.means(m, m.mean))
    return Ladder(boundaries, values, c.mass, corr.noise_of_means(m, c))


def _exact(density: Density, edges: jax.Array, means: jax.Array) -> jax.Array:
    """Means without rounding where a cell is a single point, so that a level of zeros is zero."""
    present = density.counts > 0
    count = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(present, dtype=jnp.int32)])
    last = jax.lax.cummax(jnp.where(present, density.points, -jnp.inf))
    ends = jnp.concatenate([edges, jnp.full(1, BINS, edges.dtype)])
    points = jnp.diff(count[ends], prepend=0)
    return jnp.where(points == 1, last[jnp.maximum(ends - 1, 0)], means)


def by_width(density: Density) -> Ladder:
    """The quantizers of largest correlation with 2, 4, 8, ..., 256 levels.

    Args:
        density: at least two distinct points.
    """
    m = corr.moments(density)
    edges, sums = reduce(density, m, POINTS)
    table, cost = program_table(sums, LEVELS)
    starts = jax.vmap(partial(trace_back, table, cost))(2 ** jnp.arange(1, 9))

    def one(start: jax.Array) -> Ladder:
        values = jnp.sort(lloyd(m, start))
        middle = (values[1:] + values[:-1]) / 2
        return _finish(density, m, jnp.where(start < BINS, middle, jnp.inf))

    return jax.vmap(one)(edges[starts])


def by_step(density: Density) -> Ladder:
    """Entropy-constrained quantizers, one for each of `STEPS`.

    From a uniform grid, its tails stretched to the last weight where they would end before it, the
    iteration of Chou, Lookabaugh and Gray (IEEE Trans. ASSP 37(1), 1989): values are the means of
    their cells; a weight goes to the level k with the smallest ``(x - v_k)**2 + lambda r_k``, where
    ``r_k = -log2 p_k`` are the bits of the level. lambda is
    `TRADE` squared steps. Levels that end up without weights are gone.

    Args:
        density: at least two distinct points.
    """
    m = corr.moments(density)
    sums = corr.by_key(m)
    deviation = jnp.sqrt(m.square / m.total)
    half = jnp.searchsorted(m.sums[1:, 0], m.total / 2)
    median = m.points[half].astype(jnp.float64)
    farthest = jnp.where(density.counts > 0, jnp.abs(m.points - median), 0).max()

    def one(step: jax.Array) -> Ladder:
        step = step * deviation
        trade = TRADE * step**2
        # A level on the median keeps a peak there, such as many weights of zero, in one cell.
        index = jnp.arange(LEVELS - 1) - LEVELS // 2 + 0.5
        first = median + jnp.sign(index) * _stretched(jnp.abs(index), step, farthest)

        def iterate(_: int, boundaries: jax.Array) -> jax.Array:
            edges = jnp.where(jnp.isfinite(boundaries), bins_below(boundaries), BINS)
            return _constrained(m, corr.cells(sums, edges), trade)

        boundaries = jax.lax.fori_loop(0, RATE_ITERATIONS, iterate, first)
        return _finish(density, m, boundaries)

    return jax.vmap(one)(jnp.asarray(STEPS))


def _stretched(index: jax.Array, step: jax.Array, farthest: jax.Array) -> jax.Array:
    """Distances of boundaries from the median: equal steps, then growing ones if they are needed.

    With steps that are fine next to an outlier, equal ones would leave it, and all the tail, in
    the outer cells, from which the iteration does not get away.
    """
    even = step * UNIFORM
    growth = (farthest / even) ** ((index - UNIFORM) / (LEVELS // 2 - UNIFORM))
    return jnp.where(index > UNIFORM, jnp.maximum(even * growth, step * index), step * index)


def _constrained(m: corr.Moments, c: corr.Cells, trade: jax.Array) -> jax.Array:
    """Boundaries where two neighbouring levels cost the same; levels without weights move last."""
    order = jnp.argsort(c.mass <= 0, stable=True)
    mass = c.mass[order]
    values = c.means(m, m.mean)[order]
    rate = -jnp.log2(jnp.maximum(mass, 1e-300) / m.total)
    gap = jnp.diff(values)
    middle = (values[1:] + values[:-1]) / 2 + trade * jnp.diff(rate) / (
        2 * jnp.where(gap > 0, gap, 1)
    )
    return jnp.where(mass[1:] > 0, jax.lax.cummax(middle), jnp.inf)


@jit_search
def ladders_by_width(density: Density, count: Any) -> Ladder:
    """`by_width` over the leading axis of a batch of densities, the first ``count`` of it."""
    with jax.enable_x64(True):
        return each(by_width, count, density)


@jit_search
def ladders_by_step(density: Density, count: Any) -> Ladder:
    """`by_step` over the leading axis of a batch of densities, the first ``count`` of it."""
    with jax.enable_x64(True):
        return each(by_step, count, density)
