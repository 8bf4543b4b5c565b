"""Segments of weights, in each of which a trellis begins anew."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

SEGMENT = 1 << 10
"""Weights of a segment; the last may be shorter."""
LEVELS = 256
"""Most levels along a trellis: the index of one is a byte."""


def before(x: jax.Array, j: int) -> jax.Array:
    """What is j places before, in the same segment; 0 where that is before its first.

    Args:
        x: integers [n], the first being the first of a segment.
        j: how far, static.

    >>> before(jnp.array([4, 5, 6, 7]), 2).tolist()
    [0, 0, 4, 5]
    """
    if j == 0:
        return x
    place = jnp.arange(x.size, dtype=jnp.int32) % SEGMENT
    return jnp.where(place >= j, jnp.roll(x, j), 0)


def in_blocks(
    encode: Callable[[jax.Array], jax.Array], x: jax.Array, count: Any, lanes: int, on_device: int
) -> jax.Array:
    """Codes of segments, some at a time.

    Args:
        encode: from float32[n, lanes], weights of as many segments, to codes, uint8 alike.
        x: float32[segments, n].
        count: how many segments are wanted; None for all. Of the others codes may be 0.
        lanes: how many at a time on a CPU.
        on_device: and at most on an accelerator.

    Returns:
        uint8[segments, n].
    """
    segments, n = x.shape
    wanted = jnp.asarray(segments if count is None else count, jnp.int32)

    def of_blocks(x: jax.Array, lanes: int) -> jax.Array:
        x = jnp.pad(x, ((0, -segments % lanes), (0, 0)))
        blocks = x.reshape(-1, lanes, n).transpose(0, 2, 1)

        def add(i: jax.Array, codes: jax.Array) -> jax.Array:
            return codes.at[i].set(encode(blocks[i]))

        codes = jnp.zeros(blocks.shape, jnp.uint8)
        codes = jax.lax.fori_loop(0, (wanted + lanes - 1) // lanes, add, codes)
        return codes.transpose(0, 2, 1).reshape(-1, n)[:segments]

    return jax.lax.platform_dependent(
        x,
        cpu=partial(of_blocks, lanes=min(lanes, segments)),
        default=partial(of_blocks, lanes=min(on_device, segments)),
    )
