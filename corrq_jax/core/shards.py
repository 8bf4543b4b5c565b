"""A tensor in shards: what each device finds of its own, and the sums that make it the whole's.

To be called within `jax.shard_map`, on one shard. Only counts, extremes and, of tensors of at most
`SORTED_SIZE` weights, the weights themselves go from device to device: integers and bits, so that
the result is that of the whole tensor to the last bit, however it is sharded.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from corrq_jax.core.density import (
    SORTED_SIZE,
    Density,
    Normalization,
    binned,
    counted,
    from_sorted,
)
from corrq_jax.core.density import extent as extent_of

Axes = tuple[tuple[str, ...], ...]
"""For each axis of a tensor the axes of the mesh that it is shared out over, major first."""

_BITS = {2: jnp.uint16, 4: jnp.uint32}


def axes_of(spec: PartitionSpec, rank: int) -> Axes:
    """The axes of the mesh for each axis of a tensor.

    >>> axes_of(PartitionSpec(("x", "y"), None, "z"), 4)
    (('x', 'y'), (), ('z',), ())
    """
    given = (*spec, *(None,) * (rank - len(spec)))
    return tuple(() if a is None else a if isinstance(a, tuple) else (a,) for a in given)


def blocks(axes: Axes) -> tuple[int, ...]:
    """How many shards lie along each axis of the tensor."""
    return tuple(math.prod(jax.lax.axis_size(name) for name in names) for names in axes)


def _names(axes: Axes) -> tuple[str, ...]:
    return tuple(name for names in axes for name in names)


def extent(w: jax.Array, axes: Axes) -> tuple[jax.Array, jax.Array]:
    """Smallest and largest weight of all shards; NaN in both if any weight is NaN."""
    names = _names(axes)
    lo, hi = extent_of(w)
    if not names:
        return lo, hi
    # Whether a NaN gets through the minimum of several devices depends on the backend.
    nan = jax.lax.psum(jnp.isnan(lo).astype(jnp.int32), names) > 0
    lo, hi = jax.lax.pmin(lo, names), jax.lax.pmax(hi, names)
    return jnp.where(nan, jnp.nan, lo), jnp.where(nan, jnp.nan, hi)


def whole(w: jax.Array, axes: Axes) -> jax.Array:
    """The whole tensor, on every device: for small ones."""
    if not _names(axes):
        return w
    own = _BITS[w.dtype.itemsize]
    bits = jax.lax.bitcast_convert_type(w, own).astype(jnp.uint32)
    at = [
        jax.lax.axis_index(names) * size if names else 0
        for names, size in zip(axes, w.shape, strict=True)
    ]
    shape = tuple(count * n for count, n in zip(blocks(axes), w.shape, strict=True))
    own_place = jax.lax.dynamic_update_slice(jnp.zeros(shape, bits.dtype), bits, at)
    bits = jax.lax.psum(own_place, _names(axes))
    return jax.lax.bitcast_convert_type(bits.astype(own), w.dtype)


def density(w: jax.Array, axes: Axes, norm: Normalization) -> Density:
    """The density of all shards' weights."""
    size = w.size * math.prod(blocks(axes))
    if size <= SORTED_SIZE:
        return from_sorted(whole(w, axes).reshape(-1), jnp.int32(size), norm)
    counts = counted(w.reshape(-1), norm)
    return binned(jax.lax.psum(counts, _names(axes)) if _names(axes) else counts)


def join(parts: Any, rank: int) -> Any:
    """Blocks [*blocks, *block] of a tensor of some rank side by side, as one array.

    >>> join(jnp.arange(4).reshape(2, 1, 1, 2), 2).tolist(), join(jnp.ones((1, 2, 3, 4)), 2).shape
    ([[0, 1], [2, 3]], (3, 8))
    """
    counts, sizes = parts.shape[:rank], parts.shape[rank:]
    order = [axis for i in range(rank) for axis in (i, rank + i)]
    shape = tuple(count * size for count, size in zip(counts, sizes, strict=True))
    return parts.transpose(order).reshape(shape)
