"""The largest correlation over a grid's two parameters, by exhaustion and refinement.

The objective has many local optima, and on small tensors it is piecewise constant, so nothing is
descended: a lattice over all of the parameter plane is evaluated, the best point of each of its
blocks starts a refinement, and each round of it evaluates a smaller lattice around every start. An
evaluation costs O(levels), whatever the tensor's size; all run in one vmapped call.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from corrq_jax.core import correlation as corr
from corrq_jax.core.density import bins_below
from corrq_jax.core.grids import Grid, Span


class Effort(NamedTuple):
    """How finely a search looks; what was measured is in docs/method.md, section 5.

    Attributes:
        lattice: points along a coordinate that is a position, in the first lattice.
        gaps: how many of these, at each end, are gaps between the outermost weights.
        block: lattice points along each side of a block that yields one start.
        starts: starts that are refined.
        rounds: refinements of each start.
        local: points along each coordinate of a refinement's lattice.
        shrink: size of a refinement's lattice relative to the one before.
    """

    lattice: int = 240
    gaps: int = 20
    block: int = 8
    starts: int = 40
    rounds: int = 14
    local: int = 7
    shrink: float = 0.65


def argmin(x: jax.Array) -> jax.Array:
    """int32 index of the first minimum along the last axis (no NaN).

    `jnp.argmin` is lowered after tracing, when float64 may be switched off again, and fails there.
    """
    index = jnp.arange(x.shape[-1], dtype=jnp.int32)
    lowest = x.min(axis=-1, keepdims=True)
    return jnp.where(x == lowest, index, x.shape[-1] - 1).min(axis=-1)


def minimize(
    objective: Callable, axes: tuple[jax.Array, jax.Array], ordered: bool, effort: Effort
) -> tuple[jax.Array, jax.Array]:
    """Coordinates (u1, u2) in [0, 1] with the smallest ``objective(u1, u2)``.

    Args:
        objective: scalar function of two float64 scalars; vmapped here.
        axes: ascending float64 coordinates of the first lattice, along u1 and along u2.
        ordered: look at ``u1 < u2`` only.
        effort: how finely to look.
    """
    evaluate = jax.vmap(lambda u: objective(u[0], u[1]))
    i, j = np.indices([len(axis) for axis in axes]).reshape(2, -1)
    keep = i < j if ordered else np.ones(i.size, bool)
    points = jnp.stack([axes[0][i[keep]], axes[1][j[keep]]], axis=-1)
    blocks = (i // effort.block * effort.lattice + j // effort.block)[keep]
    _, blocks = np.unique(blocks, return_inverse=True)

    found = evaluate(points)
    start_of = _argmin_by_block(found, blocks)
    order = jnp.argsort(found[start_of])[: effort.starts]
    best_u = points[start_of[order]]
    best = found[start_of[order]]

    spacing = 1 / np.array([len(axis) for axis in axes])
    offsets = np.linspace(-1, 1, effort.local)
    offsets = np.stack(np.meshgrid(offsets, offsets, indexing="ij"), -1).reshape(-1, 2)

    def refine(round_, state):
        best_u, best = state
        radius = effort.shrink**round_ * spacing
        around = jnp.clip(best_u[:, None] + radius * jnp.asarray(offsets), 1e-6, 1 - 1e-6)
        if ordered:
            around = jnp.where(
                (around[..., 0] < around[..., 1])[..., None], around, best_u[:, None]
            )
        values = jax.vmap(evaluate)(around)
        at = argmin(values)
        value = jnp.take_along_axis(values, at[:, None], 1)[:, 0]
        point = jnp.take_along_axis(around, at[:, None, None], 1)[:, 0]
        better = value < best
        return jnp.where(better[:, None], point, best_u), jnp.where(better, value, best)

    best_u, best = jax.lax.fori_loop(0, effort.rounds, refine, (best_u, best))
    u = best_u[argmin(best)]
    return u[0], u[1]


def _argmin_by_block(found: jax.Array, blocks: np.ndarray) -> jax.Array:
    """int32[blocks]: index of the smallest value in each block."""
    members = [np.flatnonzero(blocks == b) for b in range(blocks.max() + 1)]
    width = max(map(len, members))
    table = np.stack([np.resize(m, width) for m in members])
    return jnp.take_along_axis(jnp.asarray(table), argmin(found[table])[:, None], 1)[:, 0]


def maximize(
    m: corr.Moments, grid: Grid, span: Span, levels: int, on_grid: bool, effort: Effort
) -> tuple[jax.Array, jax.Array]:
    """Parameters of a grid that maximize the correlation over the whole parameter plane.

    Args:
        m: running sums of the density.
        grid: the family of quantizers.
        span: where the weights lie.
        levels: number of levels.
        on_grid: whether the values are the grid's (else cell means).
        effort: how finely to look.
    """
    sums = corr.by_key(m)
    rounded = jax.tree.map(lambda x: x.astype(jnp.float32), span)

    def noise(u1, u2):
        # float32 places a boundary far finer than the bins that decide; it is twice as fast.
        parameters = [p.astype(jnp.float32) for p in grid.place(u1, u2, span, levels)]
        c = corr.cells(sums, bins_below(grid.boundaries(*parameters, rounded, levels)))
        if on_grid:
            return corr.noise_of_values(m, c, grid.values(*parameters, rounded, levels))
        return corr.noise_of_means(m, c)

    gaps = _lattice(m, grid, span, effort)
    # Of ordered pairs only half are looked at; a ratio needs half as many points as a position.
    even = jnp.linspace(0, 1, effort.lattice // 2 + 2)[1:-1]
    axes = (gaps, gaps if grid.ordered else even)
    best = minimize(noise, axes, grid.ordered, effort)
    return grid.place(*best, span, levels)


def _lattice(m: corr.Moments, grid: Grid, span: Span, effort: Effort) -> jax.Array:
    """Even coordinates, and those of the gaps between the outermost weights.

    With many levels the best range ends in one of these gaps, and an even lattice can miss it.
    """
    even = jnp.linspace(0, 1, effort.lattice - 2 * effort.gaps + 2)[1:-1]
    rank = jnp.arange(1, effort.gaps + 2)
    rank = jnp.concatenate([rank, m.total - rank + 1])
    at = jnp.searchsorted(m.sums[1:, 0], rank, method="scan")
    outer = m.points[at].astype(jnp.float64).reshape(2, -1)
    gaps = grid.locate(((outer[:, 1:] + outer[:, :-1]) / 2).reshape(-1), span)
    return jnp.sort(jnp.concatenate([even, jnp.clip(gaps, 1e-6, 1 - 1e-6)]))
