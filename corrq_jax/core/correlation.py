"""Pearson correlation between weights and quantized weights, from the mass and mean of each cell.

Notation of docs/method.md: cells k with mass p_k and mean c_k, values v_k, ``N = cov(w, Q)``,
``V = var(Q)``, ``rho = N / (sigma sqrt V)``. The figure that is minimized everywhere is the
*noise* ``1 - rho**2``: the share of the weights' variance that the best gain and offset leave
unexplained. It is computed in float64, since at 8 bits rho differs from 1 in the fifth digit.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from corrq_jax.core.density import BINS, CHUNK, Density, key

BLOCKS = 256
"""Parts in which the points of a density are looked at."""


class Moments(NamedTuple):
    """Running sums of a density, from which any cell's mass and mean is one difference.

    Attributes:
        points: float32[BINS], ascending.
        sums: float64[BINS + 1, 2], running sums of counts and of counts * x, from zero.
        total: float64 scalar, the number of weights.
        mean: float64 scalar.
        square: float64 scalar, the sum of squared deviations from the mean (SST).
    """

    points: jax.Array
    sums: jax.Array
    total: jax.Array
    mean: jax.Array
    square: jax.Array


class Cells(NamedTuple):
    """Mass and first moment of each cell; moments are about the tensor's mean.

    Attributes:
        mass: float64[levels], weights in the cell.
        moment: float64[levels], sum over the cell of ``x - mean``.
    """

    mass: jax.Array
    moment: jax.Array

    def means(self, moments: Moments, fallback: jax.Array) -> jax.Array:
        """float64[levels] cell means c_k in normalized units; ``fallback`` for an empty cell."""
        mean = self.moment / jnp.maximum(self.mass, 1) + moments.mean
        return jnp.where(self.mass > 0, mean, fallback)


def moments(density: Density) -> Moments:
    """Running sums of a density (float64: call under ``jax.enable_x64``)."""
    count = density.counts.astype(jnp.float64)
    x = density.points.astype(jnp.float64)
    total = count.sum()
    mean = (count * x).sum() / total
    deviation = x - mean
    sums = jnp.cumsum(jnp.stack([count, count * deviation], axis=-1), axis=0)
    sums = jnp.concatenate([jnp.zeros((1, 2)), sums])
    return Moments(density.points, sums, total, mean, (count * deviation**2).sum())


def bin_edges(m: Moments, boundaries: jax.Array) -> jax.Array:
    """int32: how many support points lie at or below each boundary (a weight at it goes below)."""
    boundaries = boundaries.astype(jnp.float32)
    return jax.lax.platform_dependent(
        m.points, boundaries, cpu=_edges_by_bisection, default=_edges_by_counting
    )


def _edges_by_bisection(points: jax.Array, boundaries: jax.Array) -> jax.Array:
    found = jnp.searchsorted(points, boundaries, side="right", method="scan")
    return found.astype(jnp.int32)


def _edges_by_counting(points: jax.Array, boundaries: jax.Array) -> jax.Array:
    """More comparisons in two steps instead of 17: on a GPU each step is a kernel of its own."""
    blocks = points.reshape(BLOCKS, -1)
    started = (blocks[:, 0] <= boundaries[:, None]).sum(axis=1, dtype=jnp.int32)
    block = jnp.maximum(started - 1, 0)  # all blocks before it lie below the boundary as a whole
    inside = (blocks[block] <= boundaries[:, None]).sum(axis=1, dtype=jnp.int32)
    return block * blocks.shape[1] + inside


def by_key(m: Moments) -> jax.Array:
    """float64[BINS + 1, 2]: the running sums of all weights whose float16 key is below an index.

    For a binned density these are ``m.sums``; for a sorted one they let a search find the cell of a
    boundary by its key, in one step, at the resolution of float16.
    """
    points = jnp.zeros(BINS + 1, jnp.int32).at[key(m.points) + 1].add(1)
    return m.sums.at[jnp.cumsum(points)].get(mode="promise_in_bounds")


def cells(sums: jax.Array, edges: jax.Array) -> Cells:
    """Cells between ascending edges int32[levels - 1] into running sums; the outer two are open."""
    inner = sums.at[edges].get(mode="promise_in_bounds")
    ends = jnp.concatenate([sums[:1], inner, sums[-1:]])
    difference = jnp.diff(ends, axis=0)
    return Cells(difference[:, 0], difference[:, 1])


def noise_of_means(m: Moments, c: Cells) -> jax.Array:
    """``1 - rho**2`` when each cell's value is its mean: the rest of the variance between cells."""
    between = (c.moment**2 / jnp.maximum(c.mass, 1)).sum()
    return jnp.maximum(1 - between / m.square, 0)


def gain_offset(m: Moments, c: Cells, values: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Least-squares gain ``a = N / V`` and offset ``mu - a mean(Q)`` for the values v_k.

    ``a v_k + offset`` has the smallest squared error among all affine maps of the values; rho does
    not change, the network does (docs/method.md, section 2.4).
    """
    mean_q = (c.mass * values).sum() / m.total
    centered = values - mean_q
    covariance = (c.moment * centered).sum()
    variance = (c.mass * centered**2).sum()
    gain = jnp.where(variance > 0, covariance / jnp.where(variance > 0, variance, 1), 0)
    return gain, m.mean - gain * mean_q


def noise_of_values(m: Moments, c: Cells, values: jax.Array) -> jax.Array:
    """``1 - rho**2`` for given values v_k; 1 where the correlation is not positive."""
    mean_q = (c.mass * values).sum() / m.total
    centered = values - mean_q
    covariance = (c.moment * centered).sum()
    variance = (c.mass * centered**2).sum()
    explained = covariance * jnp.maximum(covariance, 0) / (m.square * variance)
    return jnp.where(variance > 0, jnp.maximum(1 - explained, 0), 1.0)


def _sums(w: np.ndarray, v: np.ndarray) -> np.ndarray:
    w, v = w.astype(np.float64), v.astype(np.float64)
    return np.array([w.sum(), v.sum(), w @ w, v @ v, w @ v])


def correlation(w: ArrayLike, w_hat: ArrayLike) -> float:
    """Centred Pearson correlation of two arrays over all their elements, in float64.

    Args:
        w: array of any shape and float dtype (numpy or jax), all finite.
        w_hat: array of the same shape.

    Returns:
        rho in [-1, 1]; NaN where either array is constant, since rho is then undefined.

    Raises:
        ValueError: the shapes differ.

    >>> round(correlation([1.0, 2.0, 4.0], [1.0, 2.0, 3.0]), 6)
    0.981981
    """
    w, w_hat = np.asarray(w), np.asarray(w_hat)
    if w.shape != w_hat.shape:
        raise ValueError(f"correlation: the shapes differ: {w.shape} and {w_hat.shape}")
    if w.size == 0:
        return float("nan")
    w, w_hat = w.reshape(-1), w_hat.reshape(-1)
    # Shift and scale first: sums of squares then neither overflow nor lose digits to the mean.
    shifts, scales = zip(*(_shift_scale(a) for a in (w, w_hat)), strict=True)
    total = np.zeros(5)
    for start in range(0, w.size, CHUNK):
        part = slice(start, start + CHUNK)
        pieces = [
            (a[part].astype(np.float64) - shift) / scale
            for a, shift, scale in zip((w, w_hat), shifts, scales, strict=True)
        ]
        total += _sums(*pieces)
    sw, sv, sww, svv, swv = total / w.size
    variance_w, variance_v = sww - sw * sw, svv - sv * sv
    if not (variance_w > 0 and variance_v > 0):
        return float("nan")
    return float(np.clip((swv - sw * sv) / np.sqrt(variance_w * variance_v), -1, 1))


def _shift_scale(a: np.ndarray) -> tuple[float, float]:
    lo, hi = float(a.min()), float(a.max())
    middle = lo / 2 + hi / 2
    # A mean estimate from a sample keeps one outlier from deciding the shift.
    shift = float(np.clip(np.median(a[:: max(1, a.size // 1024)].astype(np.float64)), lo, hi))
    half = max(hi - shift, shift - lo) or abs(middle) or 1.0
    return shift, half
