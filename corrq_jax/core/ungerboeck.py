"""A trellis with twice as many levels as codes: Ungerboeck's code of 32 states.

Of ``2**(b + 1)`` levels a weight may take half, every second one, and which half it is the codes
before it tell: a convolutional code of rate 1/2. The encoder looks for the sequence of codes
with the smallest squared error (Viterbi's algorithm); it leaves a third to a half less noise than
the best b-bit levels do. The decoder is an exclusive or of a few bits.

After M. W. Marcellin and T. R. Fischer, "Trellis coded quantization of memoryless and Gauss-Markov
sources", IEEE Trans. Commun. 38(1), 1990, with a convolutional code of G. Ungerboeck, "Channel
coding with multilevel/phase signals", IEEE Trans. Inf. Theory 28(1), 1982, table I.

Let ``u_i`` be the lowest bit of code i, and ``m_i`` the others. With the taps H0 and H1,
``z0_i = sum_j u_(i-j)`` over j in H1 and ``z1_i`` over j in H0, both modulo 2; weight i has the
level of index ``4 m_i + 2 z1_i + z0_i``. Before the first weight of a segment all u are 0.
"""

from collections.abc import Callable, Iterable
from functools import reduce
from operator import xor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from corrq_jax.core.search import argmin
from corrq_jax.core.segments import SEGMENT, before, in_blocks

MEMORY = 5
"""Codes before a weight that matter to it; the encoder follows ``2**MEMORY`` paths."""
STATES = 1 << MEMORY
LANES = 256
"""Segments that a CPU encodes at a time."""
LANES_ON_DEVICE = 1 << 12
"""And an accelerator."""
H0 = (0, 2, 5)
"""Taps of z1: the bits of Ungerboeck's 45, in octal."""
H1 = (3,)
"""Taps of z0: the bits of 10. Not the weight's own: z0 tells which half of the levels it has."""


def _coset(u: Callable[[int], Any]) -> Any:
    """``2 z1 + z0`` of a weight, u(j) being the lowest bit of the code j places before it."""
    z0, z1 = (reduce(xor, map(u, taps)) for taps in (H1, H0))
    return 2 * z1 + z0


def level_indices(codes: jax.Array) -> jax.Array:
    """Index of the level of each weight.

    Args:
        codes: uint8[n], the first being the first of a segment, each below ``LEVELS // 2``.

    Returns:
        uint8[n].

    >>> level_indices(jnp.array([0, 1, 1, 2], jnp.uint8)).tolist()
    [0, 2, 2, 6]
    """
    low = codes & 1
    return (codes >> 1 << 2) + _coset(lambda j: before(low, j)).astype(jnp.uint8)


def _cosets_of_steps() -> np.ndarray:
    """int[2, STATES // 2, 2]: the coset of a step.

    By the oldest of the bits before it, the others (the newest the lowest), and its own.
    """
    oldest, others, own = np.indices((2, STATES // 2, 2))
    state = oldest << (MEMORY - 1) | others
    return _coset(lambda j: own if j == 0 else state >> (j - 1) & 1)


class _Best(NamedTuple):
    """The best level of each coset: its place there, uint8[..., 4], and what it costs."""

    place: jax.Array
    cost: jax.Array


def _best(x: jax.Array, levels: jax.Array, price: jax.Array) -> _Best:
    """One level of each coset after another, as many as are finite: no table, no search."""
    by_place, prices = levels.reshape(-1, 4), price.reshape(-1, 4)

    def better(place: jax.Array, found: _Best) -> _Best:
        cost = (x[..., None] - by_place[place]) ** 2 + prices[place]
        number = jnp.where(cost < found.cost, place.astype(jnp.uint8), found.place)
        return _Best(number, jnp.minimum(cost, found.cost))

    shape = (*x.shape, 4)
    start = _Best(jnp.zeros(shape, jnp.uint8), jnp.full(shape, jnp.inf, x.dtype))
    count = (jnp.isfinite(levels).sum() + 3) // 4
    return jax.lax.fori_loop(0, count, better, start)


def encode(x: jax.Array, levels: jax.Array, price: jax.Array, count: Any = None) -> jax.Array:
    """Codes of smallest squared error, or of smallest sum of it and of what the levels cost.

    Args:
        x: float32[segments, n], normalized weights, n at most `SEGMENT`; each row by itself.
        levels: float32[LEVELS], ascending, infinite beyond those that there are: a multiple of 4.
        price: float32[LEVELS], what a weight of each level costs beside its squared error, such as
            its bits times what a bit is worth; zeros for the smallest squared error.
        count: how many segments are wanted, all by default; of the others codes may be 0.

    Returns:
        uint8[segments, n].
    """
    return in_blocks(lambda x: _codes(x, levels, price), x, count, LANES, LANES_ON_DEVICE)


def _codes(x: jax.Array, levels: jax.Array, price: jax.Array) -> jax.Array:
    """uint8[n, lanes]: codes of float32[n, lanes]."""
    cosets = _cosets_of_steps()
    best = _best(x, levels, price)

    def step(cost: jax.Array, error: jax.Array) -> tuple[jax.Array, jax.Array]:
        # One line for each state, not an axis of states: XLA then takes many segments at a time.
        new, choices = [], jnp.zeros(error.shape[1:], jnp.uint32)
        for state in range(STATES):
            others, own = state >> 1, state & 1
            young, old = (
                cost[oldest << (MEMORY - 1) | others] + error[cosets[oldest, others, own]]
                for oldest in (0, 1)
            )
            new.append(jnp.minimum(young, old))
            choices |= (old < young).astype(jnp.uint32) << state
        return jnp.stack(new), choices

    start = jnp.full((STATES, x.shape[1]), jnp.inf, x.dtype).at[0].set(0)
    cost, choices = jax.lax.scan(step, start, best.cost.transpose(0, 2, 1))

    def back(state: jax.Array, choice: jax.Array) -> tuple[jax.Array, jax.Array]:
        oldest = choice >> state & 1
        return state >> 1 | oldest << (MEMORY - 1), (state & 1).astype(jnp.uint8)

    end = argmin(cost.T).astype(jnp.uint32)
    _, low = jax.lax.scan(back, end, choices, reverse=True)
    coset = jax.vmap(level_indices, 1, 1)(low) & 3
    place = jnp.take_along_axis(best.place, coset[..., None].astype(jnp.int32), axis=-1)[..., 0]
    return (place << 1) + low


def symbols(index: Any, levels: int) -> Any:
    """What is entropy-coded of a weight with the level of this index.

    Args:
        index: integers, each below ``levels``.
        levels: how many levels there are, a multiple of 4.

    Returns:
        Integers of the same kind, each below ``levels // 2``.

    >>> symbols(np.arange(8), 8).tolist()
    [0, 3, 1, 2, 2, 1, 3, 0]
    """
    return _turned(index >> 1, index & 1, levels)


def symbols_of_codes(codes: np.ndarray, levels: int) -> np.ndarray:
    """The symbols of the levels that codes select, on the host.

    Args:
        codes: uint8[n], the first being the first of a segment, each below ``levels // 2``.
        levels: how many levels there are, a multiple of 4.

    Returns:
        uint8[n], each below ``levels // 2``.

    >>> symbols_of_codes(np.array([0, 1, 1, 2], np.uint8), 8).tolist()
    [0, 1, 1, 3]
    """
    columns = _columns(codes)
    low = columns & 1
    rank = (columns & 254) + _parity(low, H0)
    return _flat(_turned(rank, _parity(low, H1), levels), codes.size)


def codes_of_symbols(found: np.ndarray, levels: int) -> np.ndarray:
    """The codes whose levels have these symbols: the inverse of `symbols_of_codes`.

    The lowest bit of a symbol is ``z0 + z1`` modulo 2, since ``levels // 2 - 1`` is odd: a
    polynomial in the delay D times the codes' lowest bits. Modulo 2, ``p(D)**2 = p(D**2)``, so
    ``p(D) p(D**2) p(D**4) ...`` becomes 1 once all delays are longer than a segment, and all
    factors but the first undo p.

    Args:
        found: uint8[n], the first being the first of a segment, each below ``levels // 2``.
        levels: how many levels there are, a multiple of 4.

    Returns:
        uint8[n].

    >>> codes = np.array([0, 1, 1, 2, 1, 3], np.uint8)
    >>> codes_of_symbols(symbols_of_codes(codes, 8), 8).tolist()
    [0, 1, 1, 2, 1, 3]
    """
    columns = _columns(found)
    low, taps = columns & 1, set(H0) ^ set(H1)
    while any(0 < j < SEGMENT for j in taps):
        low, taps = _parity(low, taps), {2 * j for j in taps}
    rank = _turned(columns, _parity(low, H1), levels)
    return _flat(rank & 254 | low, found.size)


def _turned(x: Any, is_turned: Any, levels: int) -> Any:
    """``levels // 2 - 1 - x`` where ``is_turned`` is 1, x where it is 0; twice it is x again."""
    return x + is_turned * (levels // 2 - 1 - 2 * x)  # uint8 wraps around


def _columns(x: np.ndarray) -> np.ndarray:
    """uint8[SEGMENT, segments], zeros at the end: to go back by j places is to go back j rows."""
    count = -(-x.size // SEGMENT)
    return np.pad(x, (0, count * SEGMENT - x.size)).reshape(count, SEGMENT).T.copy()


def _flat(columns: np.ndarray, size: int) -> np.ndarray:
    return columns.T.reshape(-1)[:size]


def _parity(bits: np.ndarray, taps: Iterable[int]) -> np.ndarray:
    """The sum, modulo 2, of the bits so many places before in the same segment."""
    found = np.zeros_like(bits)
    for j in taps:
        if j < SEGMENT:
            found[j:] ^= bits[: SEGMENT - j]
    return found
