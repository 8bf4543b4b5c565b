"""The density of a weight tensor: what every later step reads instead of the weights.

A weight ``w`` is first normalized, ``x = (w - center) * scale``, with ``scale`` a power of two that
puts the largest magnitude into [2**14, 2**15). Rounded to float16, ``x`` has at most 65,536 values:
bins of constant relative precision, so that no outlier starves the centre. Counts are integers:
they merge exactly, in any order, across chunks and devices.

Tensors of at most `SORTED_SIZE` weights are too few for bins to be worth it: their density is the
sorted weights themselves, one point each, in the same `Density` shape.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from corrq_jax.core.histogram import KEYS, histogram

BINS = KEYS
"""Support points of a density: every float16."""
CHUNK = 1 << 20
"""Weights in one step of the histogram: 4 MB of float32 stay in cache, and one shape compiles."""
SORTED_SIZE = 1 << 14
"""Largest tensor whose density is its sorted weights."""
TOP_EXPONENT = 14
"""The largest normalized magnitude lies in [2**14, 2**15): inside float16, rounding included."""


class Density(NamedTuple):
    """Weights of one tensor, sorted and counted.

    Attributes:
        points: float32[BINS], ascending, in normalized units.
        counts: int32[BINS], how many weights lie at each point; 0 where there is none.
    """

    points: jax.Array
    counts: jax.Array


class Normalization(NamedTuple):
    """The affine map from weights to normalized units, ``x = (w - center) * scale``.

    Attributes:
        center: float32 scalar; 0 unless the weights lie so far from zero that float16's relative
            precision would not resolve them.
        scale: float32 scalar, a power of two.
    """

    center: jax.Array
    scale: jax.Array

    def apply(self, w: jax.Array) -> jax.Array:
        """Weights of any float dtype to normalized float32."""
        return (w.astype(jnp.float32) - self.center) * self.scale


def extent(w: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Smallest and largest weight as float32 scalars; NaN in both if any weight is NaN."""
    w = w.astype(jnp.float32)
    # XLA's minimum of many weights on a CPU passes over NaN.
    nan = jnp.isnan(w).any()
    return jnp.where(nan, jnp.nan, w.min()), jnp.where(nan, jnp.nan, w.max())


def normalization(lo: jax.Array, hi: jax.Array) -> Normalization:
    """The normalization of weights that span [lo, hi], both finite float32 scalars.

    Where all weights lie within a factor of 3 of each other on one side of zero, they are centered
    at the middle of their range: each difference ``w - center`` is then exact (Sterbenz).
    """
    narrow = ((lo > 0) & (hi <= 3 * lo)) | ((hi < 0) & (lo >= 3 * hi))
    center = jnp.where(narrow, lo + 0.5 * (hi - lo), 0.0).astype(jnp.float32)
    magnitude = jnp.maximum(hi - center, center - lo)
    bits = jax.lax.bitcast_convert_type(magnitude, jnp.int32)
    exponent = jnp.where(bits == 0, TOP_EXPONENT, (bits >> 23) - 127)
    # 127 is float32's largest exponent: only subnormal-near tensors would want a larger factor.
    power = jnp.minimum(TOP_EXPONENT - exponent, 127)
    scale = jax.lax.bitcast_convert_type((power + 127) << 23, jnp.float32)
    return Normalization(center, scale)


def key(x: jax.Array) -> jax.Array:
    """Bin index, int32 in [0, BINS), of normalized weights: monotone in ``x``."""
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float16), jnp.uint16).astype(jnp.int32)
    return jnp.where(bits >= BINS // 2, BINS - 1 - bits, bits + BINS // 2)


def _bin_points() -> np.ndarray:
    """float32[BINS]: the float16 value of each bin, ascending; unused patterns clipped."""
    index = np.arange(BINS)
    bits = np.where(index >= BINS // 2, index - BINS // 2, BINS - 1 - index).astype(np.uint16)
    values = bits.view(np.float16).astype(np.float32)
    largest = float(np.finfo(np.float16).max)
    values = np.nan_to_num(values, nan=largest, posinf=largest, neginf=-largest)
    return np.where(index >= BINS // 2, np.abs(values), -np.abs(values)).astype(np.float32)


BIN_POINTS = _bin_points()


def _bin_edges() -> np.ndarray:
    """float32[BINS]: the largest float32 that rounds to each bin."""
    middle = (BIN_POINTS[:-1].astype(np.float64) + BIN_POINTS[1:]).astype(np.float32) / 2
    middle = np.append(middle, BIN_POINTS[-1])
    # A tie rounds to the even neighbour: the edge lies just below it where that is the upper one.
    up = middle.astype(np.float16).astype(np.float32) > BIN_POINTS
    edges = np.where(up, np.nextafter(middle, np.float32(-np.inf)), middle)
    edges[BINS // 2 - 1] = edges[BINS // 2]  # no comparison separates -0 from 0
    return edges


BIN_EDGES = _bin_edges()


def bins_below(boundaries: jax.Array) -> jax.Array:
    """int32: how many bins lie below each boundary; the bin that it cuts does if its point does."""
    boundaries = boundaries.astype(jnp.float32)
    limit = float(BIN_POINTS[-1])
    rounded = jnp.clip(boundaries, -limit, limit).astype(jnp.float16)
    return key(rounded) + (rounded.astype(jnp.float32) <= boundaries)


def snap(boundaries: jax.Array) -> jax.Array:
    """float32 boundaries moved to the edge of a bin, by at most 2**-11 of their distance from zero.

    They then cut no bin in two: the cells of the weights are exactly those of their density, and
    the bin of a weight tells its cell. Without this a search would be rewarded for boundaries so
    close to an outlier that the density cannot tell on which side it lies.
    """
    upper = jnp.maximum(bins_below(boundaries) - 1, 0)
    return jnp.asarray(BIN_EDGES).at[upper].get(mode="promise_in_bounds")


def empty_counts() -> jax.Array:
    """int32[BINS] of zeros, to accumulate into."""
    return jnp.zeros(BINS, jnp.int32)


def accumulate(counts: jax.Array, chunk: jax.Array, valid: jax.Array, norm: Any) -> jax.Array:
    """Add the first ``valid`` weights of a flat chunk to int32[BINS] counts.

    ``norm`` is a `Normalization`, or what else has its ``apply``.

    The rest of the chunk must repeat its last weight (padding); it is counted and taken back out,
    which is cheaper than a mask over every weight.
    """
    x = norm.apply(chunk)
    counts = counts + histogram(key(x))
    return counts.at[key(x[-1])].add(valid - chunk.size)


def counted(w: jax.Array, norm: Normalization) -> jax.Array:
    """int32[BINS] counts of flat weights, a chunk at a time."""
    # The short chunk first: within jax.shard_map the loop's counts then vary as the weights do.
    first = (w.size - 1) % CHUNK + 1
    counts = accumulate(empty_counts(), w[:first], jnp.int32(first), norm)
    if w.size == first:
        return counts

    def step(i: jax.Array, counts: jax.Array) -> jax.Array:
        chunk = jax.lax.dynamic_slice_in_dim(w, first + i * CHUNK, CHUNK)
        return accumulate(counts, chunk, jnp.int32(CHUNK), norm)

    return jax.lax.fori_loop(0, (w.size - first) // CHUNK, step, counts)


def binned(counts: jax.Array) -> Density:
    """The density of a histogram accumulated by `accumulate`."""
    return Density(jnp.asarray(BIN_POINTS), counts)


def from_sorted(w: jax.Array, valid: jax.Array, norm: Normalization) -> Density:
    """The density of the first ``valid`` of at most BINS flat weights: a point for each value."""
    present = jnp.arange(w.size) < valid
    x = jnp.sort(jnp.where(present, norm.apply(w), jnp.inf))
    run = jnp.cumsum(jnp.diff(x, prepend=x[:1]) > 0)
    points = jnp.full(BINS, x[jnp.maximum(valid - 1, 0)])
    points = points.at[run].min(x, mode="promise_in_bounds")
    counts = jnp.zeros(BINS, jnp.int32).at[run].add(present, mode="promise_in_bounds")
    return Density(points, counts)


def is_binned(density: Density) -> jax.Array:
    """Whether the points (a bool scalar) are those of the bins, not sorted weights."""
    return density.points[0] == BIN_POINTS[0]  # far below every normalized weight


def density(w: jax.Array) -> tuple[Density, Normalization]:
    """Density of a whole array: any shape and float dtype, at least one weight, all finite.

    Jittable; compiles once a shape. `corrq_jax.quantize` feeds fixed-size chunks to `accumulate`
    instead, and compiles once for all shapes.

    >>> import jax.numpy as jnp
    >>> d, norm = density(jnp.array([1.0, -2.0, 1.0]))
    >>> int(d.counts.sum()), float(d.points[0] / norm.scale)
    (3, -2.0)
    """
    w = w.reshape(-1)
    norm = normalization(*extent(w))
    if w.size <= SORTED_SIZE:
        return from_sorted(w, jnp.int32(w.size), norm), norm
    return binned(counted(w, norm)), norm
