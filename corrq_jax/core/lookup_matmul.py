"""A matrix product that reads packed codes: ``x @ levels[codes]`` without the decoded matrix.

Row-major codes of ``bits`` bits repeat their places in bytes after ``group`` codes, ``span`` bytes
(`corrq_jax.core.coding.pattern`). A matrix whose rows are whole patterns is seen as
[rows, patterns, span] bytes: code j of all patterns is a strided set of columns, which is looked
up, multiplied by x and summed over the rows on its own.

Levels in bfloat16, of at most 4 bits, are looked up in pairs of neighbours: half as many look-ups,
and the products are still exact in float32. Sums are in float32, in another order than in
`jnp.dot`: results agree with it to the rounding of sums, not bit for bit.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from corrq_jax.core.coding import pattern

PAIR_BITS = 4
"""Widest codes that are looked up in pairs: a table of 256 pairs stays in the nearest cache."""


class Blocks(NamedTuple):
    """How the kernel cuts the matrix up.

    Attributes:
        rows: rows of one load; a power of two.
        columns: patterns of one load; a power of two.
        depth: rows that one program sums over; ``unroll * rows`` divides it.
        unroll: loads that are under way at once.
        warps: warps of 32 threads in a program.
        ahead: whether the next codes are loaded while these are looked up.
    """

    rows: int
    columns: int
    depth: int
    unroll: int = 1
    warps: int = 4
    ahead: bool = False


def fits(rows: int, columns: int, bits: int, blocks: Blocks) -> bool:
    """Whether a matrix of this shape is cut up without a remainder."""
    return columns % (blocks.columns * pattern(bits)[0]) == 0 and rows % blocks.depth == 0


def partial_sums(
    x: jax.Array,
    codes: jax.Array,
    levels: jax.Array,
    bits: int,
    blocks: Blocks,
    interpret: bool = False,
) -> jax.Array:
    """The product, one partial sum for each ``depth`` rows, by a Pallas kernel for a GPU.

    Args:
        x: [batch, rows], float32 or bfloat16.
        codes: uint8[rows * columns * bits / 8], as `corrq_jax.core.coding.pack` makes them.
        levels: float32 or bfloat16[2**bits].
        bits: bits of a code.
        blocks: how to cut the matrix up; it has to fit (`fits`).
        interpret: run the kernel step by step on any device, slowly.

    Returns:
        float32[rows / depth, batch, columns].
    """
    from jax.experimental import pallas as pl  # a fifth of the time of `import jax`

    batch, rows = x.shape
    group, span = pattern(bits)
    packed = codes.reshape(rows, -1) if span == 1 else codes.reshape(rows, -1, span)
    table = _pairs(levels) if _in_pairs(levels, bits) else levels.astype(jnp.float32)
    parts, width = rows // blocks.depth, packed.shape[1]
    block = (blocks.depth, blocks.columns, span)[: packed.ndim]
    sums = pl.pallas_call(
        partial(_kernel, bits=bits, blocks=blocks, paired=_in_pairs(levels, bits)),
        grid=(width // blocks.columns, parts),
        in_specs=[
            pl.BlockSpec((batch, blocks.depth), lambda j, k: (0, k)),
            pl.BlockSpec(block, lambda j, k: (k, j, 0)[: packed.ndim]),
            pl.BlockSpec(table.shape, lambda j, k: (0,)),
        ],
        out_specs=pl.BlockSpec((None, batch, blocks.columns, group), lambda j, k: (k, 0, j, 0)),
        out_shape=jax.ShapeDtypeStruct((parts, batch, width, group), jnp.float32),
        interpret=interpret,
        compiler_params=None if interpret else _compiler_params(blocks),
    )(x, packed, table)
    return sums.reshape(parts, batch, -1)


def _compiler_params(blocks: Blocks) -> Any:
    from jax.experimental.pallas import triton

    return triton.CompilerParams(num_warps=blocks.warps)


def _in_pairs(levels: jax.Array, bits: int) -> bool:
    return levels.dtype == jnp.bfloat16 and bits <= PAIR_BITS


def _pairs(levels: jax.Array) -> jax.Array:
    """int32[levels**2]: bfloat16 levels of two neighbours, the first in the low half."""
    half = jax.lax.bitcast_convert_type(levels, jnp.uint16).astype(jnp.uint32)
    both = half[None, :] | half[:, None] << 16
    return jax.lax.bitcast_convert_type(both.reshape(-1), jnp.int32)


def _kernel(
    x: Any, codes: Any, table: Any, out: Any, *, bits: int, blocks: Blocks, paired: bool
) -> None:
    """One block of columns and ``depth`` rows; refs in, refs out."""
    from jax.experimental.pallas import ds

    group, span = pattern(bits)
    batch, steps = x.shape[0], blocks.depth // (blocks.rows * blocks.unroll)
    decode: Callable[..., Any] = _decode_pairs if paired else _decode

    def pieces(i: Any) -> list[Any]:
        first = i * blocks.unroll
        return [ds((first + u) * blocks.rows, blocks.rows) for u in range(blocks.unroll)]

    def load(i: Any) -> list[list[Any]]:
        if span == 1:
            return [[codes[piece, :]] for piece in pieces(i)]
        return [[codes[piece, :, s] for s in range(span)] for piece in pieces(i)]

    def add(i: Any, sums: list[Any], loaded: list[list[Any]]) -> list[Any]:
        for piece, spans in zip(pieces(i), loaded, strict=True):
            levels = decode(table, [part.astype(jnp.int32) for part in spans], bits)
            columns = [x[b, piece].astype(jnp.float32)[:, None] for b in range(batch)]
            products = [column * w for column in columns for w in levels]
            sums = [total + product for total, product in zip(sums, products, strict=True)]
        return sums

    def add_ahead(i: Any, state: Any) -> Any:
        sums, loaded = state
        following = load(jnp.minimum(i + 1, steps - 1))  # the last ones are loaded twice
        return add(i, sums, loaded), following

    sums = [jnp.zeros((blocks.rows, blocks.columns), jnp.float32)] * (batch * group)
    if blocks.ahead:
        sums, _ = jax.lax.fori_loop(0, steps, add_ahead, (sums, load(0)))
    else:
        sums = jax.lax.fori_loop(0, steps, lambda i, sums: add(i, sums, load(i)), sums)
    for i, total in enumerate(sums):
        out[i // group, :, i % group] = total.sum(0)


def _decode(table: Any, spans: list[Any], bits: int) -> list[Any]:
    """``group`` float32 arrays of levels, from the ``span`` bytes of patterns."""
    return [table[code] for code in _split(spans, bits)]


def _decode_pairs(table: Any, spans: list[Any], bits: int) -> list[Any]:
    """The same from a table of pairs: a bfloat16 is the upper half of a float32."""
    both = [table[pair] for pair in _split(spans, 2 * bits)]
    halves = [half for word in both for half in (word << 16, word & -65536)]
    return [jax.lax.bitcast_convert_type(half, jnp.float32) for half in halves]


def _split(spans: list[Any], bits: int) -> list[Any]:
    """int32 arrays of codes of ``bits`` bits, from the bytes of patterns as int32 arrays."""
    codes = []
    for start in range(0, 8 * len(spans), bits):
        first, offset = divmod(start, 8)
        value = spans[first] >> offset
        if offset + bits > 8:
            value |= spans[first + 1] << (8 - offset)
        codes.append(value & (2**bits - 1))
    return codes
