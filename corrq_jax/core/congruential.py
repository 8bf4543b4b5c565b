"""Trellis-coded levels, 4 to 16 times as many as codes, which a long history selects from.

A code of b bits selects one of ``2**b`` strata of ``2**(b + spread)`` levels, and the history of
the codes before it one level of the stratum: which one is as good as drawn by lot, by a linear
congruence. So the levels that a path of weights may have lie as densely as the weights do, and a
rare one costs a detour of the path and not a level of every weight. Such codes come to Shannon's
bound as the history becomes longer, for any density; the encoder follows all 256 histories
(Viterbi's algorithm).

After T. Eriksson, J. B. Anderson and M. Novak, "Linear congruential trellis source codes: design
and analysis", IEEE Trans. Commun. 55(9), 2007; for weights of networks A. Tseng and others, "QTIP:
quantization with trellises and incoherence processing", NeurIPS 2024, whose labels are Gaussian.

Let ``u_i`` be the lowest bit of code i, and ``g_i`` the sum of ``u_(i-j) * 2**(8-j)`` over the
codes before it, j from 1 to 8. Weight i has the level of index
``code_i * 2**spread + (MULTIPLIER * g_i mod 256) // 2**(8 - spread)``. Before the first weight of
a segment all u are 0. Weights are counted as they are visited (`corrq_jax.core.interleave`).
"""

from collections.abc import Callable
from functools import reduce
from operator import or_
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from corrq_jax.core.interleave import Order, earlier, turns
from corrq_jax.core.search import argmin
from corrq_jax.core.segments import LEVELS, SEGMENT, in_blocks

MEMORY = 8
"""Codes before a weight that matter to it."""
STATES = 1 << MEMORY
MULTIPLIER = 157
"""Of the history: the best of 100 tried on Gaussian, Laplace and Student's t weights."""
LEAST_SPREAD, MOST_SPREAD = 2, 4
"""Bits that the history adds to those of a code."""
LANES = 64
"""Segments that a CPU encodes at a time: what a step needs of them stays in its cache."""
LANES_ON_DEVICE = 1 << 11
"""And an accelerator, where their costs and choices take half a gigabyte."""


def level_indices(codes: jax.Array, spread: Any, order: Order | None = None) -> jax.Array:
    """Index of the level of each weight of a block.

    Args:
        codes: uint8[..., n], each below ``LEVELS >> spread``.
        spread: how many bits the history adds, `LEAST_SPREAD` to `MOST_SPREAD`.
        order: in which the weights are visited; that of the codes by default.

    Returns:
        uint8[..., n].

    >>> level_indices(jnp.array([0, 1, 1, 2], jnp.uint8), 4).tolist()
    [0, 16, 24, 44]
    """
    length = codes.shape[-1]
    order = Order(length, 1, 1) if order is None else order
    before = enumerate(earlier(codes & 1, MEMORY, order), 1)
    history = reduce(or_, (low << (MEMORY - j) for j, low in before))
    known = jnp.minimum(turns(order, length) % SEGMENT, MEMORY)
    history &= (STATES * (STATES - 1) >> known).astype(jnp.uint8)  # before a segment all u are 0
    spread = jnp.asarray(spread, jnp.uint8)
    return codes << spread | history * jnp.uint8(MULTIPLIER) >> (jnp.uint8(MEMORY) - spread)


def _rows_of_steps() -> np.ndarray:
    """int[2, STATES]: which of the ``2 * 2**MOST_SPREAD`` costs of a weight leads to a state.

    By the oldest bit of the history before, and the state after.
    """
    history = np.arange(STATES)
    offset = (history * MULTIPLIER % STATES) >> (MEMORY - MOST_SPREAD)
    after, own = history % (STATES // 2), history // (STATES // 2)
    return np.stack([own << MOST_SPREAD | offset[2 * after + oldest] for oldest in (0, 1)])


def encode(x: jax.Array, levels: jax.Array, bits: Any, spread: Any, count: Any = None) -> jax.Array:
    """Codes of smallest squared error.

    Args:
        x: float32[segments, n], normalized weights, n at most `SEGMENT`; each row by itself.
        levels: float32[LEVELS], ascending, the first ``2**(bits + spread)`` of it.
        bits: of a code; bits + spread are at most 8.
        spread: how many bits the history adds, `LEAST_SPREAD` to `MOST_SPREAD`.
        count: how many segments are wanted, all by default; of the others codes may be 0.

    Returns:
        uint8[segments, n].
    """
    table = _table(levels, spread)
    places = 1 << (jnp.asarray(bits, jnp.int32) - 1)
    return in_blocks(lambda x: _codes(x, table, places), x, count, LANES, LANES_ON_DEVICE)


def _table(levels: jax.Array, spread: Any) -> jax.Array:
    """float32[places, 2, 2**MOST_SPREAD]: levels by higher bits of a code, its lowest, offset."""
    place, own, offset = np.indices((LEVELS >> LEAST_SPREAD >> 1, 2, 1 << MOST_SPREAD))
    spread = jnp.asarray(spread, jnp.int32)
    index = (2 * place + own) << spread | offset >> (MOST_SPREAD - spread)
    return levels[jnp.minimum(index, LEVELS - 1)]


def _codes(x: jax.Array, table: jax.Array, count: jax.Array) -> jax.Array:
    """uint8[n, lanes]: codes of float32[n, lanes], the first ``count`` places of the table."""
    costs = _least(x, table, count).reshape(x.shape[0], -1, x.shape[1])
    rows = _rows_of_steps()

    def step(cost: jax.Array, own: jax.Array) -> tuple[jax.Array, jax.Array]:
        young, old = (jnp.tile(cost[oldest::2], (2, 1)) + own[rows[oldest]] for oldest in (0, 1))
        new = jnp.minimum(young, old)
        # A bit for each of eight states. Of all ways to tell which was less XLA takes this one,
        # by the result, for the fastest: 150 ns a weight, and 400 with a byte for each state.
        less = (new < young).reshape(8, STATES // 8, -1)
        return new, reduce(or_, (jnp.where(less[i], np.uint32(1 << i), 0) for i in range(8)))

    start = jnp.full((STATES, x.shape[1]), jnp.inf, x.dtype).at[0].set(0)
    cost, choices = jax.lax.scan(step, start, costs)

    def back(state: jax.Array, choice: jax.Array) -> tuple[jax.Array, jax.Array]:
        word = jnp.take_along_axis(choice, state[None] % (STATES // 8), axis=0)[0]
        oldest = word >> (state // (STATES // 8)).astype(jnp.uint32) & 1
        before = (state % (STATES // 2)) << 1 | oldest.astype(jnp.int32)
        return before, (state // (STATES // 2)).astype(jnp.uint8)

    end = argmin(cost.T).astype(jnp.int32)
    _, low = jax.lax.scan(back, end, choices, reverse=True)
    offset = jax.vmap(lambda u: level_indices(u, MOST_SPREAD), 1, 1)(low)
    offset = offset & ((1 << MOST_SPREAD) - 1)
    return _nearest(x, lambda place: table[place][low, offset], count) << 1 | low


def _least(x: jax.Array, table: jax.Array, count: jax.Array) -> jax.Array:
    """float32[n, 2, 2**MOST_SPREAD, lanes]: squared errors of the nearest levels."""

    def better(place: jax.Array, found: jax.Array) -> jax.Array:
        return jnp.minimum((x[:, None, None, :] - table[place][None, :, :, None]) ** 2, found)

    nothing = jnp.full((x.shape[0], *table.shape[1:], x.shape[1]), jnp.inf, x.dtype)
    return jax.lax.fori_loop(0, count, better, nothing)


def _nearest(x: jax.Array, level_at: Callable[..., jax.Array], count: jax.Array) -> jax.Array:
    """uint8 like x: at which of the first ``count`` places the level is nearest."""

    def better(place: jax.Array, found: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        cost = (x - level_at(place)) ** 2
        number = jnp.where(cost < found[0], place.astype(jnp.uint8), found[1])
        return jnp.minimum(cost, found[0]), number

    nothing = jnp.full(x.shape, jnp.inf, x.dtype), jnp.zeros(x.shape, jnp.uint8)
    return jax.lax.fori_loop(0, count, better, nothing)[1]
