"""What a tensor can be stored as: each option with its bytes and its noise, before any is encoded.

Everything here comes from densities; an option says what `encode` then makes of the weights.
"""

import dataclasses
from collections.abc import Sequence
from operator import itemgetter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from corrq_jax import encoding, entropy, layout, on_device, sharded_leaf, trellis_leaf
from corrq_jax import leaf as leaves
from corrq_jax.config import Config
from corrq_jax.core import coding, ladder, trellis
from corrq_jax.core.density import BIN_POINTS, Density, Normalization
from corrq_jax.core.fit import Quantizer, fit_batch
from corrq_jax.leaf import Leaf
from corrq_jax.memory import give_back
from corrq_jax.rescale import refine
from corrq_jax.tensor import QuantizedTensor

BATCH = 8
"""Densities in one call of a search: one compilation serves a network of any number of layers."""
BATCH_ON_DEVICE = 16
"""On an accelerator, where twice as many take no longer."""


class Measured(NamedTuple):
    """A leaf, its density and the normalization of that."""

    leaf: Leaf
    density: Density
    norm: Normalization


@dataclasses.dataclass(frozen=True)
class Option:
    """One way to store a tensor.

    Attributes:
        leaf: the tensor, with or without scales.
        norm: its normalization.
        quantizer: boundaries and values in normalized units, boundaries that are not needed above
            all weights (with a trellis only values count); None to store its few distinct weights
            as they are.
        bits: bits of a packed code.
        coding: "packed", "entropy" or "trellis".
        nbytes: bytes in a file, its share of the header included; an upper bound.
        noise: ``1 - rho**2``; with scales or a trellis a prediction.
    """

    leaf: Leaf
    norm: Normalization
    quantizer: Quantizer | None
    bits: int
    coding: str
    nbytes: int
    noise: float

    @property
    def is_predicted(self) -> bool:
        """Whether encoding may find another noise."""
        return self.leaf.scales is not None or self.coding == "trellis"


def _reading(leaf: Leaf) -> Any:
    """The module that reads it: where it lies on a mesh of devices, or in one place."""
    return leaves if leaf.sharding is None else sharded_leaf


def _encoding(leaf: Leaf) -> Any:
    """The module that encodes it, likewise."""
    return encoding if leaf.sharding is None else sharded_leaf


def measure(leaf: Leaf) -> Measured:
    """The density of a leaf that is not constant; the leaf without weights that are on disk."""
    return Measured(leaves.released(leaf), *_reading(leaf).measure(leaf))


def batch_size(item: Measured) -> int:
    """How many tensors like this one are searched together."""
    return BATCH_ON_DEVICE if on_device.holds(item.density.counts) else BATCH


def options(
    batch: Sequence[Measured], config: Config, widths: Sequence[int], coded: bool
) -> list[list[Option]]:
    """The options of each of at most `batch_size` tensors; at least one for each.

    Args:
        batch: the tensors.
        config: which grid, fit and levels.
        widths: the widths that their packed codes may have.
        coded: whether they may be entropy-coded as well.
    """
    repeat = [min(i, len(batch) - 1) for i in range(batch_size(batch[0]))]
    density = _stacked_densities([batch[i].density for i in repeat])
    norms = jax.device_get([item.norm for item in batch])
    batch = [item._replace(norm=norm) for item, norm in zip(batch, norms, strict=True)]
    found: list[list[Option]] = [[] for _ in batch]
    along = [b for b in widths if config.coding == "trellis" and b <= trellis.MOST_BITS]
    across = [b for b in widths if b not in along]
    for bits, quantizers in _fitted(batch, repeat, density, config, across):
        for some, item, quantizer in zip(found, batch, quantizers, strict=True):
            some.append(_option(item, quantizer, bits, "packed"))
    for bits, quantizers in _fitted_to_trellis(density, along, len(batch)):
        for some, item, quantizer in zip(found, batch, quantizers, strict=True):
            some.append(_option(item, quantizer, bits, "trellis"))
    if coded:
        for i, quantizers in enumerate(_rungs(ladder.ladders_by_step(density), len(batch))):
            for quantizer, mass in quantizers:
                bits = _bits(len(mass))
                found[i].append(_option(batch[i], quantizer, bits, "entropy", mass))
    occupied = _occupied(density.counts)
    for i, item in enumerate(batch):
        most = max(len(o.quantizer.values) for o in found[i] if o.quantizer is not None)
        exact = _exact(item, int(occupied[i]), most)
        if exact is not None:
            found[i] = [o for o in found[i] if o.nbytes < exact.nbytes] + [exact]
    if not on_device.holds(density.counts):
        give_back()
    return found


def _occupied(counts: jax.Array) -> np.ndarray:
    """How many points of each density have weights."""
    if on_device.holds(counts):
        return np.asarray(jnp.count_nonzero(counts, axis=1))
    return np.count_nonzero(np.asarray(counts), axis=1)


def _fitted(batch, repeat, density, config: Config, widths):
    """(bits, a quantizer for each tensor) for every width."""
    if config.grid == "optimal" and len(widths) > 1:
        rungs = list(_rungs(ladder.ladders_by_width(density), len(batch)))
        for bits in widths:
            yield bits, [quantizers[bits - 1][0] for quantizers in rungs]
        return
    norm = _stacked(batch[i].norm for i in repeat)
    lo, hi = np.array([[batch[i].leaf.lo, batch[i].leaf.hi] for i in repeat], np.float32).T
    for bits in widths:
        found = fit_batch(density, lo, hi, norm, config.method(bits))
        found = jax.device_get(found)
        yield bits, [jax.tree.map(itemgetter(i), found) for i in range(len(batch))]


def _fitted_to_trellis(density: Density, widths: Sequence[int], count: int):
    """(bits, a quantizer of ``2**(bits + 1)`` levels for each tensor) for every width."""
    if not widths:
        return
    rungs = list(_rungs(ladder.ladders_by_width(density), count))
    for bits in widths:
        levels = 2 << bits
        starts = np.full((len(density.counts), trellis.LEVELS), np.inf, np.float32)
        for i, row in enumerate(starts):
            best = rungs[min(i, count - 1)][bits][0].values
            row[:levels] = np.pad(best, (0, levels - len(best)), mode="edge")
        found = jax.device_get(trellis.fit_batch(density, starts))
        yield (
            bits,
            [
                Quantizer(best[:0], best[:levels].astype(np.float64), noise)
                for best, noise in zip(found.levels[:count], found.noise[:count], strict=True)
            ],
        )


def _stacked_densities(densities: Sequence[Density]) -> Density:
    """A batch of densities: made where they are, on a CPU without a compilation."""
    if any(on_device.holds(d.counts) for d in densities):
        return _stacked_there(*densities)
    return jax.device_put(_stacked(densities))


@jax.jit
def _stacked_there(*densities: Density) -> Density:
    return jax.tree.map(lambda *a: jnp.stack(a), *densities)


def _stacked(trees):
    """One tree of arrays with a first axis, on the host."""
    return jax.tree.map(lambda *a: np.stack([np.asarray(x) for x in a]), *trees)


def _rungs(found: ladder.Ladder, count: int):
    """For each tensor its quantizers with the weights of each cell, without empty levels."""
    found = jax.tree.map(np.asarray, found)
    for i in range(count):
        rungs = []
        for boundaries, values, mass, noise in zip(*(a[i] for a in found), strict=True):
            used = np.flatnonzero(mass)
            # Above all weights: boundaries of 8 lengths compile, not one for each count of levels.
            padded = np.full(2 ** _bits(len(used)) - 1, BIN_POINTS[-1])
            padded[: len(used) - 1] = boundaries[used[:-1]]
            quantizer = Quantizer(padded, values[used], noise)  # type: ignore[arg-type]
            rungs.append((quantizer, mass[used].astype(np.int64)))
        yield rungs


def _bits(levels: int) -> int:
    """Bits of a packed code of one of so many levels."""
    return max(1, (levels - 1).bit_length())


def _option(
    item: Measured,
    quantizer: Quantizer,
    bits: int,
    how: str,
    mass: np.ndarray | None = None,
) -> Option:
    leaf = item.leaf
    levels = len(quantizer.values)
    if mass is None:
        codes = coding.packed_size(leaf.flat.size, bits)
    else:
        dead = 0 if leaf.scales is None else leaf.scales.dead
        mass = mass.copy()
        mass[int(np.abs(np.asarray(quantizer.values)).argmin())] += dead
        codes = entropy.coded_nbytes(mass)
    nbytes = codes + levels * _level_nbytes(leaf) + _overhead(leaf, how)
    noise = min(float(quantizer.noise) * leaf.variance_ratio, 1.0)
    return Option(leaf, item.norm, quantizer, bits, how, nbytes, noise)


def _exact(item: Measured, occupied: int, levels: int) -> Option | None:
    """A tensor of at most ``levels`` distinct weights as it is."""
    if item.leaf.scales is not None or occupied > levels:
        return None
    values = _reading(item.leaf).distinct(leaves.loaded(item.leaf), levels)
    if values is None:
        return None
    bits = _bits(values.size)
    codes = coding.packed_size(item.leaf.flat.size, bits)
    nbytes = codes + values.size * _level_nbytes(item.leaf) + _overhead(item.leaf, "packed")
    return Option(item.leaf, item.norm, None, bits, "packed", nbytes, 0.0)


def _level_nbytes(leaf: Leaf) -> int:
    return 8 if leaf.dtype == "float64" else 4


def _overhead(leaf: Leaf, how: str) -> int:
    """Bytes of header and scales, at most."""
    rows = None if leaf.scales is None else leaf.scales.rows
    shape = tuple(int(n) for n in leaf.array.shape)
    return layout.overhead_nbytes(leaf.path, shape, leaf.dtype, rows, how)


def encode(option: Option) -> tuple[QuantizedTensor, float]:
    """The tensor as an option says, and its noise."""
    leaf = leaves.loaded(option.leaf)
    if option.quantizer is None:
        values = _reading(leaf).distinct(leaf, 1 << option.bits)
        assert values is not None
        return _encoding(leaf).encode_exactly(leaf, values), 0.0
    if option.coding == "trellis":
        values = np.asarray(option.quantizer.values)
        tensor, noise = trellis_leaf.encode(leaf, option.norm, values, option.bits)
    else:
        tensor = _encoding(leaf).encode(leaf, option.norm, option.quantizer, option.bits)
        noise = float(option.quantizer.noise)
    if leaf.scales is not None:
        tensor, noise = refine(leaf, tensor)
    return dataclasses.replace(tensor, coding=option.coding), noise
