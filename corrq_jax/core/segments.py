"""Segments of weights, in each of which a trellis begins anew."""

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
