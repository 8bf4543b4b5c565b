"""Trellis-coded levels: twice the levels for codes of the same width.

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

from collections.abc import Callable
from functools import reduce
from operator import xor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from corrq_jax.core import coding
from corrq_jax.core import correlation as corr
from corrq_jax.core.compiling import jit_search
from corrq_jax.core.density import BINS, Density, key
from corrq_jax.core.search import argmin

MEMORY = 5
"""Codes before a weight that matter to it; the encoder follows ``2**MEMORY`` paths."""
STATES = 1 << MEMORY
H0 = (0, 2, 5)
"""Taps of z1: the bits of Ungerboeck's 45, in octal."""
H1 = (3,)
"""Taps of z0: the bits of 10. Not the weight's own: z0 tells which half of the levels it has."""
SEGMENT = 1 << 10
"""Weights after which the history is forgotten, so that segments are independent."""
MOST_BITS = 7
"""Widest codes: an index of a level has a bit more."""
LEVELS = 1 << (MOST_BITS + 1)

SAMPLE = 1 << 14
"""Weights that levels are fitted to."""
_STEPS = 1 << 7  # of the sample's sequences
_ITERATIONS = 12
_TAIL = 1 / 8  # of the sample, which stands for equal shares of the variance
_ORDER = np.random.default_rng(0).permutation(SAMPLE)


def _coset(u: Callable[[int], Any]) -> Any:
    """``2 z1 + z0`` of a weight, u(j) being the lowest bit of the code j places before it."""
    z0, z1 = (reduce(xor, map(u, taps)) for taps in (H1, H0))
    return 2 * z1 + z0


def level_indices(codes: jax.Array) -> jax.Array:
    """Index of the level of each weight.

    Args:
        codes: uint8[n], the first being the first of a segment, each below ``2**MOST_BITS``.

    Returns:
        uint8[n].

    >>> level_indices(jnp.array([0, 1, 1, 2], jnp.uint8)).tolist()
    [0, 2, 2, 6]
    """
    low = codes & 1
    place = jnp.arange(codes.size, dtype=jnp.int32) % SEGMENT

    def u(j: int) -> jax.Array:
        return low if j == 0 else jnp.where(place >= j, jnp.roll(low, j), 0)

    return (codes >> 1 << 2) + _coset(u).astype(jnp.uint8)


def _cosets_of_steps() -> np.ndarray:
    """int[2, STATES // 2, 2]: the coset of a step.

    By the oldest of the bits before it, the others (the newest the lowest), and its own.
    """
    oldest, others, own = np.indices((2, STATES // 2, 2))
    state = oldest << (MEMORY - 1) | others
    return _coset(lambda j: own if j == 0 else state >> (j - 1) & 1)


class _Nearest(NamedTuple):
    """The nearest level of each coset: its place there, uint8[4, ...], and its squared error."""

    place: jax.Array
    error: jax.Array


def _nearest(x: jax.Array, levels: jax.Array) -> _Nearest:
    """By a look-up: between two levels to within float16, which costs nothing that counts."""
    cosets = levels.reshape(-1, 4).T
    middle = (cosets[:, 1:] + cosets[:, :-1]) / 2
    tables = jnp.stack([coding.lookup_table(boundaries)[0] for boundaries in middle])
    place = tables[:, key(x)]
    found = jax.vmap(lambda some, at: some[at])(cosets, place)
    return _Nearest(place, (x - found) ** 2)


def encode(x: jax.Array, levels: jax.Array) -> jax.Array:
    """Codes of smallest squared error.

    Args:
        x: float32[segments, n], normalized weights, n at most `SEGMENT`; each row by itself.
        levels: float32[LEVELS], ascending, infinite beyond the ``2**(bits + 1)`` that there are.

    Returns:
        uint8[segments, n].
    """
    cosets = _cosets_of_steps()
    nearest = _nearest(x, levels)

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

    start = jnp.full((STATES, x.shape[0]), jnp.inf, x.dtype).at[0].set(0)
    cost, choices = jax.lax.scan(step, start, nearest.error.transpose(2, 0, 1))

    def back(state: jax.Array, choice: jax.Array) -> tuple[jax.Array, jax.Array]:
        oldest = choice >> state & 1
        return state >> 1 | oldest << (MEMORY - 1), (state & 1).astype(jnp.uint8)

    end = argmin(cost.T).astype(jnp.uint32)
    _, low = jax.lax.scan(back, end, choices, reverse=True)
    low = low.T
    coset = jax.vmap(level_indices)(low) & 3
    place = jnp.take_along_axis(nearest.place, coset[None].astype(jnp.int32), axis=0)[0]
    return (place << 1) + low


class Fitted(NamedTuple):
    """Levels of one density.

    Attributes:
        levels: float32[LEVELS], ascending, in normalized units; infinite where there are none.
        noise: float32 scalar, the share of the variance that they leave, on the sample.
    """

    levels: jax.Array
    noise: jax.Array


def _sample(density: Density) -> tuple[jax.Array, jax.Array]:
    """(x, weight) of `SAMPLE` points: most of equal mass, the others of equal squared deviation."""
    m = corr.moments(density)
    mass = density.counts / m.total
    share = mass * (density.points - m.mean) ** 2
    chance = (1 - _TAIL) * mass + _TAIL * share / share.sum()
    at = (jnp.asarray(_ORDER) + 0.5) / SAMPLE
    index = jnp.searchsorted(jnp.cumsum(chance), at, method="scan")
    index = jnp.minimum(index, BINS - 1)
    weight = mass / jnp.where(chance > 0, chance, 1)
    return density.points[index], weight[index].astype(jnp.float32)


def fit(density: Density, start: jax.Array) -> Fitted:
    """Levels for a density: codes for them, and means of what is coded by them, in turn.

    Args:
        density: at least two distinct points (call under ``jax.enable_x64``).
        start: float32[LEVELS], such as the best ``2**(bits + 1)`` levels without a trellis, then
            infinite ones.
    """
    x, weight = _sample(density)
    rows = x.reshape(-1, _STEPS)

    def assigned(levels: jax.Array) -> jax.Array:
        return jax.vmap(level_indices)(encode(rows, levels)).reshape(-1)

    def improve(_: int, levels: jax.Array) -> jax.Array:
        index = assigned(levels)
        mass = jnp.zeros(LEVELS, jnp.float32).at[index].add(weight)
        total = jnp.zeros(LEVELS, jnp.float32).at[index].add(weight * x)
        return jnp.sort(jnp.where(mass > 0, total / jnp.maximum(mass, 1e-30), levels))

    levels = jax.lax.fori_loop(0, _ITERATIONS, improve, start)
    error = weight * (x - levels[assigned(levels)]) ** 2
    mean = (weight * x).sum() / weight.sum()
    return Fitted(levels, error.sum() / (weight * (x - mean) ** 2).sum())


@jit_search
def fit_batch(density: Density, start: jax.Array) -> Fitted:
    """`fit` over the leading axis of a batch of densities and starts."""
    with jax.enable_x64(True):
        return jax.vmap(fit)(density, start)
