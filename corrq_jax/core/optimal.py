"""Free levels: the quantizer with the largest correlation of all, exact one-dimensional k-means.

With both boundaries and values free, maximal rho is minimal squared error (docs/method.md, section
2.3), and every stationary point is a Lloyd-Max quantizer, of which real layers have several. The
global one is found in three steps: the density is reduced to a few hundred points, dense where
levels will be; dynamic programming on them is exact; Lloyd's iteration then moves the boundaries on
the full density, within the basin that the programming chose.
"""

from typing import Any

import jax
import jax.numpy as jnp

from corrq_jax.core import correlation as corr
from corrq_jax.core.density import BINS, Density
from corrq_jax.core.search import argmin

LLOYD_ITERATIONS = 400
"""More than the slowest layer needed at 8 bits; most stop by themselves within 50."""


def reduced_size(levels: int) -> int:
    """Points of the reduced density: 1,024 leave 4 a level at 8 bits, where Lloyd does the rest."""
    return 512 if levels <= 16 else 1024


def reduction_edges(density: Density, size: int) -> jax.Array:
    """Bin edges int32[size + 1] that divide the density into at most ``size`` points.

    A point of mass n in a gap of width h gets the share ``n**(1/3) h**(2/3)``: the density to the
    power 1/3, at which optimal levels are spaced (Panter and Dite, 1951). A share is capped at one
    whole point, so that a tensor of few distinct weights is not reduced at all.
    """
    x = density.points.astype(jnp.float64)
    occupied = density.counts > 0
    before = jnp.roll(jax.lax.cummax(jnp.where(occupied, x, -jnp.inf)), 1).at[0].set(-jnp.inf)
    after = jnp.roll(jax.lax.cummin(jnp.where(occupied, x, jnp.inf), reverse=True), -1)
    after = after.at[-1].set(jnp.inf)
    left, right = x - before, after - x
    left, right = jnp.where(left < jnp.inf, left, right), jnp.where(right < jnp.inf, right, left)
    gap = jnp.where(jnp.isfinite(left + right), left + right, 0)
    share = jnp.where(occupied, (density.counts * gap**2) ** (1 / 3), 0)

    def adjust(_, unit):
        return unit * jnp.minimum(share / unit, 1).sum() / (size - 1)

    unit = jax.lax.fori_loop(0, 20, adjust, share.sum() / (size - 1))
    few = occupied.sum() <= size
    points = jnp.where(few, occupied, jnp.minimum(share / jnp.maximum(unit, 1e-300), 1))
    position = jnp.cumsum(points)
    edges = jnp.searchsorted(
        position, jnp.arange(1, size) + jnp.where(few, -0.5, 0.0), method="scan"
    )
    # With few points an edge lies after the point that completes it.
    edges = jnp.where(few, edges + 1, edges)
    ends = jnp.array([0, BINS])
    return jnp.concatenate([ends[:1], jnp.minimum(edges, BINS), ends[1:]]).astype(jnp.int32)


def program_table(sums: jax.Array, levels: int) -> tuple[jax.Array, jax.Array]:
    """The table of exact dynamic programming over the edges of a reduced density.

    Args:
        sums: float64[points + 1, 3], running sums of count, count * x and count * x**2.
        levels: the largest number of cells.

    Returns:
        table: float32[levels - 1, points + 1], in row i the smallest squared error of i + 1 cells
            that end at each edge.
        cost: float32[points + 1, points + 1], the squared error of one cell between two edges.
    """
    mass, moment, square = (column[None, :] - column[:, None] for column in sums.T)
    cost = jnp.maximum(square - moment**2 / jnp.maximum(mass, 1), 0).astype(jnp.float32)
    upper = jnp.arange(sums.shape[0])
    cost = jnp.where(upper[:, None] <= upper[None, :], cost, jnp.inf)

    def extend(best, _):
        return (best[:, None] + cost).min(axis=0), best

    _, table = jax.lax.scan(extend, cost[0], length=levels - 1)
    return table, cost


def trace_back(table: jax.Array, cost: jax.Array, levels: Any) -> jax.Array:
    """The best cells, at most one more than a `program_table` has rows.

    Returns:
        int32[rows], ascending indices of the ``levels - 1`` edges between them, then of the last.
    """

    def step_back(end, row):
        number, best = row
        start = jnp.where(number < levels - 1, argmin(best + cost[:, end]), end)
        return start, start

    rows, last = jnp.arange(len(table)), jnp.int32(cost.shape[0] - 1)
    return jax.lax.scan(step_back, last, (rows, table), reverse=True)[1]


def lloyd(m: corr.Moments, edges: jax.Array) -> jax.Array:
    """Lloyd's iteration from bin edges int32[levels - 1]; returns float64[levels] cell means.

    Edges of BINS, behind all weights, stay there: fewer levels in an array of one size.
    """

    def means(edges):
        c = corr.cells(m.sums, edges)
        # An empty cell keeps its place: the value of its lower neighbour's boundary.
        at = jnp.concatenate([edges, edges[-1:]])
        return c.means(m, m.points[jnp.minimum(at, BINS - 1)].astype(jnp.float64))

    def step(state):
        iteration, edges, _ = state
        values = means(edges)
        moved = corr.bin_edges(m, (values[1:] + values[:-1]) / 2)
        return iteration + 1, jnp.where(edges < BINS, moved, BINS), edges

    def moving(state):
        iteration, edges, before = state
        return (iteration < LLOYD_ITERATIONS) & (edges != before).any()

    _, edges, _ = jax.lax.while_loop(moving, step, step((0, edges, edges)))
    return means(edges)


def reduce(density: Density, m: corr.Moments, size: int) -> tuple[jax.Array, jax.Array]:
    """Edges int32[size + 1] of a reduced density, and its running sums float64[size + 1, 3]."""
    edges = reduction_edges(density, size)
    deviation = density.points.astype(jnp.float64) - m.mean
    square = jnp.cumsum(density.counts * deviation**2)
    square = jnp.concatenate([jnp.zeros(1), square])[edges]
    return edges, jnp.concatenate([m.sums[edges], square[:, None]], axis=1)


def optimal_values(density: Density, m: corr.Moments, levels: int) -> jax.Array:
    """float64[levels], ascending: the values of the best quantizer; boundaries halfway between."""
    edges, sums = reduce(density, m, reduced_size(levels))
    return jnp.sort(lloyd(m, edges[trace_back(*program_table(sums, levels), levels)]))
