"""One leaf in trellis-coded levels, and what its levels are best at once the codes are known."""

import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from corrq_jax.core import coding, congruential, trellis, ungerboeck
from corrq_jax.core.density import Normalization
from corrq_jax.core.interleave import in_place, in_turn, last_order
from corrq_jax.core.segments import LEVELS, SEGMENT
from corrq_jax.encoding import assembled, in_one_stream
from corrq_jax.leaf import Leaf
from corrq_jax.side_by_side import side_by_side
from corrq_jax.tensor import QuantizedTensor

_UNIT = 2.0**-16
"""Sums are of whole numbers of it: exact in any order, and of 2**30 weights inside int64."""


class _Sums(NamedTuple):
    """Of the weights at each level, and of all: x in normalized units, e their error."""

    mass: Any
    total: Any
    square: Any
    error: Any


@partial(jax.jit, static_argnames="spread")
def _codes(chunk, valid, norm, levels, price, last, bits, spread):
    """Codes of a piece, a byte each."""
    x = norm.apply(chunk)
    count = (valid + SEGMENT - 1) // SEGMENT
    if spread == 1:
        return ungerboeck.encode(_segments(x), levels, price, count).reshape(-1)[: x.size]
    # What is not a weight is the same, in whatever pieces the tensor is read.
    rows = _segments(jnp.where(jnp.arange(x.size) < valid, in_turn(x, last), 0), pad=0.0)
    codes = congruential.encode(rows, levels, bits, spread, count).reshape(-1)[: x.size]
    return in_place(codes, last)


@partial(jax.jit, static_argnames="spread")
def _sums(chunk, valid, norm, levels, codes, last, spread):
    """`_Sums` of a piece (call under ``jax.enable_x64``)."""
    x, index = norm.apply(chunk), trellis.level_indices(codes, spread, last)
    present = jnp.arange(x.size) < valid
    whole = jnp.where(present, jnp.round(x.astype(jnp.float64) / _UNIT), 0).astype(jnp.int64)
    zeros = jnp.zeros(LEVELS, jnp.int64)
    wide = jnp.where(present, x, 0).astype(jnp.float64)
    error = jnp.where(present, x - levels[index], 0).astype(jnp.float64)
    return _Sums(
        zeros.at[index].add(present), zeros.at[index].add(whole), wide @ wide, error @ error
    )


def _segments(x: jax.Array, pad: float | None = None) -> jax.Array:
    """A row for each segment, the last filled up: by the number given, else by its last weight."""
    spare = (0, -x.size % SEGMENT)
    x = jnp.pad(x, spare, mode="edge") if pad is None else jnp.pad(x, spare, constant_values=pad)
    return x.reshape(-1, SEGMENT)


def encode(
    leaf: Leaf, norm: Normalization, values: np.ndarray, price: np.ndarray | None, bits: int
) -> tuple[QuantizedTensor, float]:
    """Code every weight, and give each level the mean of the weights that have it.

    Args:
        leaf: the tensor.
        norm: its normalization.
        values: the levels to code with, ascending, in normalized units; as many as
            `corrq_jax.core.trellis.may_have` allows.
        price: what a weight of each costs beside its squared error, if there are at most
            ``2**(bits + 1)``; None for nothing.
        bits: of a code, at most `corrq_jax.core.trellis.MOST_BITS`.

    Returns:
        The tensor, and its noise ``1 - rho**2``, with scales that of the scaled weights.
    """
    levels = np.full(LEVELS, np.inf, np.float32)
    levels[: len(values)] = values
    prices = np.zeros(LEVELS, np.float32)
    prices[: len(values)] = 0 if price is None else price
    spread = trellis.spread_of(bits, len(values))
    parts = []

    def of_piece(chunk: Any, valid: int, to_x: Any) -> tuple[jax.Array, _Sums]:
        order, count = last_order(valid), np.int32(valid)
        found = _codes(chunk, count, to_x, levels, prices, order, np.int32(bits), spread=spread)
        with jax.enable_x64(True):
            sums = _sums(chunk, count, to_x, levels, found, order, spread=spread)
        return jax.block_until_ready((coding.pack(found, bits), sums))

    def codes_in_pieces() -> Iterator[jax.Array]:
        pieces = zip(leaf.unscaled(), leaf.norms(norm), strict=False)
        calls = (partial(of_piece, *piece, to_x) for piece, to_x in pieces)
        for packed, sums in side_by_side(calls):
            parts.append(jax.device_get(sums))
            yield packed

    codes = in_one_stream(leaf, codes_in_pieces(), bits)
    sums = _Sums(*(np.sum(column, axis=0) for column in zip(*parts, strict=True)))
    mass = sums.mass[: len(values)]
    means = sums.total[: len(values)] * _UNIT / np.maximum(mass, 1)
    new = _between(np.where(mass > 0, means, np.nan), values)
    error = sums.error - (mass * (means - levels[: len(values)]) ** 2)[mass > 0].sum()
    variance = sums.square - (mass * means).sum() ** 2 / mass.sum()
    noise = float(np.clip(error / variance, 0, 1)) if variance > 0 else 1.0
    tensor = assembled(leaf, norm, codes, new, bits)
    how = "trellis" if price is None else "entropy-trellis"
    return dataclasses.replace(tensor, coding=how), noise


def _between(means: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The means, and for those that are NaN their values, moved between the means beside them."""
    least = np.fmax.accumulate(means)
    most = np.fmin.accumulate(means[::-1])[::-1]
    return np.where(np.isnan(means), np.fmin(np.fmax(values, least), most), means)
