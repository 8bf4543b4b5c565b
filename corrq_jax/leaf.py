"""One leaf of a tree, read in pieces of a fixed size: its extremes, its density.

The pieces are views of the leaf where it lies in host memory, so that nothing of the tensor's size
is copied, and every tensor of every network runs through the same few compiled functions. On an
accelerator a leaf is one piece (`corrq_jax.on_device`).

A leaf may carry a scale for each of its rows (`corrq_jax.rescale`). It then reads as its weights
divided by these scales.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from functools import cached_property
from itertools import repeat
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from corrq_jax import on_device
from corrq_jax.core import density as core
from corrq_jax.core.compiling import jit_search
from corrq_jax.errors import InputError
from corrq_jax.lazy import LazyArray
from corrq_jax.rows import Rows, Spread
from corrq_jax.side_by_side import IN_FLIGHT, ahead

DTYPES = ("float16", "bfloat16", "float32", "float64")
"""Dtypes that can be quantized."""

# Below this XLA flushes to zero what it multiplies; such tensors are scaled up on the host first.
TINY = 2.0**-100

# Weights that `distinct` looks at first.
_FEW = 1 << 12

_extent = jax.jit(core.extent)
_normalization = jax.jit(core.normalization)
_accumulate = jax.jit(core.accumulate, donate_argnums=0)
_from_sorted = jit_search(core.from_sorted)


@jax.jit
def _divided(chunk, factors):
    return chunk.astype(jnp.float32) * factors


@jax.jit
def _without_zeros(counts, norm, zeros):
    """Counts less that many zeros, which lie in two bins: those of 0 and of -0."""
    positive, negative = core.key(norm.apply(jnp.array([0.0, -0.0], jnp.float32)))
    taken = jnp.minimum(zeros, counts[positive])
    return counts.at[positive].add(-taken).at[negative].add(taken - zeros)


@dataclasses.dataclass(frozen=True)
class Scales:
    """Scales of the rows of a leaf; a weight times ``Leaf.factor`` is scaled weight * scale * unit.

    Attributes:
        rows: which weights share a scale.
        values: float16[groups, channels], the largest in [1, 2]; 0 for a dead row.
        unit: power of two.
        mean: mean of all weights, times ``Leaf.factor``.
        variance: their variance, likewise.
        dead: how many weights lie in dead rows. They read as zeros, and no density counts them.
        lost: sums of these weights and of their squares, likewise.
        variance_ratio: see `Leaf.variance_ratio`.
    """

    rows: Rows
    values: np.ndarray
    unit: float
    mean: float
    variance: float
    dead: int
    lost: tuple[float, float]
    variance_ratio: float

    @property
    def factors(self) -> np.ndarray:
        """float32[groups, channels] that weights are multiplied by; 0 for a dead row."""
        scales = self.values.astype(np.float32) * np.float32(self.unit)
        return np.divide(1, scales, out=scales, where=scales > 0)


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A tensor of finite floats, ready to be read.

    Attributes:
        path: where it is in the tree, for messages.
        array: the leaf as it came.
        flat: its weights, one axis, a view where that is possible; on an accelerator, where that
            would be a copy, the array as it came; so, too, where parts of it can be read from a
            disk; once `released`, only their number and dtype.
        factor: power of two that every piece is multiplied by on the host; 1 for all but float64
            and subnormal tensors.
        lo: smallest weight, times ``factor``; with ``scales``, smallest scaled weight.
        hi: largest, likewise.
        scales: what the weights of each row are divided by (`corrq_jax.rescale.scaled`); None for
            all by 1.
        sharding: where the array lies, if it is shared out over a mesh of devices: ``flat`` is then
            the array itself, and `corrq_jax.sharded_leaf` reads it; None for all others.
    """

    path: str
    array: Any
    flat: Any
    factor: float
    lo: float
    hi: float
    scales: Scales | None = None
    sharding: NamedSharding | None = None

    @cached_property
    def dtype(self) -> str:
        """Name of the dtype."""
        return self.array.dtype.name  # whatever its byte order

    @property
    def piece(self) -> int:
        """Weights in a piece."""
        if self.is_whole:
            return self.flat.size
        return core.SORTED_SIZE if self.flat.size <= core.SORTED_SIZE else core.CHUNK

    @cached_property
    def is_whole(self) -> bool:
        """Whether it is one piece, on an accelerator."""
        as_it_is = self.factor == 1 and self.dtype != "float64"
        return as_it_is and _is_whole(self.flat)

    @property
    def factors(self) -> jax.Array | None:
        """For each weight of a whole leaf what makes it a scaled weight; None without scales."""
        return None if self.scales is None else next(self.spread(self.scales.factors))

    @property
    def is_constant(self) -> bool:
        """Whether all weights are equal; with scales, all scaled weights but those of dead rows."""
        return self.lo == self.hi

    @property
    def variance_ratio(self) -> float:
        """Predicts the noise of the tensor: about this times that of the density of the leaf.

        With scales, rows err in proportion to their scales: the squared error of the tensor is that
        of the scaled weights, each times the square of its row's scale. The ratio is exact if the
        scaled weights of all rows err alike; 1 without scales.
        """
        return 1.0 if self.scales is None else self.scales.variance_ratio

    def pieces(self) -> Iterator[tuple[Any, int]]:
        """(flat weights, number of valid ones); a short last piece repeats its last weight.

        With scales: float32, each weight divided by its row's scale and the unit.
        """
        if self.scales is None:
            yield from self.unscaled()
            return
        for (chunk, valid), factors in zip(
            self.unscaled(), self.spread(self.scales.factors), strict=True
        ):
            yield _divided(chunk, factors), valid

    def unscaled(self) -> Iterator[tuple[Any, int]]:
        """The pieces of the weights themselves, times ``factor``."""
        if self.is_whole:
            yield self.flat.reshape(-1), self.flat.size
            return
        for start in range(0, self.flat.size, self.piece):
            chunk = part_of(self.flat, start, self.piece)
            if self.factor != 1 or self.dtype == "float64":
                chunk = (np.asarray(chunk, np.float64) * self.factor).astype(np.float32)
            yield _pad(chunk, self.piece), chunk.size

    def spread(self, values: np.ndarray) -> Iterator[Any]:
        """For each piece, the values [groups, channels] of the rows that its weights lie in."""
        assert self.scales is not None
        if self.is_whole:
            yield on_device.spread(values, self.scales.rows, self.flat.size)
            return
        spread = Spread(self.scales.rows, values, self.piece)
        same = spread.period is not None and self.piece % spread.period == 0
        pattern = jnp.asarray(spread(0, self.piece)) if same else None
        for start in range(0, self.flat.size, self.piece):
            size = min(self.piece, self.flat.size - start)
            whole = pattern is not None and size == self.piece
            yield pattern if whole else _pad(spread(start, size), self.piece)

    def norms(self, norm: core.Normalization) -> Iterator[Any]:
        """For each of `unscaled`, the map to normalized units."""
        if self.scales is None:
            yield from repeat(norm)
            return
        for factors in self.spread(self.scales.factors):
            yield on_device.Scaled(factors, norm)


def extremes(arrays: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """Smallest and largest weight of those tensors that lie on accelerators, in a call for each."""
    found: dict[str, tuple[float, float]] = {}
    for there in on_device.by_device({p: a for p, a in arrays.items() if _is_whole(a)}):
        ends = np.asarray(on_device.extents(list(there.values())))
        found |= {path: (float(lo), float(hi)) for path, (lo, hi) in zip(there, ends, strict=True)}
    return found


def read(path: str, array: Any, extremes: tuple[float, float] | None = None) -> Leaf:
    """Check a non-empty leaf of one of `DTYPES` and find its extremes.

    Args:
        path: where it is, for messages.
        array: numpy or jax.
        extremes: its smallest and largest weight, where that is known.

    Raises:
        InputError: a weight is NaN or infinite, or float64 weights do not fit float32 levels.
    """
    flat = _flat(array)
    lo, hi = extremes or _extremes(flat)
    if not np.isfinite([lo, hi]).all():
        raise InputError(_what_is_not_finite(path, array))
    largest = max(abs(lo), abs(hi))
    factor = 1.0
    if largest < TINY or flat.dtype == np.float64:
        # lo and hi may have been flushed to zero.
        lo, hi = _ends(np.asarray(part).astype(np.float64, copy=False) for part in _parts(flat))
        largest = max(abs(lo), abs(hi))
        # 1023 is float64's largest exponent: only its subnormal tensors would want a larger factor.
        power = min(-int(np.frexp(largest)[1]), 1023)
        factor = float(np.ldexp(1.0, power)) if largest else 1.0
    return Leaf(path, array, flat, factor, lo * factor, hi * factor)


def released(leaf: Leaf) -> Leaf:
    """The leaf without the weights of an array that is read when asked for; others as they are."""
    return dataclasses.replace(leaf, flat=leaf.array) if _is_lazy(leaf) else leaf


def loaded(leaf: Leaf) -> Leaf:
    """The leaf with its weights, which `released` may have let go of."""
    return dataclasses.replace(leaf, flat=_flat(leaf.array)) if _is_lazy(leaf) else leaf


def _is_lazy(leaf: Leaf) -> bool:
    return isinstance(leaf.array, LazyArray)


def _has_parts(array: Any) -> bool:
    return isinstance(array, LazyArray) and array.part is not None


def _flat(array: Any) -> Any:
    if _has_parts(array):
        return array
    if on_device.holds(array):
        return array if _is_whole(array) else array.reshape(-1)
    if isinstance(array, jax.Array):
        array = np.asarray(array)
    array = np.ascontiguousarray(array).reshape(-1)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _is_whole(flat: Any) -> bool:
    return isinstance(flat, jax.Array) and core.SORTED_SIZE < flat.size <= on_device.MOST


def part_of(flat: Any, start: int, size: int) -> Any:
    """At most so many flat weights from one on, where they lie."""
    if isinstance(flat, np.ndarray):
        return flat[start : start + size]
    size = min(size, flat.size - start)
    if _has_parts(flat):
        return flat.part(start, size)
    return jax.lax.dynamic_slice_in_dim(flat.reshape(-1), start, size)


def _pad(chunk: Any, size: int) -> Any:
    if chunk.size == size:
        return chunk
    pad = np.pad if isinstance(chunk, np.ndarray) else jnp.pad
    return pad(chunk, (0, size - chunk.size), mode="edge")


def _extremes(flat: Any) -> tuple[float, float]:
    if _is_whole(flat):
        lo, hi = np.asarray(on_device.extents([flat]))[0]
        return float(lo), float(hi)
    if not isinstance(flat, jax.Array) and flat.dtype in (np.float32, np.float64):
        return _ends(_parts(flat))
    launched = (_extent(_pad(part, core.CHUNK)) for part in _parts(flat))
    lo, hi = np.array([jax.device_get(pair) for pair in ahead(launched)]).T
    return float(lo.min()), float(hi.max())


def _parts(flat: Any) -> Iterator[Any]:
    return (part_of(flat, start, core.CHUNK) for start in range(0, flat.size, core.CHUNK))


def _ends(parts: Iterator[np.ndarray]) -> tuple[float, float]:
    lo, hi = np.array([(part.min(), part.max()) for part in parts]).T
    return float(lo.min()), float(hi.max())


def _what_is_not_finite(path: str, array: Any) -> str:
    values = np.asarray(array).astype(np.float64)
    nan, inf = int(np.isnan(values).sum()), int(np.isinf(values).sum())
    first = tuple(int(i) for i in np.argwhere(~np.isfinite(values))[0])
    return (
        f"{path}: {nan} NaN and {inf} infinite of {values.size} weights, the first at index "
        f"{first}; repair the checkpoint, or leave this path out with select"
    )


def measure(leaf: Leaf) -> tuple[core.Density, core.Normalization]:
    """The density of a leaf, in one pass over its pieces."""
    ends = np.array([leaf.lo, leaf.hi], np.float32)
    if leaf.is_whole:
        density, norm = on_device.density(leaf.flat, ends, leaf.factors)
    elif leaf.piece == core.SORTED_SIZE:
        norm = _normalization(*ends)
        chunk, valid = _live(leaf)
        return _from_sorted(chunk, np.int32(valid), norm), norm
    else:
        norm = _normalization(*ends)
        density = core.binned(_counts_in_pieces(leaf, norm))
    if leaf.scales is not None and leaf.scales.dead:
        counts = _without_zeros(density.counts, norm, np.int32(leaf.scales.dead))
        density = density._replace(counts=counts)
    return density, norm


def _counts_in_pieces(leaf: Leaf, norm: core.Normalization) -> jax.Array:
    counts = core.empty_counts()
    for i, ((chunk, valid), to_x) in enumerate(
        zip(leaf.unscaled(), leaf.norms(norm), strict=False)
    ):
        counts = _accumulate(counts, chunk, np.int32(valid), to_x)
        if i % IN_FLIGHT == 0:
            counts.block_until_ready()
    return counts


def _live(leaf: Leaf) -> tuple[Any, int]:
    """The only piece of a small leaf, without the weights of dead rows."""
    chunk, valid = next(leaf.pieces())
    if leaf.scales is None or not leaf.scales.dead:
        return chunk, valid
    x = np.asarray(chunk)[:valid][next(leaf.spread(leaf.scales.values))[:valid] > 0]
    return (_pad(x, leaf.piece) if x.size else chunk), x.size


def distinct(leaf: Leaf, most: int) -> np.ndarray | None:
    """The distinct weights, ascending, if there are at most ``most`` of them; scales do not count.

    The first few weights tell most tensors apart, so that it costs little to ask.
    """
    found = np.empty(0, leaf.flat.dtype)
    for start in (0, *range(_FEW, leaf.flat.size, core.CHUNK)):
        size = core.CHUNK if start else _FEW
        found = np.union1d(found, np.asarray(part_of(leaf.flat, start, size)))
        if found.size > most:
            return None
    return found + found.dtype.type(0)  # which of two zeros it has depends on the order
