"""The order in which a trellis visits the weights of a tensor: far-off ones in turn.

Weights that lie side by side are of like sizes: one tap of a depthwise kernel, one input of a dense
one. A run of large weights finds none of the levels that a long history offers rarely, where as
many, each on its own, find them. So each block of weights is visited by strides of about the golden
section of it, which keeps apart what lay together.
"""

import math
from collections.abc import Callable
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
    return by_block(lambda block, order: _taken(block, order.stride, order), x, last)


def in_place(x: jax.Array, last: Order | None = None) -> jax.Array:
    """The inverse of `in_turn`.

    >>> in_place(in_turn(jnp.arange(10))).tolist()
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    """
    return by_block(lambda block, order: _taken(block, order.inverse, order), x, last)


def by_block(
    call: Callable[[jax.Array, Order], jax.Array], x: jax.Array, last: Order | None = None
) -> jax.Array:
    """What a function of blocks, the last axis of its argument, and of their order makes of [n].

    Args:
        call: elementwise in the other axes.
        x: the weights, or what belongs to them.
        last: as for `in_turn`.
    """
    whole = max(x.size - 1, 0) // BLOCK * BLOCK
    tail = call(x[whole:], last_order(x.size) if last is None else last)
    if not whole:
        return tail
    head = call(x[:whole].reshape(-1, BLOCK), order_of(BLOCK))
    # Not concatenated: XLA for CPUs would ask of each element which of the two it is from.
    joined = jnp.zeros(x.size, tail.dtype)
    for part, start in ((head.reshape(-1), 0), (tail, whole)):
        joined = jax.lax.dynamic_update_slice(joined, part, (start,))
    return joined


def turns(order: Order, length: int) -> jax.Array:
    """int32[length]: the turn at which each weight of a block is visited."""
    return _multiples(order.inverse, order.size, length)


def earlier(x: jax.Array, most: int, order: Order) -> list[jax.Array]:
    """For each weight of a block what is visited 1, 2, ... turns before it, in a circle.

    Nothing has to be gathered: with a stride s, what is visited j turns before lies ``j * s``
    before.

    Args:
        x: what belongs to the weights, [..., n], in their own order.
        most: how many turns.
        order: of the block.

    >>> [found.tolist() for found in earlier(jnp.arange(5), 2, Order(5, 3, 2))]
    [[2, 3, 4, 0, 1], [4, 0, 1, 2, 3]]
    """
    length = x.shape[-1]
    # The barrier keeps XLA from asking, for each of all the shifts, which of the two an element is.
    twice = jax.lax.optimization_barrier(jnp.concatenate([x, x], axis=-1))
    is_whole = isinstance(order.size, int) and order.size == length

    def back(distance: Any) -> jax.Array:
        def cut(start: Any) -> jax.Array:
            return jax.lax.dynamic_slice_in_dim(twice, start, length, axis=-1)

        if is_whole:
            return cut(length - distance)
        is_around = jnp.arange(length) < distance
        return jnp.where(is_around, cut(order.size - distance), cut(length - distance))

    return [back(j * order.stride % order.size) for j in range(1, most + 1)]


def _taken(block: jax.Array, factor: Any, order: Order) -> jax.Array:
    return block[..., _multiples(factor, order.size, block.shape[-1])]


def _multiples(factor: Any, size: Any, length: int) -> jax.Array:
    """``i * factor % size`` for each i below the size, and i itself beyond it."""
    i = jnp.arange(length, dtype=jnp.uint32)
    factor, size = jnp.asarray(factor, jnp.uint32), jnp.asarray(size, jnp.uint32)
    high = (factor << 10) % size
    found = ((i >> 10) * high + (i & 1023) * factor) % size
    return jnp.where(i < size, found, i).astype(jnp.int32)
