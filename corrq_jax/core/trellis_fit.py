"""Levels along a trellis for a density: fitted to a sample of it, coded and averaged in turn.

`fit` and `fit_by_share` have codes of a fixed width. `fit_by_step` has them for an entropy coder,
where a level that few weights have costs more: the iteration of Chou, Lookabaugh and Gray (IEEE
Trans. ASSP 37(1), 1989) along a trellis, after T. R. Fischer and M. Wang, "Entropy-constrained
trellis-coded quantization", IEEE Trans. Inf. Theory 38(2), 1992.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from corrq_jax.core import congruential, ungerboeck
from corrq_jax.core import correlation as corr
from corrq_jax.core.compiling import each, jit_search
from corrq_jax.core.density import BINS, Density
from corrq_jax.core.segments import LEVELS
from corrq_jax.core.ungerboeck import symbols

SAMPLE = 1 << 14
"""Weights that levels are fitted to."""
RUNGS_SAMPLE = 1 << 13
"""And those of each of `STEPS`: what is coded with them has its levels averaged anew."""
_ROW = 1 << 7  # weights of a sequence of the sample
_START = 24  # of them are there to leave the first state behind, and are not counted
_ITERATIONS = 12
_SOFT_SAMPLE = 1 << 11  # weights that levels are fitted to softly, before any is coded
_SOFT_ITERATIONS = 12
_SOFT_LOSS = 1.3  # the noise of codes that are as good as they can be, over Shannon's bound
_SHARED_ITERATIONS = 1
_TAIL = 1 / 8  # of the sample, which stands for equal shares of the variance
_SHARED_TAIL = 1 / 32  # likewise; more of them would be in each other's way along a long history

STEPS = tuple(2.0 ** (k / 4) for k in range(-22, 6))
"""Distances of levels that a weight may have, of `fit_by_step`, in standard deviations: 0.02 to
2.4, for about 7 to 0.5 bits."""
RATE_ITERATIONS = 2
TRADE = 0.09
"""Squared steps that a bit is worth: ``D = c step**2`` falls by 2 ln(2) D a bit, and along the
trellis c is about three quarters of 1/12."""
LEVEL_BITS = 40
"""What a level costs in a file: a float32, and half of what a symbol does in the stream's table."""
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


def _sample(density: Density, size: int, tail: float) -> tuple[jax.Array, jax.Array]:
    """(x, weight) of so many points: most of equal mass, the others of equal squared deviation."""
    m = corr.moments(density)
    mass = density.counts / m.total
    share = mass * (density.points - m.mean) ** 2
    chance = (1 - tail) * mass + tail * share / share.sum()
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

    def __init__(
        self, density: Density, size: int, tail: float = _TAIL, start: int = _START
    ) -> None:
        self.x, self.weight = (a.reshape(-1, _ROW) for a in _sample(density, size, tail))
        self.weight = self.weight.at[:, :start].set(0)

    def coded(self, levels: jax.Array, price: jax.Array) -> jax.Array:
        """Index of each weight's level."""
        return jax.vmap(ungerboeck.level_indices)(ungerboeck.encode(self.x, levels, price))

    def coded_congruentially(self, levels: jax.Array, bits: Any, spread: Any) -> jax.Array:
        """Likewise."""
        codes = congruential.encode(self.x, levels, bits, spread)
        return jax.vmap(lambda row: congruential.level_indices(row, spread))(codes)

    def sums(self, index: jax.Array) -> _Sums:
        zeros = jnp.zeros(LEVELS, jnp.float32)
        return _Sums(zeros.at[index].add(self.weight), zeros.at[index].add(self.weight * self.x))

    def noise(self, levels: jax.Array, index: jax.Array) -> jax.Array:
        mean = (self.weight * self.x).sum() / self.weight.sum()
        error = self.weight * (self.x - levels[index]) ** 2
        return error.sum() / (self.weight * (self.x - mean) ** 2).sum()


def _averaged(sums: _Sums, levels: jax.Array) -> jax.Array:
    """Levels at the means of what has them; those that nothing has stay."""
    return jnp.sort(jnp.where(sums.mass > 0, sums.total / jnp.maximum(sums.mass, 1e-30), levels))


def fit(density: Density, start: jax.Array) -> Fitted:
    """Levels for a density: codes for them, and means of what is coded by them, in turn.

    Args:
        density: at least two distinct points (call under ``jax.enable_x64``).
        start: float32[LEVELS], such as the best ``2**(bits + 1)`` levels without a trellis, then
            infinite ones.
    """
    sample, free = _Sequences(density, SAMPLE), jnp.zeros(LEVELS, jnp.float32)
    return _fitted(sample, start, lambda levels: sample.coded(levels, free), _ITERATIONS)


def _fitted(
    sample: _Sequences, levels: jax.Array, coded: Callable[..., jax.Array], rounds: int
) -> Fitted:
    """Levels that are coded with and averaged so often."""

    def improve(_: int, levels: jax.Array) -> jax.Array:
        return _averaged(sample.sums(coded(levels)), levels)

    levels = jax.lax.fori_loop(0, rounds, improve, levels)
    return Fitted(levels, sample.noise(levels, coded(levels)))


def fit_by_share(density: Density, far: jax.Array, bits: Any, spread: Any) -> Fitted:
    """Levels of which each is offered as often as any other: `corrq_jax.core.congruential`.

    A path that may choose among many offers comes near to what offers drawn by lot allow: weight x
    has level y with a probability in proportion to ``exp(-s (x - y)**2)``, and s follows from the
    bits of a code: they are the mean of ``-log2`` of the mean of that over the levels, less what
    the error is worth. For such weights each level is best at the mean of its weights (C. E.
    Shannon, "Coding theorems for a discrete source with a fidelity criterion", 1959; the
    iteration is that of equal Gaussian mixtures). Levels start at equal shares of the weights, and
    a quarter of them at the best levels of their number, which reach farther. Then a sample is
    coded with them, and each becomes the mean of what it codes.

    Args:
        density: at least two distinct points (call under ``jax.enable_x64``).
        far: float32[LEVELS // 4], the best ``2**(bits + spread - 2)`` levels, then infinite ones.
        bits: of a code.
        spread: how many bits the history adds.
    """
    count = jnp.asarray(1, jnp.int32) << (jnp.asarray(bits, jnp.int32) + spread)
    levels = _soft(density, _shared(density, far, count), count, bits)
    sample = _Sequences(density, SAMPLE, _SHARED_TAIL)

    def coded(levels: jax.Array) -> jax.Array:
        return sample.coded_congruentially(levels, bits, spread)

    return _fitted(sample, levels, coded, _SHARED_ITERATIONS)


def _shared(density: Density, far: jax.Array, count: jax.Array) -> jax.Array:
    """float32[LEVELS]: three quarters of ``count`` levels at equal shares, a quarter given."""
    mass = jnp.cumsum(density.counts) / density.counts.sum()
    most = LEVELS - far.size
    near = count * 3 // 4
    at = (jnp.arange(most) + 0.5) / near
    index = jnp.minimum(jnp.searchsorted(mass, at, method="scan"), BINS - 1)
    points = jnp.where(jnp.arange(most) < near, density.points[index], jnp.inf)
    return jnp.sort(jnp.concatenate([points.astype(jnp.float32), far]))


def _soft(density: Density, levels: jax.Array, count: jax.Array, bits: Any) -> jax.Array:
    """Levels that offers drawn by lot would have."""
    x, weight = _sample(density, _SOFT_SAMPLE, _SHARED_TAIL)
    mass = (weight / weight.sum()).astype(jnp.float32)
    mean = mass @ x
    rate = jnp.asarray(bits, jnp.float32) * np.float32(np.log(2))
    start = 0.5 / (_SOFT_LOSS * (mass @ (x - mean) ** 2) * jnp.exp(-2 * rate))

    def improve(_: int, found: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        levels, slope = found
        error = jnp.minimum((x[:, None] - levels) ** 2, np.float32(1e30))
        least = error.min(1)
        share = jnp.exp(-slope * (error - least[:, None]))
        total = share.sum(1)
        share = share / total[:, None]
        first = jnp.where(share > 0, share * error, 0).sum(1)
        second = jnp.where(share > 0, share * error**2, 0).sum(1)
        nats = mass @ (slope * (least - first) - jnp.log(total / count))
        change = (rate - nats) / jnp.maximum(slope * (mass @ (second - first**2)), 1e-30)
        own = mass @ share
        means = jnp.where(own > 1e-12, (mass * x) @ share / jnp.maximum(own, 1e-30), levels)
        return jnp.sort(means), jnp.clip(slope + change, slope / 2, slope * 2)

    start = levels, start.astype(jnp.float32)
    return jax.lax.fori_loop(0, _SOFT_ITERATIONS, improve, start)[0]


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
    sample = _Sequences(density, RUNGS_SAMPLE, start=3 * ungerboeck.MEMORY)
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
def fit_batch_by_share(
    density: Density, far: jax.Array, bits: Any, spread: jax.Array, count: Any
) -> Fitted:
    """`fit_by_share` over the leading axis of all but bits, the first ``count`` of it."""
    with jax.enable_x64(True):
        return each(lambda d, f, s: fit_by_share(d, f, bits, s), count, density, far, spread)


@jit_search
def rungs_by_step(density: Density, count: Any) -> Rungs:
    """`fit_by_step` over the leading axis of a batch of densities, the first ``count`` of it."""
    with jax.enable_x64(True):
        return each(fit_by_step, count, density)
