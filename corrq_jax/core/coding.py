"""Codes: which cell a weight lies in, packed to b bits each, and back to weights.

The code of a weight is the number of boundaries below it, so a weight at a boundary belongs to the
lower cell. Packed codes are one little-endian bit stream: code i occupies bits ``i b`` to
``i b + b - 1``, bit j of the stream being bit ``j % 8`` of byte ``j // 8``.
"""

from functools import partial
from math import gcd

import jax
import jax.numpy as jnp

from corrq_jax.core.density import BINS, key, snap


def lookup_table(boundaries: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A table that turns assignment into one look-up.

    Args:
        boundaries: float32[levels - 1], ascending, in normalized units.

    Returns:
        table: uint8[BINS], the number of boundaries below each bin.
        exact: bool scalar, whether all boundaries are edges of bins (`corrq_jax.core.density.snap`
            moves them there); the table serves only then.
    """
    count = jnp.zeros(BINS, jnp.int32).at[key(boundaries)].add(1)
    below = jnp.cumsum(count) - count
    return below.astype(jnp.uint8), (snap(boundaries) == boundaries).all()


def assign_by_table(x: jax.Array, table: jax.Array) -> jax.Array:
    """uint8 codes of normalized weights, by an exact `lookup_table`."""
    return table.at[key(x)].get(mode="promise_in_bounds")


def assign_by_search(x: jax.Array, boundaries: jax.Array) -> jax.Array:
    """uint8 codes of normalized weights by binary search: any boundaries, slower."""
    code = jnp.searchsorted(boundaries, x, side="left", method="scan")
    return code.astype(jnp.uint8)


def packed_size(size: int, bits: int) -> int:
    """Bytes that ``size`` codes of ``bits`` bits take."""
    return -(-size * bits // 8)


def pattern(bits: int) -> tuple[int, int]:
    """(codes, bytes) after which the position of codes in bytes repeats."""
    group = 8 // gcd(8, bits)
    return group, group * bits // 8


@partial(jax.jit, static_argnames="bits")
def pack(codes: jax.Array, bits: int) -> jax.Array:
    """Pack flat uint8 codes, each below ``2**bits``, into uint8[ceil(n bits / 8)].

    >>> pack(jnp.array([1, 2, 3], jnp.uint8), 4).tolist()
    [33, 3]
    """
    size = codes.shape[0]
    if bits == 8:
        return codes
    group, span = pattern(bits)
    groups = -(-size // group)
    columns = jnp.pad(codes, (0, groups * group - size)).reshape(groups, group)
    columns = columns.astype(jnp.uint32)
    packed = []
    for byte in range(span):
        value = jnp.zeros(groups, jnp.uint32)
        for i in range(group):
            shift = i * bits - 8 * byte
            if -bits < shift < 8:
                part = columns[:, i]
                value |= part << shift if shift >= 0 else part >> -shift
        packed.append(value.astype(jnp.uint8))
    return jnp.stack(packed, axis=1).reshape(-1)[: packed_size(size, bits)]


@partial(jax.jit, static_argnames=("size", "bits"))
def unpack(packed: jax.Array, size: int, bits: int) -> jax.Array:
    """Unpack ``size`` codes of ``bits`` bits: uint8[size].

    >>> unpack(jnp.array([33, 3], jnp.uint8), 3, 4).tolist()
    [1, 2, 3]
    """
    if bits == 8:
        return packed[:size]
    group, span = pattern(bits)
    groups = -(-size // group)
    columns = jnp.pad(packed, (0, groups * span - packed.shape[0])).reshape(groups, span)
    columns = columns.astype(jnp.uint32)
    codes = []
    for i in range(group):
        first, offset = divmod(i * bits, 8)
        value = columns[:, first] >> offset
        if offset + bits > 8:
            value |= columns[:, first + 1] << (8 - offset)
        codes.append((value & (2**bits - 1)).astype(jnp.uint8))
    return jnp.stack(codes, axis=1).reshape(-1)[:size]


def decode(codes: jax.Array, levels: jax.Array) -> jax.Array:
    """Level of each code: same shape as ``codes``, dtype of ``levels``."""
    return levels.at[codes].get(mode="promise_in_bounds")
