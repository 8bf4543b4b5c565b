"""Levels along a trellis for a density: fitted to a sample of it, coded and averaged in turn.

`fit` has codes of a fixed width. `fit_by_step` has them for an entropy coder, where a level that
few weights have costs more: the iteration of Chou, Lookabaugh and Gray (IEEE Trans. ASSP 37(1),
1989) along a trellis, after T. R. Fischer and M. Wang, "Entropy-constrained trellis-coded
quantization", IEEE Trans. Inf. Theory 38(2), 1992.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from corrq_jax.core import correlation as corr
from corrq_jax.core.compiling import each, jit_search
from corrq_jax.core.density import BINS, Density
from corrq_jax.core.trellis import LEVELS, MEMORY, encode, level_indices, symbols

SAMPLE = 1 << 14
"""Weights that levels are fitted to."""
RUNGS_SAMPLE = 1 << 13
"""And those of each of `STEPS`: what is coded with them has its levels averaged anew."""
_ROW = 1 << 7  # weights of a sequence of the sample
_START = 3 * MEMORY  # of them are there to leave the first state behind, and are not counted
_ITERATIONS = 12
_TAIL = 1 / 8  # of the sample, which stands for equal shares of the variance

STEPS = tuple(2.0 ** (k / 4) for k in range(-22, 6))
"""Distances of levels that a weight may have, of `fit_by_step`, in standard deviations: 0.02 to
2.4, for about 7 to 0.5 bits."""
RATE_ITERATIONS = 2
TRADE = 0.09
"""Squared steps that a bit is worth: ``D = c step**2`` falls by 2 ln(2) D a bit, and along the
trellis c is about three quarters of 1/12."""
LEVEL_BITS = 40
"""What a level costs in a file: a float32, and half an entry of the table of frequencies."""
_CELLS = 1 << 10  # on each side of the median, where levels are placed by the weights in them
_EVEN = 1 << 9  # of these, which are equally wide; the others reach the farthest weight
_KEPT = 32  # levels next to the median that stay as close as they are where there are too many
_RAREST = 1e-6  # share of the weights that the price of a level is that of, at least


class Fitted(NamedTuple):
    """Levels of one density.

    Attributes:
        levels: float32[LEVELS], ascending, in normalized units; infinite where there are none.
        noise: float32 scalar, the share of the variance that they leave, on the sample.
    """

    levels: jax.Array
    noise: jax.Array


class Rungs(NamedTuple):
    """Levels of one density for an entropy coder; the first axis counts `STEPS`.

    Attributes:
        levels: float32[n, LEVELS], ascending, in normalized units.
        price: float32[n, LEVELS], what they cost beside the squared error, in squared units.
        mass: float64[n, LEVELS], about how many weights have each.
        noise: float32[n], the share of the variance that they leave, on the sample.
    """

    levels: jax.Array
    price: jax.Array
    mass: jax.Array
    noise: jax.Array


def _sample(density: Density, size: int) -> tuple[jax.Array, jax.Array]:
    """(x, weight) of so many points: most of equal mass, the others of equal squared deviation."""
    m = corr.moments(density)
    mass = density.counts / m.total
    share = mass * (density.points - m.mean) ** 2
    chance = (1 - _TAIL) * mass + _TAIL * share / share.sum()
    at = (jnp.asarray(np.random.default_rng(0).permutation(size)) + 0.5) / size
    index = jnp.searchsorted(jnp.cumsum(chance), at, method="scan")
    index = jnp.minimum(index, BINS - 1)
    weight = mass / jnp.where(chance > 0, chance, 1)
    return density.points[index], weight[index].astype(jnp.float32)


class _Sums(NamedTuple):
    """Of the sample's weights at each level."""

    mass: jax.Array
    total: jax.Array


class _Sequences:
    """The sample in sequences that are coded, of which the first steps do not count."""

    def __init__(self, density: Density, size: int) -> None:
        self.x, self.weight = (a.reshape(-1, _ROW) for a in _sample(density, size))
        self.weight = self.weight.at[:, :_START].set(0)

    def coded(self, levels: jax.Array, price: jax.Array) -> jax.Array:
        """Index of each weight's level."""
        return jax.vmap(level_indices)(encode(self.x, levels, price))

    def sums(self, index: jax.Array) -> _Sums:
        zeros = jnp.zeros(LEVELS, jnp.float32)
        return _Sums(zeros.at[index].add(self.weight), zeros.at[index].add(self.weight * self.x))

    def noise(self, levels: jax.Array, index: jax.Array) -> jax.Array:
        mean = (self.weight * self.x).sum() / self.weight.sum()
        error = self.weight * (self.x - levels[index]) ** 2
        return error.sum() / (self.weight * (self.x - mean) ** 2).sum()


def _averaged(sums: _Sums, levels: jax.Array) -> jax.Array:
    return jnp.sort(jnp.where(sums.mass > 0, sums.total / jnp.maximum(sums.mass, 1e-30), levels))


def fit(density: Density, start: jax.Array) -> Fitted:
    """Levels for a density: codes for them, and means of what is coded by them, in turn.

    Args:
        density: at least two distinct points (call under ``jax.enable_x64``).
        start: float32[LEVELS], such as the best ``2**(bits + 1)`` levels without a trellis, then
            infinite ones.
    """
    sample, free = _Sequences(density, SAMPLE), jnp.zeros(LEVELS, jnp.float32)

    def improve(_: int, levels: jax.Array) -> jax.Array:
        return _averaged(sample.sums(sample.coded(levels, free)), levels)

    levels = jax.lax.fori_loop(0, _ITERATIONS, improve, start)
    return Fitted(levels, sample.noise(levels, sample.coded(levels, free)))


def fit_by_step(density: Density) -> Rungs:
    """Levels and prices for an entropy coder, for each of `STEPS`.

    Levels start around the median, none on it, so that the two halves mirror each other. They are
    equally spaced but where there are too few weights for that (`_placed`). Prices start from the
    mass around them, and two iterations then are enough.

    Args:
        density: at least two distinct points (call under ``jax.enable_x64``).
    """
    m = corr.moments(density)
    deviation = jnp.sqrt(m.square / m.total)
    half = jnp.searchsorted(m.sums[1:, 0], m.total / 2)
    median = m.points[half].astype(jnp.float64)
    farthest = jnp.where(density.counts > 0, jnp.abs(m.points - median), 0).max()
    sample = _Sequences(density, RUNGS_SAMPLE)
    of = symbols(jnp.arange(LEVELS), LEVELS)

    def price(mass: jax.Array, trade: jax.Array) -> jax.Array:
        shares = jnp.zeros(LEVELS // 2, jnp.float32).at[of].add(mass)
        bits = -jnp.log2(jnp.maximum(shares / shares.sum(), _RAREST))
        return (trade * bits)[of].astype(jnp.float32)

    def one(step: jax.Array) -> Rungs:
        step = step * deviation
        trade = TRADE * step**2
        levels = _placed(m, median, step, farthest).astype(jnp.float32)
        nearest = jnp.searchsorted((levels[1:] + levels[:-1]) / 2, sample.x, method="scan")
        mass = sample.sums(nearest).mass
        around = mass + (jnp.pad(mass, (1, 0))[:-1] + jnp.pad(mass, (0, 1))[1:]) / 2

        def improve(_: int, found: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            sums = sample.sums(sample.coded(*found))
            return _averaged(sums, found[0]), price(sums.mass, trade)

        start = levels, price(around, trade)
        levels, prices = jax.lax.fori_loop(0, RATE_ITERATIONS, improve, start)
        index = sample.coded(levels, prices)
        mass = sample.sums(index).mass
        mass = mass * (m.total / mass.sum())
        return Rungs(levels, prices, mass, sample.noise(levels, index))

    return jax.vmap(one)(jnp.asarray(STEPS))


def _placed(m: corr.Moments, median: jax.Array, step: jax.Array, farthest: jax.Array) -> jax.Array:
    """Levels float64[LEVELS], half of them on each side of the median, half a step apart or more.

    A distance d costs ``LEVEL_BITS`` a level, and squared errors of ``d**2 / 12`` a weight. At the
    least sum of both ``d**3 = 6 * LEVEL_BITS * TRADE * step**2 / p``, where there are p weights in
    a unit: far out, and in small tensors, levels are as sparse as this says.
    """
    index = jnp.arange(_CELLS + 1)
    even = _EVEN * step / 2
    growth = jnp.maximum(farthest / even, 1) ** ((index - _EVEN) / (_CELLS - _EVEN))
    away = jnp.where(index > _EVEN, even * growth, index * step / 2)
    wanted = jnp.arange(LEVELS // 2) + 0.5

    def side(sign: int) -> jax.Array:
        edges = corr.bin_edges(m, (median + sign * away).astype(jnp.float32))
        weights, width = jnp.abs(jnp.diff(m.sums[edges, 0])), jnp.diff(away)
        sparse = jnp.cbrt(weights * width**2 / (6 * LEVEL_BITS * TRADE * step**2))
        count = jnp.cumsum(jnp.minimum(sparse, width / (step / 2)))
        count = jnp.concatenate([jnp.zeros(1), count])
        room = LEVELS // 2 - _KEPT
        excess = jnp.maximum((count[-1] - _KEPT) / room, 1)
        count = jnp.where(count > _KEPT, _KEPT + (count - _KEPT) / excess, count)
        beyond = jnp.maximum(wanted - count[-1], 0) * step
        return jnp.interp(wanted, count, away) + beyond

    return median + jnp.concatenate([-side(-1)[::-1], side(1)])


@jit_search
def fit_batch(density: Density, start: jax.Array, count: Any) -> Fitted:
    """`fit` over the leading axis of a batch of densities and starts, the first ``count`` of it."""
    with jax.enable_x64(True):
        return each(fit, count, density, start)


@jit_search
def rungs_by_step(density: Density, count: Any) -> Rungs:
    """`fit_by_step` over the leading axis of a batch of densities, the first ``count`` of it."""
    with jax.enable_x64(True):
        return each(fit_by_step, count, density)
