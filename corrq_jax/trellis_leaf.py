"""One leaf in trellis-coded levels, and what its levels are best at once the codes are known."""

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from corrq_jax.core import coding, trellis
from corrq_jax.core.density import Normalization
from corrq_jax.encoding import assembled, in_one_stream
from corrq_jax.leaf import Leaf
from corrq_jax.tensor import QuantizedTensor

_UNIT = 2.0**-16
"""Sums are of whole numbers of it: exact in any order, and of 2**30 weights inside int64."""


class _Sums(NamedTuple):
    """Of the weights at each level, and of all: x in normalized units, e their error."""

    mass: Any
    total: Any
    square: Any
    error: Any


@jax.jit
def _encoded(chunk: jax.Array, valid: Any, norm: Any, levels: jax.Array, price: jax.Array):
    """Codes of a piece, a byte each, and its `_Sums`."""
    size = chunk.size
    x = jnp.pad(norm.apply(chunk), (0, -size % trellis.SEGMENT), mode="edge")
    codes = trellis.encode(x.reshape(-1, trellis.SEGMENT), levels, price).reshape(-1)
    index = trellis.level_indices(codes)
    present = jnp.arange(x.size) < valid
    whole = jnp.where(present, jnp.round(x.astype(jnp.float64) / _UNIT), 0).astype(jnp.int64)
    zeros = jnp.zeros(trellis.LEVELS, jnp.int64)
    wide = jnp.where(present, x, 0).astype(jnp.float64)
    error = jnp.where(present, x - levels[index], 0).astype(jnp.float64)
    sums = _Sums(
        zeros.at[index].add(present), zeros.at[index].add(whole), wide @ wide, error @ error
    )
    return codes[:size], sums


def encode(
    leaf: Leaf, norm: Normalization, values: np.ndarray, price: np.ndarray | None, bits: int
) -> tuple[QuantizedTensor, float]:
    """Code every weight, and give each level the mean of the weights that have it.

    Args:
        leaf: the tensor.
        norm: its normalization.
        values: the levels to code with, ascending, in normalized units; a multiple of 4, at most
            ``2**(bits + 1)``.
        price: what a weight of each costs beside its squared error; None for nothing.
        bits: of a code, at most `corrq_jax.core.trellis.MOST_BITS`.

    Returns:
        The tensor, and its noise ``1 - rho**2``, with scales that of the scaled weights.
    """
    levels = np.full(trellis.LEVELS, np.inf, np.float32)
    levels[: len(values)] = values
    prices = np.zeros(trellis.LEVELS, np.float32)
    prices[: len(values)] = 0 if price is None else price
    parts = []

    def codes_in_pieces() -> Iterator[jax.Array]:
        for (chunk, valid), to_x in zip(leaf.unscaled(), leaf.norms(norm), strict=False):
            with jax.enable_x64(True):
                found, sums = _encoded(chunk, np.int32(valid), to_x, levels, prices)
            parts.append(jax.device_get(sums))
            yield coding.pack(found, bits)

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
