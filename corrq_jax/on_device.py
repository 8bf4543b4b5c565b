"""Tensors that lie on an accelerator: read there as a whole, in one call each, codes left there.

In host memory a tensor is read in pieces of one size, so that one compilation serves all shapes and
nothing of the tensor's size is made. An accelerator is fast enough for the calls to be what costs.
So each shape compiles here.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from corrq_jax.core import coding
from corrq_jax.core import density as core
from corrq_jax.rows import Rows

MOST = 1 << 30
"""Weights of the largest tensor that is read as a whole: its indices stay far inside int32."""


def holds(array: Any) -> bool:
    """Whether an array lies outside of this process's host memory."""
    if not isinstance(array, jax.Array):
        return False
    on_host = all(device.platform == "cpu" for device in array.devices())
    return not (on_host and array.is_fully_addressable)


def by_device(arrays: Mapping[str, Any]) -> list[dict[str, jax.Array]]:
    """Those arrays that lie on accelerators: of each its own, as no call can take those of two."""
    found: dict[frozenset[Any], dict[str, jax.Array]] = {}
    for path, array in arrays.items():
        if holds(array):
            found.setdefault(frozenset(array.devices()), {})[path] = array
    return list(found.values())


@jax.jit
def extents(arrays: Sequence[jax.Array]) -> jax.Array:
    """float32[n, 2]: smallest and largest weight of each tensor; NaN if any of it is NaN."""
    return jnp.stack([jnp.stack(core.extent(w)) for w in arrays])


class Scaled(NamedTuple):
    """A normalization of weights that are multiplied by factors first.

    Attributes:
        factors: one for each weight, float32; None for none.
        norm: of the products.
    """

    factors: Any
    norm: core.Normalization

    def apply(self, w: jax.Array) -> jax.Array:
        """Weights of any float dtype to normalized float32."""
        return self.norm.apply(w if self.factors is None else w.astype(jnp.float32) * self.factors)


@jax.jit
def density(
    w: jax.Array, ends: np.ndarray, factors: jax.Array | None
) -> tuple[core.Density, core.Normalization]:
    """The density of a tensor.

    Args:
        w: weights, more than `corrq_jax.core.density.SORTED_SIZE`.
        ends: float32[2], the smallest and the largest, times its factor.
        factors: [w.size], what the weights are multiplied by; None for none.
    """
    norm = core.normalization(ends[0], ends[1])
    to_x = Scaled(factors, norm)
    counts = core.accumulate(core.empty_counts(), w.reshape(-1), jnp.int32(w.size), to_x)
    return core.binned(counts), norm


def codes(
    w: jax.Array,
    norm: core.Normalization,
    factors: jax.Array | None,
    boundaries: np.ndarray,
    levels: np.ndarray,
    bits: int,
) -> tuple[jax.Array, jax.Array]:
    """Packed codes of a tensor, uint8[ceil(size * bits / 8)], and the levels beside them.

    Args:
        w: weights.
        norm: from weights, times their factors, to normalized units.
        factors: as of `density`.
        boundaries: float32[n - 1], ascending, in normalized units.
        levels: float32[n] or fewer, in whatever units.
        bits: of a code.
    """
    spare = boundaries.size + 1 - levels.size
    padded = np.pad(levels, (0, spare)) if spare else levels
    # One array: on the way to an accelerator its size does not count, but how many there are does.
    numbers = np.concatenate([[norm.center, norm.scale], boundaries, padded], dtype=np.float32)
    packed, there = coded(w, factors, numbers, bits)
    return packed, jax.device_put(levels) if spare else there  # not sliced: each count compiles


@partial(jax.jit, static_argnames="bits")
def coded(
    w: jax.Array, factors: jax.Array | None, numbers: Any, bits: int
) -> tuple[jax.Array, jax.Array]:
    """`codes`, its numbers one after the other."""
    count = numbers.size // 2
    boundaries, levels = numbers[2 : count + 1], numbers[count + 1 :]
    table, exact = coding.lookup_table(boundaries)
    to_x = Scaled(factors, core.Normalization(numbers[0], numbers[1]))

    def by_table(w: jax.Array) -> jax.Array:
        return coding.pack(coding.assign_by_table(to_x.apply(w), table), bits)

    def by_search(w: jax.Array) -> jax.Array:
        return coding.pack(coding.assign_by_search(to_x.apply(w), boundaries), bits)

    return jax.lax.cond(exact, by_table, by_search, w.reshape(-1)), levels


@partial(jax.jit, static_argnames=("rows", "size"))
def spread(values: np.ndarray, rows: Rows, size: int) -> jax.Array:
    """[size]: for each weight of a flat tensor the value of its row, from [groups, channels]."""
    index = jnp.arange(size, dtype=jnp.int32)
    channel = index // rows.after % rows.channels
    within = index // (rows.after * rows.channels) * rows.after + index % rows.after
    return jnp.asarray(values)[within // rows.group, channel]
