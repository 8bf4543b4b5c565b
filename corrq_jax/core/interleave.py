"""The order in which a trellis visits the weights of a tensor: far-off ones in turn.

Weights that lie side by side are of like sizes: one tap of a depthwise kernel, one input of a dense
one. A run of large weights finds none of the levels that a long history offers rarely, where as
many, each on its own, find them. So each block of weights is visited by strides of about the golden
section of it, which keeps apart what lay together.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from corrq_jax.core.density import CHUNK

BLOCK = CHUNK
"""Weights of a block; the last may be shorter. Products of 10 bits with an index stay in uint32."""
_SECTION = (math.sqrt(5) - 1) / 2


class Order(NamedTuple):
    """The order of a block.

    Attributes:
        size: how many weights it has.
        stride: weight ``turn * stride % size`` is visited at a turn.
        inverse: weight i is visited at turn ``i * inverse % size``.
    """

    size: Any
    stride: Any
    inverse: Any


def order_of(size: int) -> Order:
    """The order of a block of so many weights, at most `BLOCK`.

    The stride is the first number from ``floor(size * (sqrt(5) - 1) / 2)`` on, at least 1, that has
    no divisor in common with the size.

    >>> order_of(10)
    Order(size=10, stride=7, inverse=3)
    """
    stride = max(1, int(size * _SECTION))
    while math.gcd(stride, size) != 1:
        stride += 1
    return Order(size, stride, pow(stride, -1, size))


def last_order(size: int) -> Order:
    """The order of the last block of a tensor of so many weights."""
    return order_of((size - 1) % BLOCK + 1 if size else 1)


def in_turn(x: jax.Array, last: Order | None = None) -> jax.Array:
    """An array [n] in the order in which the trellis visits it.

    Args:
        x: the weights, or what belongs to them.
        last: the order of the last block, if not all that it has are to be visited.

    >>> in_turn(jnp.arange(10)).tolist()
    [0, 7, 4, 1, 8, 5, 2, 9, 6, 3]
    """
    last = last_order(x.size) if last is None else last
    return _taken(x, [order_of(BLOCK).stride, last.stride], last)


def in_place(x: jax.Array, last: Order | None = None) -> jax.Array:
    """The inverse of `in_turn`.

    >>> in_place(in_turn(jnp.arange(10))).tolist()
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    """
    last = last_order(x.size) if last is None else last
    return _taken(x, [order_of(BLOCK).inverse, last.inverse], last)


def _taken(x: jax.Array, factors: list[Any], last: Order) -> jax.Array:
    whole = max(x.size - 1, 0) // BLOCK * BLOCK
    tail = x[whole:]
    tail = tail[_multiples(factors[1], last.size, tail.size)]
    if not whole:
        return tail
    head = x[:whole].reshape(-1, BLOCK)[:, _multiples(factors[0], BLOCK, BLOCK)]
    return jnp.concatenate([head.reshape(-1), tail])


def _multiples(factor: Any, size: Any, length: int) -> jax.Array:
    """``i * factor % size`` for each i below the size, and i itself beyond it."""
    i = jnp.arange(length, dtype=jnp.uint32)
    factor, size = jnp.asarray(factor, jnp.uint32), jnp.asarray(size, jnp.uint32)
    high = (factor << 10) % size
    found = ((i >> 10) * high + (i & 1023) * factor) % size
    return jnp.where(i < size, found, i).astype(jnp.int32)
