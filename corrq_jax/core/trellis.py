"""Trellis-coded levels: more levels than codes, selected by a code and those before it.

How many more is ``2**spread``. With twice as many the trellis is that of
`corrq_jax.core.ungerboeck`, with 4 to 16 times as many that of `corrq_jax.core.congruential`, which
leaves less noise, and whose levels take more bytes. So the number of levels tells which it is.
"""

from functools import partial

import jax
import numpy as np

from corrq_jax.core import congruential, ungerboeck
from corrq_jax.core.density import CHUNK
from corrq_jax.core.interleave import Order, by_block, last_order
from corrq_jax.core.segments import LEVELS

MOST_BITS = 7
"""Widest codes: an index of a level has a bit more at least."""
_LONG = range(congruential.LEAST_SPREAD, congruential.MOST_SPREAD + 1)


def spread_of(bits: int, levels: int) -> int:
    """The spread of a tensor with codes of so many bits, and so many levels.

    >>> spread_of(3, 16), spread_of(3, 12), spread_of(3, 64)
    (1, 1, 3)
    """
    return max(1, (levels - 1).bit_length() - bits)


def spread_for(bits: int, size: int) -> int:
    """The spread that serves a tensor of so many weights best.

    From 2 to 4, 8 and 16 levels a code noise falls by about .8, .7 and .3 decibels (the mean over
    Gaussian, Laplace and Student's t weights at 2 and 4 bits); a level takes 32 bits, and 6
    decibels cost a bit a weight.

    >>> [spread_for(4, size) for size in (1_000, 10_000, 100_000, 1_000_000)]
    [1, 2, 3, 4]
    """
    fits = [s for s in _LONG if 1 << (bits + s) <= LEVELS and size >= 1 << (bits + 5 + 2 * s)]
    return max(fits, default=1)


def may_have(levels: int, bits: int, is_entropy_coded: bool) -> bool:
    """Whether a tensor may have so many levels, its codes having so many bits.

    >>> may_have(12, 3, True), may_have(64, 3, False), may_have(64, 3, True), may_have(48, 3, False)
    (True, True, False, False)
    """
    if bits > MOST_BITS or levels % 4:
        return False
    if levels <= 2 << bits:
        return True
    allowed = [1 << (bits + spread) for spread in _LONG]
    return not is_entropy_coded and levels <= LEVELS and levels in allowed


def level_indices(codes: jax.Array, spread: int, last: Order | None = None) -> jax.Array:
    """Index of the level of each weight, uint8[n].

    Args:
        codes: uint8[n], the first being the first of a segment.
        spread: from `spread_of`, static.
        last: the order of the last block, if not all of it are codes of weights.
    """
    if spread == 1:
        return ungerboeck.level_indices(codes)
    return by_block(
        lambda block, order: congruential.level_indices(block, spread, order), codes, last
    )


_indices = partial(jax.jit, static_argnames="spread")(level_indices)


def indices_of_piece(codes: np.ndarray, spread: int) -> np.ndarray:
    """`level_indices` of at most `CHUNK` codes on the host; no length compiles anew."""
    padded = np.pad(codes, (0, CHUNK - codes.size))
    return np.asarray(_indices(padded, spread, last_order(codes.size)))[: codes.size]
