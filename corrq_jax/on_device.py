"""Tensors that lie on an accelerator: read there as a whole, in one call each, codes left there.

In host memory a tensor is read in pieces of one size, so that one compilation serves all shapes and
nothing of the tensor's size is made. An accelerator is fast enough for the calls to be what costs.
So each shape compiles here.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from corrq_jax.core import coding
from corrq_jax.core import density as core
from corrq_jax.tensor import Rows

MOST = 1 << 30
"""Weights of the largest tensor that is read as a whole: its indices stay far inside int32."""


def holds(array: Any) -> bool:
    """Whether an array lies outside of this process's host memory."""
    if not isinstance(array, jax.Array):
        return False
    on_host = all(device.platform == "cpu" for device in array.devices())
    return not (on_host and array.is_fully_addressable)


extent = jax.jit(core.extent)
"""`corrq_jax.core.density.extent` of a whole tensor."""


@jax.jit
def counts(flat: jax.Array, norm: Any) -> jax.Array:
    """The histogram of a flat tensor, int32[BINS].

    Args:
        flat: weights, more than `corrq_jax.core.density.SORTED_SIZE`.
        norm: what has ``apply``, from weights to normalized units.
    """
    return core.accumulate(core.empty_counts(), flat, jnp.int32(flat.size), norm)


@partial(jax.jit, static_argnames="bits")
def codes(flat: jax.Array, norm: Any, boundaries: jax.Array, bits: int) -> jax.Array:
    """Packed codes of a flat tensor, uint8[ceil(size * bits / 8)].

    Args:
        flat: weights.
        norm: what has ``apply``, from weights to normalized units.
        boundaries: float32[levels - 1], ascending, in normalized units.
        bits: of a code.
    """
    table, exact = coding.lookup_table(boundaries)

    def by_table(w: jax.Array) -> jax.Array:
        return coding.pack(coding.assign_by_table(norm.apply(w), table), bits)

    def by_search(w: jax.Array) -> jax.Array:
        return coding.pack(coding.assign_by_search(norm.apply(w), boundaries), bits)

    return jax.lax.cond(exact, by_table, by_search, flat)


@partial(jax.jit, static_argnames=("rows", "size"))
def spread(values: np.ndarray, rows: Rows, size: int) -> jax.Array:
    """[size]: for each weight of a flat tensor the value of its row, from [groups, channels]."""
    index = jnp.arange(size, dtype=jnp.int32)
    channel = index // rows.after % rows.channels
    within = index // (rows.after * rows.channels) * rows.after + index % rows.after
    return jnp.asarray(values)[within // rows.group, channel]
