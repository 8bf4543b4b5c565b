"""What the searches find for a batch of densities, brought to the host: candidates of a menu."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from operator import itemgetter
from typing import Any

import jax
import numpy as np

from corrq_jax.config import Config
from corrq_jax.core import ladder, trellis, trellis_fit, ungerboeck
from corrq_jax.core.density import BIN_POINTS, Density, Normalization
from corrq_jax.core.fit import Quantizer, fit_batch
from corrq_jax.core.segments import LEVELS
from corrq_jax.side_by_side import side_by_side


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One quantizer of one density.

    Attributes:
        quantizer: boundaries and values in normalized units, boundaries that are not needed above
            all weights (along a trellis only values count).
        bits: bits of a packed code.
        coding: one of `corrq_jax.codings.CODINGS`.
        mass: how many weights have each code, or along a trellis each symbol, if they are
            entropy-coded; there a prediction.
        price: what a weight of each value costs beside its squared error, where that counts.
    """

    quantizer: Quantizer
    bits: int
    coding: str
    mass: np.ndarray | None = None
    price: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Searched:
    """A batch of densities to be searched, padded by repeating the last tensor's.

    Attributes:
        density: of each.
        norm: its normalization, on the host.
        lo: its smallest weight.
        hi: its largest weight.
        sizes: how many weights each tensor has, without the padding.
        count: how many there are without the padding.
    """

    density: Density
    norm: Normalization
    lo: np.ndarray
    hi: np.ndarray
    sizes: Sequence[int]
    count: int

    def candidates(
        self, config: Config, widths: Sequence[int], coded: bool
    ) -> list[list[Candidate]]:
        """The candidates of each.

        Args:
            config: which grid, fit, levels and coding.
            widths: the widths that packed codes may have.
            coded: whether they may be entropy-coded as well.
        """
        along = [b for b in widths if config.coding == "trellis" and b <= trellis.MOST_BITS]
        across = [b for b in widths if b not in along]
        # Where the best levels of all widths are wanted, one search has them.
        at_once = config.grid == "optimal" and len(widths) > 1
        rows = [*(self._optimal(across) if at_once else self._of_grid(config, across))]
        rows += self._along_trellis(along)
        found = [list(column) for column in zip(*rows, strict=True)] or [
            [] for _ in range(self.count)
        ]
        if coded:
            searched = [self._coded()]
            if config.coding == "entropy-trellis":
                searched.append(self._coded_along_trellis())
            for more in searched:
                for some, others in zip(found, more, strict=True):
                    some.extend(others)
        return found

    def _optimal(self, widths: Sequence[int]) -> Iterator[list[Candidate]]:
        """For every width the best levels of each density."""
        for bits in widths:
            yield [Candidate(some[bits - 1][0], bits, "packed") for some in self._by_width]

    def _of_grid(self, config: Config, widths: Sequence[int]) -> Iterator[list[Candidate]]:
        """For every width what the configuration's grid has for each density."""
        for bits in widths:
            method = config.method(bits)
            searched = fit_batch(self.density, self.lo, self.hi, self.norm, method, self.count)
            found = jax.device_get(searched)
            yield [
                Candidate(jax.tree.map(itemgetter(i), found), bits, "packed")
                for i in range(self.count)
            ]

    def _along_trellis(self, widths: Sequence[int]) -> Iterator[list[Candidate]]:
        """For every width a candidate of as many values as each tensor's size can bear."""
        spreads = {
            (bits, i): trellis.spread_for(bits, size)
            for bits in widths
            for i, size in enumerate(self.sizes)
        }
        # Four times as many values as codes are not always worth more than twice as many.
        short = self._fitted(self._short, [at for at, spread in spreads.items() if spread <= 2])
        long = self._fitted(self._long, [at for at, spread in spreads.items() if spread >= 2])
        for bits in widths:
            yield [
                min(
                    (found[bits, i] for found in (short, long) if (bits, i) in found),
                    key=functools.partial(_cost, size),
                )
                for i, size in enumerate(self.sizes)
            ]

    def _fitted(
        self, fit: Callable[[int, list[int]], list[Candidate]], wanted: Sequence[tuple[int, int]]
    ) -> dict[tuple[int, int], Candidate]:
        """What a fit finds for each width and tensor that is wanted, by both."""
        some: dict[int, list[int]] = {}
        for bits, i in wanted:
            some.setdefault(bits, []).append(i)
        found = side_by_side(functools.partial(fit, *of_one) for of_one in some.items())
        return dict(zip(wanted, itertools.chain.from_iterable(found), strict=True))

    def _short(self, bits: int, some: list[int]) -> list[Candidate]:
        """Of some tensors twice as many values as codes."""
        starts = self._best(some, [bits + 1] * len(some), LEVELS)
        fitted = trellis_fit.fit_batch(self._of(some), starts, len(some))
        return [_along(*row, bits, 1) for row in _rows(fitted, len(some))]

    def _long(self, bits: int, some: list[int]) -> list[Candidate]:
        """Of some tensors as many values as their sizes can bear."""
        spreads = [trellis.spread_for(bits, self.sizes[i]) for i in some]
        starts = self._best(some, [bits + spread - 2 for spread in spreads], LEVELS // 4)
        own = np.resize(np.array(spreads, np.int32), len(self.lo))
        fitted = trellis_fit.fit_batch_by_share(self._of(some), starts, bits, own, len(some))
        rows = zip(_rows(fitted, len(some)), spreads, strict=True)
        return [_along(*row, bits, spread) for row, spread in rows]

    def _of(self, some: list[int]) -> Density:
        """The densities of some, padded to as many as there are."""
        if len(some) == self.count:
            return self.density
        index = np.resize(some, len(self.lo))
        return jax.tree.map(lambda a: a[index], self.density)

    def _best(self, some: list[int], widths: Sequence[int], size: int) -> np.ndarray:
        """float32[batch, size]: of some the best levels of a width each, then infinite ones."""
        levels = np.full((len(self.lo), size), np.inf, np.float32)
        for row, i, bits in zip(levels, some, widths, strict=False):
            best = self._by_width[i][bits - 1][0].values
            row[: 1 << bits] = np.pad(best, (0, (1 << bits) - len(best)), mode="edge")
        return levels

    @functools.cached_property
    def _by_width(self) -> list[list[tuple[Quantizer, np.ndarray]]]:
        return list(_rungs(ladder.ladders_by_width(self.density, self.count), self.count))

    def _coded(self) -> list[list[Candidate]]:
        return [
            [Candidate(q, _bits(len(mass)), "entropy", mass) for q, mass in rungs]
            for rungs in _rungs(ladder.ladders_by_step(self.density, self.count), self.count)
        ]

    def _coded_along_trellis(self) -> list[list[Candidate]]:
        found = jax.tree.map(np.asarray, trellis_fit.rungs_by_step(self.density, self.count))
        return [
            [_within_reach(*rung) for rung in zip(*(a[i] for a in found), strict=True)]
            for i in range(self.count)
        ]


def _rows(fitted: trellis_fit.Fitted, count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Levels and noise of the first ``count`` of a batch, on the host."""
    levels, noise = jax.device_get(fitted)
    return zip(levels[:count], noise[:count], strict=True)


def _along(levels: np.ndarray, noise: np.ndarray, bits: int, spread: int) -> Candidate:
    values = levels[: 1 << (bits + spread)].astype(np.float64)
    return Candidate(_on_host(values[:0], values, noise), bits, "trellis")


def _cost(size: int, candidate: Candidate) -> float:
    """Noise (6 decibels are a bit) and levels of a candidate, in bits a weight."""
    noise = max(float(candidate.quantizer.noise), 1e-30)
    return 0.5 * math.log2(noise) + 32 * len(candidate.quantizer.values) / size


def _rungs(found: ladder.Ladder, count: int) -> Iterator[list[tuple[Quantizer, np.ndarray]]]:
    """For each density its quantizers with the weights of each cell, without empty levels."""
    found = jax.tree.map(np.asarray, found)
    for i in range(count):
        rungs = []
        for boundaries, values, mass, noise in zip(*(a[i] for a in found), strict=True):
            used = np.flatnonzero(mass)
            # Above all weights: boundaries of 8 lengths compile, not one for each count of levels.
            padded = np.full(2 ** _bits(len(used)) - 1, BIN_POINTS[-1])
            padded[: len(used) - 1] = boundaries[used[:-1]]
            quantizer = _on_host(padded, values[used], noise)
            rungs.append((quantizer, mass[used].astype(np.int64)))
        yield rungs


def _within_reach(
    levels: np.ndarray, price: np.ndarray, mass: np.ndarray, noise: np.ndarray
) -> Candidate:
    """The levels up to the last that has weights, as many on either side of the middle."""
    used, middle = np.flatnonzero(mass), LEVELS // 2
    reach = int(max(middle - used[0], used[-1] + 1 - middle))
    reach += reach % 2
    kept = slice(middle - reach, middle + reach)
    symbols = ungerboeck.symbols(np.arange(2 * reach), 2 * reach)
    counts = np.bincount(symbols, mass[kept]).round().astype(np.int64)
    values = levels[kept].astype(np.float64)
    quantizer = _on_host(values[:0], values, noise)
    return Candidate(quantizer, _bits(reach), "entropy-trellis", counts, price[kept])


def _on_host(boundaries: Any, values: Any, noise: Any) -> Quantizer:
    """A quantizer of numpy arrays, which stand for those of jax."""
    return Quantizer(boundaries, values, noise)


def _bits(codes: int) -> int:
    """Bits of a packed code that has so many values."""
    return max(1, (codes - 1).bit_length())
