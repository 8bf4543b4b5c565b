"""Scales of the rows of a tensor: found before its density is taken, fitted once it has codes."""

import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from corrq_jax.core import coding, trellis
from corrq_jax.core.density import CHUNK
from corrq_jax.core.interleave import last_order
from corrq_jax.encoding import largest_level
from corrq_jax.granularity import fold, lengths
from corrq_jax.leaf import Leaf, Scales
from corrq_jax.side_by_side import ahead
from corrq_jax.tensor import QuantizedTensor, Rows

# Weights whose squares are summed on the host, at a time: they stay in its cache.
_BLOCK = 1 << 17

# Rows smaller than the largest by more than this are dead: float16 would not hold their scales.
_DEAD = 2.0**-14

# With weights of this size, squares and reciprocals of live scales are far inside float32.
_MODERATE = 2.0**40


def scaled(leaf: Leaf, rows: Rows) -> Leaf:
    """The leaf with a scale for each row: the root mean square of its weights, as float16.

    A row below 2**-14 of the largest (to within a factor of 2) is dead: float16 has no normal
    number for its scale, and next to the others it does not count. Its scale is 0, it decodes to
    zeros, and it does not enter the density.

    Args:
        leaf: from `corrq_jax.leaf.read`.
        rows: which weights share a scale, such as from `corrq_jax.granularity.rows_of`.

    >>> from corrq_jax.leaf import read
    >>> w = np.array([[1.0, 0.25], [-1.0, 0.25]], np.float32)
    >>> x = scaled(read("w", w), Rows(2, 2, 1, 2))
    >>> x.scales.values.tolist(), x.lo, x.hi
    ([[1.0, 0.25]], -1.0, 1.0)
    """
    leaf = _of_moderate_size(leaf)
    found = _row_statistics(leaf, rows)
    scales = _scales(rows, found)
    live = scales.values > 0
    # In float32 as in the pieces, so that they are the same numbers.
    lo, hi = ((m * scales.factors)[live] for m in (found.lo, found.hi))
    extremes = (float(lo.min()), float(hi.max())) if live.any() else (0.0, 0.0)
    return dataclasses.replace(leaf, lo=extremes[0], hi=extremes[1], scales=scales)


def _scales(rows: Rows, found: "_RowStatistics") -> Scales:
    count = lengths(rows)
    rms = np.sqrt(found.square / count)
    unit = float(np.exp2(np.floor(np.log2(rms.max())))) if rms.any() else 1.0
    values = np.where(rms < _DEAD * unit, 0, rms / unit).astype(np.float16)
    dead = values == 0
    scales = Scales(
        rows=rows,
        values=values,
        unit=unit,
        mean=found.mean,
        variance=found.variance,
        dead=int((count * dead).sum()),
        lost=(float(found.total[dead].sum()), float(found.square[dead].sum())),
        variance_ratio=1.0,
    )
    return dataclasses.replace(scales, variance_ratio=_variance_ratio(scales, found))


def _of_moderate_size(leaf: Leaf) -> Leaf:
    """The leaf with a ``factor`` that lets squares be taken in float32."""
    largest = max(abs(leaf.lo), abs(leaf.hi))
    if leaf.factor != 1 or largest == 0 or 1 / _MODERATE < largest < _MODERATE:
        return leaf
    factor = float(np.ldexp(1.0, -int(np.frexp(largest)[1])))
    return dataclasses.replace(leaf, factor=factor, lo=leaf.lo * factor, hi=leaf.hi * factor)


class _RowStatistics(NamedTuple):
    """Of the weights of each row, times ``Leaf.factor``, and of all of them."""

    total: np.ndarray
    square: np.ndarray
    lo: np.ndarray
    hi: np.ndarray
    mean: float
    variance: float


def _row_statistics(leaf: Leaf, rows: Rows) -> _RowStatistics:
    total, square = np.zeros(rows.shape), np.zeros(rows.shape)
    lo, hi = (np.full(rows.shape, end, np.float32) for end in (np.inf, -np.inf))
    shift, around = None, np.zeros(2)
    for at, w in _blocks(leaf):
        shift = np.float32(w.mean()) if shift is None else shift  # or digits of the variance cancel
        away = w - shift
        around += away.sum(), away @ away
        fold(np.add, total, rows, w, at)
        fold(np.add, square, rows, w * w, at)
        fold(np.minimum, lo, rows, w, at)
        fold(np.maximum, hi, rows, w, at)
    mean, mean_square = around / leaf.flat.size
    return _RowStatistics(
        total, square, lo, hi, mean=float(shift or 0) + mean, variance=mean_square - mean**2
    )


def _blocks(leaf: Leaf) -> Iterator[tuple[int, np.ndarray]]:
    """(index of the first, float32 weights), in parts that stay in a cache."""
    for i, (chunk, valid) in enumerate(leaf.unscaled()):
        piece = np.asarray(chunk)[:valid]
        for start in range(0, valid, _BLOCK):
            block = piece[start : start + _BLOCK].astype(np.float32, copy=False)
            yield i * leaf.piece + start, block


def _variance_ratio(scales: Scales, found: _RowStatistics) -> float:
    """Mean squared scale * variance of the scaled weights / variance of the weights."""
    count, factors = lengths(scales.rows), scales.factors.astype(np.float64)
    size = scales.rows.channels * count.sum()
    live = size - scales.dead
    if not (live and scales.variance > 0):
        return 1.0
    power = ((scales.values.astype(np.float64) * scales.unit) ** 2 * count).sum() / size
    mean = (found.total * factors).sum() / live
    variance = (found.square * factors**2).sum() / live - mean**2
    return float(max(variance, 0) * power / scales.variance)


@partial(jax.jit, static_argnames=("bits", "spread"))
def _levels_and_errors(chunk, factors, packed, values, last, bits, spread):
    """Level and error of each scaled weight, and error of the weight itself; 0 if it is dead."""
    index = coding.unpack(packed, chunk.size, bits)
    v = coding.decode(trellis.level_indices(index, spread, last) if spread else index, values)
    error = chunk.astype(jnp.float32) * factors - v
    return v, error, jnp.where(factors > 0, error / factors, 0)


def refine(leaf: Leaf, tensor: QuantizedTensor) -> tuple[QuantizedTensor, float]:
    """Fit the scales to the codes by least squares, in one pass over the pieces.

    The gain of a row is ``<w, v> / <v, v>``, v the levels of its weights: no other scale leaves a
    smaller squared error. A row keeps its scale where that is not positive.

    Args:
        leaf: from `scaled`.
        tensor: what `corrq_jax.encoding.encode` made of it.

    Returns:
        The tensor with new scales, and its noise: ``1 - rho**2`` over all weights, before decoded
        weights are rounded to the dtype.
    """
    assert leaf.scales is not None
    old = leaf.scales.values
    errors = _errors(leaf, leaf.scales, tensor)
    own = errors.power > 0
    gain = 1 + np.divide(errors.product, errors.power, out=np.zeros(old.shape), where=own)
    limit = largest_level(leaf, float(np.abs(np.asarray(tensor.levels)).max()))
    new = np.minimum(old * gain, min(limit, float(np.finfo(np.float16).max))).astype(np.float16)
    new = np.where(new > 0, new, old)
    noise = _noise(leaf, leaf.scales, errors, new)
    return dataclasses.replace(tensor, scales=jax.device_put(new)), noise


class _Errors(NamedTuple):
    """Sums over rows [groups, channels] of scaled weights, of levels v and errors e.

    Attributes:
        level: of v.
        power: of v v.
        product: of e v.
        error: of the errors of all weights that are not dead, times ``Leaf.factor``.
        square: of their squares.
    """

    level: np.ndarray
    power: np.ndarray
    product: np.ndarray
    error: float
    square: float


def _errors(leaf: Leaf, scales: Scales, tensor: QuantizedTensor) -> _Errors:
    # In units of the scaled weights, where nothing overflows.
    values = np.asarray(tensor.levels, np.float64) * leaf.factor / scales.unit
    # As many as codes, so that counts of levels do not compile anew.
    spread = tensor.spread
    values = np.pad(values, (0, 2 ** (tensor.bits + spread) - values.size), mode="edge")
    values = jnp.asarray(values.astype(np.float32))
    level, power, product = (np.zeros(scales.rows.shape) for _ in range(3))
    sums = np.zeros(2)
    parts = (
        (
            valid,
            _levels_and_errors(
                chunk, factors, packed, values, last_order(valid), tensor.bits, spread
            ),
        )
        for chunk, valid, factors, packed in _with_codes(leaf, tensor, scales.factors)
    )
    for i, (valid, arrays) in enumerate(ahead(parts, 1)):  # each takes 20 MB
        whole = [np.asarray(a)[:valid] for a in arrays]
        for start in range(0, valid, CHUNK):  # a leaf on an accelerator is one piece
            v, e, error = (a[start : start + CHUNK] for a in whole)
            for table, x in ((level, v), (power, v * v), (product, v * e)):
                fold(np.add, table, scales.rows, x, i * leaf.piece + start)
            sums += error.sum(), error @ error
    return _Errors(level, power, product, float(sums[0]), float(sums[1]))


def _noise(leaf: Leaf, scales: Scales, errors: _Errors, new: np.ndarray) -> float:
    """``1 - rho**2`` with new scales, by the sums of the errors, in which no digits cancel."""
    sums = np.zeros(3)
    tables = (scales.values, new, errors.level, errors.power, errors.product)
    flat = [table.reshape(-1) for table in tables]
    for start in range(0, new.size, _BLOCK):  # groups can be many
        old, now, level, power, product = (table[start : start + _BLOCK] for table in flat)
        old = old.astype(np.float64)
        change = np.divide(now, old, out=np.ones_like(old), where=old > 0) - 1
        unit = old * scales.unit
        after = product - change * power
        sums[0] += (unit * change * level).sum()
        sums[1] += (unit**2 * change * (product + after)).sum()
        sums[2] += (unit**2 * (1 + change) * after).sum()
    error = errors.error - sums[0] + scales.lost[0]
    square = errors.square - sums[1] + scales.lost[1]
    both = square + sums[2]
    error, square, both = (x / leaf.flat.size for x in (error, square, both))
    square, both = square - error**2, both - scales.mean * error
    decoded = scales.variance - 2 * both + square
    # Below that, a variance is what rounding left of zero.
    if not (scales.variance > both and decoded > 1e-6 * scales.variance):
        return 1.0
    noise = (scales.variance * square - both**2) / (scales.variance * decoded)
    return float(np.clip(noise, 0, 1))


def _with_codes(
    leaf: Leaf, tensor: QuantizedTensor, values: np.ndarray
) -> Iterator[tuple[Any, int, Any, np.ndarray]]:
    """Each piece with the number of valid weights, the values of its rows and its codes."""
    codes, size = np.asarray(tensor.codes), coding.packed_size(leaf.piece, tensor.bits)
    for i, ((chunk, valid), value) in enumerate(
        zip(leaf.unscaled(), leaf.spread(values), strict=True)
    ):
        packed = codes[i * size : (i + 1) * size]
        yield chunk, valid, value, np.pad(packed, (0, size - packed.size))
