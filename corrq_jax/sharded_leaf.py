"""A leaf that is shared out over a mesh of devices: its density and its codes, found where it lies.

Each device reads its own weights, in one compiled program for each shape and sharding. No weight
goes to another device or to the host, but for tensors of at most `SORTED_SIZE` weights (their
density is the sorted weights) and for the few distinct weights of a tensor that has few. All
processes that hold a part of the mesh have to make the same calls.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from corrq_jax import leaf as leaves
from corrq_jax.core import coding, shards
from corrq_jax.core import density as core
from corrq_jax.core.compiling import jit_search
from corrq_jax.core.fit import Quantizer
from corrq_jax.core.shards import axes_of
from corrq_jax.encoding import as_stored, levels_in_weight_units
from corrq_jax.errors import InputError
from corrq_jax.leaf import Leaf
from corrq_jax.sharding import blocks_of
from corrq_jax.tensor import QuantizedTensor, blocked

DTYPES = ("float16", "bfloat16", "float32")
"""Dtypes that are quantized where they lie."""


_normalization = jax.jit(core.normalization)
_lookup_table = jit_search(coding.lookup_table)


def _shared_out(function: Any, w: jax.Array, sharding: NamedSharding, out: Any, *rest: Any) -> Any:
    """A function of a shard, the mesh's axes that share out the tensor's, and what all share."""
    axes = axes_of(sharding.spec, w.ndim)
    specs = (sharding.spec, *(PartitionSpec() for _ in rest))
    return jax.shard_map(
        lambda w, *rest: function(w, axes, *rest), mesh=sharding.mesh, in_specs=specs, out_specs=out
    )(w, *rest)


@partial(jax.jit, static_argnames="sharding")
def _extent(w, sharding):
    return _shared_out(shards.extent, w, sharding, PartitionSpec())


@partial(jax.jit, static_argnames="sharding")
def _whole(w, sharding):
    return _shared_out(shards.whole, w, sharding, PartitionSpec())


@partial(jax.jit, static_argnames="sharding")
def _density(w, norm, sharding):
    return _shared_out(shards.density, w, sharding, PartitionSpec(), norm)


@partial(jax.jit, static_argnames=("sharding", "bits", "assign"))
def _codes(w, norm, cells, sharding, bits, assign):
    def packed(w, axes, norm, cells):
        codes = assign(norm.apply(w.reshape(-1)), cells)
        return coding.pack(codes, bits).reshape((1,) * w.ndim + (-1,))

    return _shared_out(packed, w, sharding, sharding.spec, norm, cells)


@partial(jax.jit, static_argnames=("sharding", "bits"))
def _places(w, values, sharding, bits):
    def packed(w, axes, values):
        codes = jnp.searchsorted(values, w.reshape(-1)).astype(jnp.uint8)
        return coding.pack(codes, bits).reshape((1,) * w.ndim + (-1,))

    return _shared_out(packed, w, sharding, sharding.spec, values)


@jax.jit
def _not_finite(w):
    return jnp.isnan(w).sum(), jnp.isinf(w).sum()


def read(path: str, array: jax.Array, sharding: NamedSharding) -> Leaf:
    """Check a non-empty leaf and find its extremes, as `corrq_jax.leaf.read` does.

    Raises:
        InputError: the dtype is not one of `DTYPES`, or a weight is NaN or infinite.
    """
    if array.dtype.name not in DTYPES:
        raise InputError(
            f"{path}: {array.dtype} on a mesh of devices: only {', '.join(DTYPES)} are quantized "
            "where they lie; convert it, or fetch it with jax.device_get"
        )
    lo, hi = (float(x) for x in jax.device_get(_extent(array, sharding)))
    if not np.isfinite([lo, hi]).all():
        nan, inf = (int(n) for n in jax.device_get(_not_finite(array)))
        raise InputError(
            f"{path}: {nan} NaN and {inf} infinite of {array.size} weights; repair the "
            "checkpoint, or leave this path out with select"
        )
    if lo != hi and max(abs(lo), abs(hi)) < leaves.TINY:
        raise InputError(
            f"{path}: all weights are below 2**-100, which devices take for zero; fetch it with "
            "jax.device_get"
        )
    return Leaf(path, array, array, 1.0, lo, hi, sharding=sharding)


def measure(leaf: Leaf) -> tuple[core.Density, core.Normalization]:
    """The density of a leaf: that of the same weights in one place, to the last bit."""
    assert leaf.sharding is not None
    if leaf.flat.size <= core.SORTED_SIZE:
        whole = np.asarray(_whole(leaf.array, leaf.sharding))
        return leaves.measure(leaves.read(leaf.path, whole))
    norm = _normalization(np.float32(leaf.lo), np.float32(leaf.hi))
    norm = jax.tree.map(np.asarray, norm)
    density = _density(leaf.array, norm, leaf.sharding)
    return jax.tree.map(np.asarray, density), norm  # the same in each process, as what follows


def encode(
    leaf: Leaf, norm: core.Normalization, quantizer: Quantizer, bits: int
) -> QuantizedTensor:
    """Codes in the sharding of the leaf, and levels on every device."""
    norm, boundaries = jax.tree.map(np.asarray, (norm, quantizer.boundaries))
    table, exact = _lookup_table(boundaries)
    if leaf.flat.size > core.SORTED_SIZE and bool(exact):
        cells, assign = np.asarray(table), coding.assign_by_table
    else:
        cells, assign = boundaries, coding.assign_by_search
    codes = _codes(leaf.array, norm, cells, leaf.sharding, bits, assign)
    return _tensor(leaf, codes, levels_in_weight_units(leaf, norm, quantizer.values), bits)


def distinct(leaf: Leaf, most: int) -> np.ndarray | None:
    """The distinct weights, ascending, if there are at most ``most`` of them."""
    found: np.ndarray | None = np.empty(0, leaf.array.dtype)
    for shard in leaf.array.addressable_shards:
        own = leaves.distinct(leaves.read(leaf.path, shard.data), most)
        found = None if found is None or own is None else np.union1d(found, own)
    if jax.process_count() > 1:
        found = _of_all_processes(found, most, leaf.array.dtype)
    return None if found is None or found.size > most else found


def _of_all_processes(found: np.ndarray | None, most: int, dtype: Any) -> np.ndarray | None:
    """The union of what the processes found; None if one of them found too many."""
    if found is None or found.size > most:
        found = np.array([np.nan])
    sent = np.resize(found.astype(np.float32), most)  # repeats them; exact for all of `DTYPES`
    received = np.unique(multihost_utils.process_allgather(sent))
    return None if np.isnan(received).any() else received.astype(dtype)


def encode_exactly(leaf: Leaf, values: np.ndarray) -> QuantizedTensor:
    """Store a leaf of few distinct weights without loss, in as few bits as they need."""
    bits = max(1, int(values.size - 1).bit_length())
    codes = _places(leaf.array, values, leaf.sharding, bits)
    return _tensor(leaf, codes, values.astype(np.float64), bits)


def _tensor(leaf: Leaf, codes: jax.Array, levels: np.ndarray, bits: int) -> QuantizedTensor:
    assert leaf.sharding is not None
    stored = as_stored(leaf, levels)
    everywhere = NamedSharding(leaf.sharding.mesh, PartitionSpec())
    kept = jax.make_array_from_callback(stored.shape, everywhere, stored.__getitem__)
    blocks = blocks_of(leaf.sharding, leaf.array.ndim)
    return blocked(codes, kept, leaf.array.shape, leaf.dtype, bits, blocks)
