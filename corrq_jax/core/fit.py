"""From a density to a quantizer: boundaries, values and the correlation they reach."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from corrq_jax.core import correlation as corr
from corrq_jax.core import grids
from corrq_jax.core.compiling import each, jit_search
from corrq_jax.core.density import Density, Normalization, is_binned, snap
from corrq_jax.core.optimal import optimal_values
from corrq_jax.core.search import Effort, argmin, maximize


class Method(NamedTuple):
    """Which quantizer to fit; hashable, a static argument. `corrq_jax.Config` validates it.

    Attributes:
        grid: "optimal", "nf4" or one of `corrq_jax.core.grids.GRIDS`.
        fit: "correlation" or "range".
        levels: "mean" (cell means) or "grid" (values on the grid).
        bits: 1 to 8.
        zero: whether zero is a level (exponential grid).
        effort: how finely the search looks.
    """

    grid: str
    fit: str
    levels: str
    bits: int
    zero: bool = False
    effort: Effort = Effort()


class Quantizer(NamedTuple):
    """A fitted quantizer, in normalized units.

    Attributes:
        boundaries: float32[levels - 1], ascending; a weight at a boundary lies below it.
        values: float64[levels], the least-squares gain and offset included.
        noise: float64 scalar, ``1 - rho**2``.
    """

    boundaries: jax.Array
    values: jax.Array
    noise: jax.Array


def span_of(
    m: corr.Moments, density: Density, lo: jax.Array, hi: jax.Array, norm: Normalization
) -> grids.Span:
    """Where the weights lie, from their exact extremes (float32 scalars, in weight units)."""
    lo, hi = norm.apply(lo).astype(jnp.float64), norm.apply(hi).astype(jnp.float64)
    origin = -norm.center.astype(jnp.float64) * norm.scale.astype(jnp.float64)
    at = jnp.searchsorted(m.sums[1:, 0], m.total / 2)
    median = m.points[at].astype(jnp.float64)
    x = density.points.astype(jnp.float64)

    def typical(center):
        # The mean of the square root, squared: unlike the mean or the deviation, no single outlier
        # moves it, and unlike a quantile it is never zero by many equal weights.
        return ((density.counts * jnp.sqrt(jnp.abs(x - center))).sum() / m.total) ** 2

    return grids.Span(lo, hi, origin, median, typical(median), typical(origin))


def _range_boundaries(method: Method, m: corr.Moments, span: grids.Span, count: int):
    """Boundaries and values of the plain baselines, whose range is that of the weights."""
    if method.grid == "nf4":
        values = jnp.asarray(grids.NF4) * grids.largest_magnitude(span) + span.origin
        return grids.midpoints(values), values
    grid = grids.GRIDS[method.grid]
    if not grid.plain_is_fitted:
        return grid.plain(0.0, span, count)

    def noise(u):
        boundaries, values = grid.plain(u, span, count)
        c = corr.cells(m.sums, corr.bin_edges(m, boundaries))
        if method.levels == "grid":
            return corr.noise_of_values(m, c, values)
        return corr.noise_of_means(m, c)

    candidates = jnp.linspace(0, 1, 2048)
    return grid.plain(candidates[argmin(jax.vmap(noise)(candidates))], span, count)


def _maximized(method: Method, m: corr.Moments, span: grids.Span, plain):
    """Boundaries and values of largest correlation on a grid; the plain ones where none is better.

    The search sees a lattice, and on tensors of a few dozen weights a plain range can beat it.
    """
    grid, count, on_grid = grids.GRIDS[method.grid], len(plain[1]), method.levels == "grid"
    parameters = maximize(m, grid, span, count, on_grid, method.effort)
    found = grid.boundaries(*parameters, span, count), grid.values(*parameters, span, count)
    found, plain = ((snap(boundaries), values) for boundaries, values in (found, plain))

    def noise(boundaries, values):
        c = corr.cells(m.sums, corr.bin_edges(m, boundaries))
        return corr.noise_of_values(m, c, values) if on_grid else corr.noise_of_means(m, c)

    better = noise(*found) <= noise(*plain)
    return jax.tree.map(lambda a, b: jnp.where(better, a, b), found, plain)


def _fitted_values(method: Method, m: corr.Moments, c: corr.Cells, values, span: grids.Span):
    """Cell means, or the grid's values with their least-squares gain and offset."""
    odd = len(values) % 2 == 1
    if method.levels == "mean":
        means = c.means(m, values)
        # A zero level promises that zero stays zero.
        return means.at[len(values) // 2].set(span.origin) if odd else means
    if method.fit == "range":
        return values
    if odd:
        from_zero = values - span.origin
        mean_product = (c.moment * from_zero).sum() + (m.mean - span.origin) * (
            c.mass * from_zero
        ).sum()
        power = (c.mass * from_zero**2).sum()
        return span.origin + from_zero * mean_product / jnp.maximum(power, 1e-300)
    gain, offset = corr.gain_offset(m, c, values)
    return gain * values + offset


def fit(
    density: Density, lo: jax.Array, hi: jax.Array, norm: Normalization, method: Method
) -> Quantizer:
    """Fit a quantizer to a density. Pure: works under jit and vmap; `fit_batch` is both.

    Args:
        density: at least two distinct points.
        lo: smallest weight, float32 scalar.
        hi: largest weight, float32 scalar.
        norm: the normalization of the density.
        method: what to fit.

    Returns:
        The `Quantizer` of largest correlation that the method allows.
    """
    with jax.enable_x64(True):
        m = corr.moments(density)
        count = grids.level_count(method.bits, method.zero)
        if method.grid == "optimal":
            values = optimal_values(density, m, count)
            boundaries = grids.midpoints(values).astype(jnp.float32)
            # Sorted weights can be closer than a bin, and small tensors need their exact optimum.
            boundaries = jnp.where(is_binned(density), snap(boundaries), boundaries)
            noise = corr.noise_of_means(m, corr.cells(m.sums, corr.bin_edges(m, boundaries)))
            return Quantizer(boundaries, values, noise)
        span = span_of(m, density, lo, hi, norm)
        boundaries, values = _range_boundaries(method, m, span, count)
        if method.fit == "correlation":
            boundaries, values = _maximized(method, m, span, (boundaries, values))
        boundaries = boundaries.astype(jnp.float32)
        c = corr.cells(m.sums, corr.bin_edges(m, boundaries))
        values = _fitted_values(method, m, c, values, span)
        return Quantizer(boundaries, values, corr.noise_of_values(m, c, values))


@partial(jit_search, static_argnames="method")
def fit_batch(
    density: Density, lo: Any, hi: Any, norm: Normalization, method: Method, count: Any
) -> Quantizer:
    """`fit` over the leading axis of a batch of layers, the first ``count`` of it."""
    with jax.enable_x64(True):
        return each(partial(fit, method=method), count, density, lo, hi, norm)
