"""One leaf of a tree, read in pieces of a fixed size: its density, and its codes.

The pieces are views of the leaf where it lies in host memory, so that nothing of the tensor's size
is copied, and every tensor of every network runs through the same few compiled functions.
"""

import dataclasses
from collections import deque
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from corrq_jax.core import coding
from corrq_jax.core import density as core
from corrq_jax.core.fit import Quantizer
from corrq_jax.errors import InputError
from corrq_jax.tensor import QuantizedTensor, empty_to_hand_over

DTYPES = ("float16", "bfloat16", "float32", "float64")
"""Dtypes that can be quantized."""

# Below this XLA flushes to zero what it multiplies; such tensors are scaled up on the host first.
_TINY = 2.0**-100

# Pieces are copied when they are handed over; so many at a time keep the device busy.
_IN_FLIGHT = 4

_extent = jax.jit(core.extent)
_normalization = jax.jit(core.normalization)
_accumulate = jax.jit(core.accumulate, donate_argnums=0)
_from_sorted = jax.jit(core.from_sorted)
_lookup_table = jax.jit(coding.lookup_table)


@partial(jax.jit, static_argnames="bits")
def _codes_by_table(chunk, norm, table, bits):
    return coding.pack(coding.assign_by_table(norm.apply(chunk), table), bits)


@partial(jax.jit, static_argnames="bits")
def _codes_by_search(chunk, norm, boundaries, bits):
    return coding.pack(coding.assign_by_search(norm.apply(chunk), boundaries), bits)


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A tensor of finite floats, ready to be read.

    Attributes:
        path: where it is in the tree, for messages.
        array: the leaf as it came.
        flat: its weights, one axis, a view where that is possible.
        factor: power of two that every piece is multiplied by on the host; 1 for all but float64
            and subnormal tensors.
        lo: smallest weight, times ``factor``.
        hi: largest weight, times ``factor``.
    """

    path: str
    array: Any
    flat: Any
    factor: float
    lo: float
    hi: float

    @property
    def dtype(self) -> str:
        """Name of the dtype."""
        return self.array.dtype.name  # whatever its byte order

    @property
    def piece(self) -> int:
        """Weights in a piece."""
        return core.SORTED_SIZE if self.flat.size <= core.SORTED_SIZE else core.CHUNK

    @property
    def is_constant(self) -> bool:
        """Whether all weights are equal."""
        return self.lo == self.hi

    def pieces(self) -> Iterator[tuple[Any, int]]:
        """(flat weights, number of valid ones); a short last piece repeats its last weight."""
        for start in range(0, self.flat.size, self.piece):
            chunk = _slice(self.flat, start, self.piece)
            if self.factor != 1 or self.dtype == "float64":
                chunk = (np.asarray(chunk, np.float64) * self.factor).astype(np.float32)
            yield _pad(chunk, self.piece), chunk.size


def read(path: str, array: Any) -> Leaf:
    """Check a non-empty leaf of one of `DTYPES` and find its extremes.

    Raises:
        InputError: a weight is NaN or infinite, or float64 weights do not fit float32 levels.
    """
    flat = _flat(array)
    lo, hi = _extremes(flat)
    if not np.isfinite([lo, hi]).all():
        raise InputError(_what_is_not_finite(path, array))
    largest = max(abs(lo), abs(hi))
    factor = 1.0
    if largest < _TINY or flat.dtype == np.float64:
        wide = np.asarray(flat).astype(np.float64)  # lo and hi may have been flushed to zero
        lo, hi = float(wide.min()), float(wide.max())
        largest = max(abs(lo), abs(hi))
        # 1023 is float64's largest exponent: only its subnormal tensors would want a larger factor.
        power = min(-int(np.frexp(largest)[1]), 1023)
        factor = float(np.ldexp(1.0, power)) if largest else 1.0
    return Leaf(path, array, flat, factor, lo * factor, hi * factor)


def _flat(array: Any) -> Any:
    if isinstance(array, jax.Array):
        on_host = all(device.platform == "cpu" for device in array.devices())
        if not on_host or not array.is_fully_addressable:
            return array.reshape(-1)
        array = np.asarray(array)
    array = np.ascontiguousarray(array).reshape(-1)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _slice(flat: Any, start: int, size: int) -> Any:
    if isinstance(flat, np.ndarray):
        return flat[start : start + size]
    size = min(size, flat.size - start)
    return jax.lax.dynamic_slice_in_dim(flat, start, size)


def _pad(chunk: Any, size: int) -> Any:
    if chunk.size == size:
        return chunk
    pad = np.pad if isinstance(chunk, np.ndarray) else jnp.pad
    return pad(chunk, (0, size - chunk.size), mode="edge")


def _extremes(flat: Any) -> tuple[float, float]:
    if isinstance(flat, np.ndarray) and flat.dtype in (np.float32, np.float64):
        return float(flat.min()), float(flat.max())
    starts = range(0, flat.size, core.CHUNK)
    parts = [_extent(_pad(_slice(flat, s, core.CHUNK), core.CHUNK)) for s in starts]
    lo, hi = np.array(jax.device_get(parts), np.float32).T
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
    norm = _normalization(np.float32(leaf.lo), np.float32(leaf.hi))
    if leaf.piece == core.SORTED_SIZE:
        chunk, valid = next(leaf.pieces())
        return _from_sorted(chunk, np.int32(valid), norm), norm
    counts = core.empty_counts()
    for i, (chunk, valid) in enumerate(leaf.pieces()):
        counts = _accumulate(counts, chunk, np.int32(valid), norm)
        if i % _IN_FLIGHT == 0:
            counts.block_until_ready()
    return core.binned(counts), norm


def encode(
    leaf: Leaf, norm: core.Normalization, quantizer: Quantizer, bits: int
) -> QuantizedTensor:
    """Assign every weight to its level and pack the codes, in one pass over the pieces.

    Raises:
        InputError: a level is outside of what the leaf's dtype can hold.
    """
    boundaries = jnp.asarray(quantizer.boundaries)
    table, exact = _lookup_table(boundaries)
    by_table = leaf.piece > core.SORTED_SIZE and bool(exact)
    codes = empty_to_hand_over(coding.packed_size(leaf.flat.size, bits), np.uint8)
    piece = coding.packed_size(leaf.piece, bits)
    waiting: deque[tuple[int, jax.Array]] = deque()

    def collect() -> None:
        start, part = waiting.popleft()
        codes[start : start + piece] = np.asarray(part)[: codes.size - start]

    for i, (chunk, _) in enumerate(leaf.pieces()):
        if by_table:
            part = _codes_by_table(chunk, norm, table, bits)
        else:
            part = _codes_by_search(chunk, norm, boundaries, bits)
        waiting.append((i * piece, part))
        if len(waiting) > _IN_FLIGHT:
            collect()
    while waiting:
        collect()
    spare = -leaf.flat.size * bits % 8
    if spare:
        codes[-1] &= 0xFF >> spare  # the padding's codes: the stream ends in zeros
    return _tensor(leaf, codes, levels_in_weight_units(leaf, norm, quantizer.values), bits)


def levels_in_weight_units(leaf: Leaf, norm: core.Normalization, values: Any) -> np.ndarray:
    """float64 levels: normalized values back in the units of the weights."""
    center, scale = float(norm.center), float(norm.scale)
    return (np.asarray(values, np.float64) / scale + center) / leaf.factor


def distinct(leaf: Leaf, most: int) -> np.ndarray | None:
    """The distinct weights, ascending, if there are at most ``most`` of them."""
    found = np.empty(0, leaf.flat.dtype)
    for start in range(0, leaf.flat.size, core.CHUNK):
        found = np.union1d(found, np.asarray(_slice(leaf.flat, start, core.CHUNK)))
        if found.size > most:
            return None
    return found


def encode_exactly(leaf: Leaf, values: np.ndarray) -> QuantizedTensor:
    """Store a leaf of few distinct weights without loss, in as few bits as they need."""
    bits = max(1, int(values.size - 1).bit_length())
    codes = np.empty(leaf.flat.size, np.uint8)
    for start in range(0, leaf.flat.size, core.CHUNK):
        part = np.asarray(_slice(leaf.flat, start, core.CHUNK))
        codes[start : start + core.CHUNK] = np.searchsorted(values, part)
    return _tensor(leaf, np.asarray(coding.pack(codes, bits)), values.astype(np.float64), bits)


def _tensor(leaf: Leaf, codes: np.ndarray, levels: np.ndarray, bits: int) -> QuantizedTensor:
    if leaf.dtype == "float64":
        kept = levels
    else:
        # A fitted level can lie above the largest weight (an offset, a midpoint of an empty cell).
        limit = float(jnp.finfo(leaf.dtype).max)
        kept = jnp.asarray(np.clip(levels, -limit, limit).astype(np.float32))
    shape = tuple(int(n) for n in leaf.array.shape)
    return QuantizedTensor(jax.device_put(codes), kept, shape, leaf.dtype, bits)
