"""The codes and levels of one leaf, from its pieces and a quantizer of its density."""

import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from corrq_jax import on_device
from corrq_jax.core import coding
from corrq_jax.core.compiling import jit_search
from corrq_jax.core.density import CHUNK, SORTED_SIZE, Normalization
from corrq_jax.core.fit import Quantizer
from corrq_jax.leaf import Leaf, part_of
from corrq_jax.side_by_side import ahead
from corrq_jax.tensor import QuantizedTensor, empty_to_hand_over

_lookup_table = jit_search(coding.lookup_table)


@partial(jax.jit, static_argnames="bits")
def _codes_by_table(chunk, norm, table, bits):
    return coding.pack(coding.assign_by_table(norm.apply(chunk), table), bits)


@partial(jax.jit, static_argnames="bits")
def _codes_by_search(chunk, norm, boundaries, bits):
    return coding.pack(coding.assign_by_search(norm.apply(chunk), boundaries), bits)


def encode(leaf: Leaf, norm: Normalization, quantizer: Quantizer, bits: int) -> QuantizedTensor:
    """Assign every weight to its level and pack the codes, in one pass over the pieces."""
    levels = _levels(leaf, norm, quantizer.values)
    if leaf.is_whole:
        boundaries = np.asarray(quantizer.boundaries)
        codes, kept = on_device.codes(leaf.flat, norm, leaf.factors, boundaries, levels, bits)
        return _tensor(leaf, codes, kept, bits)
    parts = _codes_in_pieces(leaf, norm, jnp.asarray(quantizer.boundaries), bits)
    return _tensor(leaf, in_one_stream(leaf, ahead(parts), bits), levels, bits)


def assembled(
    leaf: Leaf, norm: Normalization, codes: Any, values: Any, bits: int
) -> QuantizedTensor:
    """The tensor of packed codes and of values in normalized units, with the scales of the leaf."""
    return _tensor(leaf, codes, _levels(leaf, norm, values), bits)


def _levels(leaf: Leaf, norm: Normalization, values: Any) -> np.ndarray:
    """Values in normalized units as the levels that are kept."""
    with np.errstate(over="ignore"):  # of a float64 level above the largest weight
        levels = levels_in_weight_units(leaf, norm, values)
    if leaf.scales is not None:
        limit = largest_level(leaf, float(leaf.scales.values.max()))
        levels = np.clip(levels, -limit, limit)
    return as_stored(leaf, levels)


def _codes_in_pieces(
    leaf: Leaf, norm: Normalization, boundaries: jax.Array, bits: int
) -> Iterator[jax.Array]:
    table, exact = _lookup_table(boundaries)
    by_table = leaf.piece > SORTED_SIZE and bool(exact)
    for (chunk, _), to_x in zip(leaf.unscaled(), leaf.norms(norm), strict=False):
        if by_table:
            yield _codes_by_table(chunk, to_x, table, bits)
        else:
            yield _codes_by_search(chunk, to_x, boundaries, bits)


def in_one_stream(leaf: Leaf, parts: Iterator[jax.Array], bits: int) -> np.ndarray:
    """The codes of a leaf, from the packed ones of each of its pieces."""
    codes = empty_to_hand_over(coding.packed_size(leaf.flat.size, bits), np.uint8)
    piece = coding.packed_size(leaf.piece, bits)
    for i, part in enumerate(parts):
        codes[i * piece : (i + 1) * piece] = np.asarray(part)[: codes.size - i * piece]
    spare = -leaf.flat.size * bits % 8
    if spare:
        codes[-1] &= 0xFF >> spare  # the padding's codes: the stream ends in zeros
    return codes


def largest_level(leaf: Leaf, scale: float) -> float:
    """What a level, or a scale, may be for its product with a scale, or a level, to be finite."""
    largest = float(jnp.finfo(leaf.dtype).max) * (1 - 2.0**-10)  # scales are rounded by half that
    return min(largest / scale, float(np.finfo(np.float64).max)) if scale else largest


def levels_in_weight_units(leaf: Leaf, norm: Normalization, values: Any) -> np.ndarray:
    """float64 levels: normalized values back in the units of the weights.

    With scales: to be multiplied by the float16 scale of a weight's row.
    """
    center, scale = float(norm.center), float(norm.scale)
    levels = np.asarray(values, np.float64) / scale + center
    return levels * (1.0 if leaf.scales is None else leaf.scales.unit) / leaf.factor


def encode_exactly(leaf: Leaf, values: np.ndarray) -> QuantizedTensor:
    """Store a leaf of few distinct weights without loss, in as few bits as they need.

    Scales are left out.
    """
    bits = max(1, int(values.size - 1).bit_length())
    codes = np.empty(leaf.flat.size, np.uint8)
    for start in range(0, leaf.flat.size, CHUNK):
        part = np.asarray(part_of(leaf.flat, start, CHUNK))
        codes[start : start + CHUNK] = np.searchsorted(values, part)
    packed = np.asarray(coding.pack(codes, bits))
    exact = dataclasses.replace(leaf, scales=None)
    return _tensor(exact, packed, as_stored(leaf, values.astype(np.float64)), bits)


def _tensor(leaf: Leaf, codes: Any, levels: Any, bits: int) -> QuantizedTensor:
    """The tensor of codes and levels, both where they lie or sent to the device, and scales."""
    shape = tuple(int(n) for n in leaf.array.shape)
    # Float64 levels stay on the host, where jax keeps float32.
    kept = levels if leaf.dtype == "float64" else _sent(levels)
    tensor = QuantizedTensor(_sent(codes), kept, shape, leaf.dtype, bits)
    if leaf.scales is None:
        return tensor
    scales = jax.device_put(leaf.scales.values)
    return dataclasses.replace(tensor, scales=scales, rows=leaf.scales.rows)


def _sent(array: Any) -> jax.Array:
    return array if isinstance(array, jax.Array) else jax.device_put(array)


def as_stored(leaf: Leaf, levels: np.ndarray) -> np.ndarray:
    """The levels in float32, or those of a float64 leaf in float64, as far as its dtype holds them.

    A fitted level can lie above the largest weight (an offset, a midpoint of an empty cell).
    """
    limit = float(jnp.finfo(leaf.dtype).max)
    kept = np.clip(levels, -limit, limit)
    return kept if leaf.dtype == "float64" else kept.astype(np.float32)
