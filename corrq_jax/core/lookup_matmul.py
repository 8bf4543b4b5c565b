"""A matrix product that reads packed codes: ``x @ levels[codes]`` without the decoded matrix.

Row-major codes of ``bits`` bits repeat their pattern of bits every ``group`` codes, in ``span``
bytes (`corrq_jax.core.coding.pattern`). A matrix whose rows are whole patterns is seen as
[rows, patterns, span] bytes; code j of all patterns is then a strided set of columns, which is
looked up, multiplied by x and summed over the rows on its own.

Both forms give one partial sum for each block of rows, in float32: scales that hold for rows of one
block are multiplied in afterwards. They sum in another order than `jnp.dot`, so results agree with
it to float32's rounding of the sums, not bit for bit.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from corrq_jax.core.coding import pattern


class Blocks(NamedTuple):
    """How the kernel cuts the matrix up.

    Attributes:
        rows: rows of one load; a power of two.
        columns: patterns of one load; a power of two.
        depth: rows that one program sums over; ``unroll * rows`` divides it.
        unroll: loads that are under way at once.
        warps: warps of 32 threads in a program.
        lookup: how a code becomes its level: "gather" from a table in memory, "pair" for two 4-bit
            codes at once (bfloat16 levels only), "select" by comparing bits, "dot" gathers and
            multiplies on tensor cores (bfloat16 only, rows and columns at least 16).
    """

    rows: int = 16
    columns: int = 128
    depth: int = 256
    unroll: int = 1
    warps: int = 4
    lookup: str = "gather"


def patterns(codes: jax.Array, rows: int, bits: int) -> jax.Array:
    """Packed codes of a matrix as uint8[rows, patterns, span]; rows must be whole patterns."""
    return codes.reshape(rows, -1, pattern(bits)[1])


def split(spans: list[Any], bits: int) -> list[Any]:
    """``group`` int32 arrays, the codes of patterns, from ``span`` of them, their bytes."""
    codes = []
    for i in range(pattern(bits)[0]):
        first, offset = divmod(i * bits, 8)
        value = spans[first] >> offset
        if offset + bits > 8:
            value |= spans[first + 1] << (8 - offset)
        codes.append(value & (2**bits - 1))
    return codes


def _select(levels: list[Any], code: Any) -> Any:
    """The level of each code by a binary tree of choices, the highest bit first."""
    if len(levels) == 1:
        return levels[0]
    half = len(levels) // 2
    low, high = (_select(part, code) for part in (levels[:half], levels[half:]))
    return jnp.where((code & half) != 0, high, low)


def _pairs(levels: jax.Array) -> jax.Array:
    """int32[256]: the bfloat16 levels of both codes of a byte, the low code's in the low half."""
    half = jax.lax.bitcast_convert_type(levels.astype(jnp.bfloat16), jnp.uint16).astype(jnp.uint32)
    both = half[None, :] | half[:, None] << 16
    return jax.lax.bitcast_convert_type(both.reshape(-1), jnp.int32)


def _float(half: Any) -> Any:
    """A bfloat16 in the upper half of an int32 as float32."""
    return jax.lax.bitcast_convert_type(half, jnp.float32)


def _decoder(table: Any, bits: int, lookup: str) -> Callable[[list[Any]], list[Any]]:
    """From the bytes of patterns to ``group`` arrays of levels; the table as `_table` makes it."""
    if lookup == "pair":

        def pair(spans: list[Any]) -> list[Any]:
            both = table[spans[0]]
            return [_float(both << 16), _float(both & -65536)]

        return pair
    if lookup == "select":
        levels = [table[i] for i in range(2**bits)]
        return lambda spans: [_select(levels, code) for code in split(spans, bits)]
    return lambda spans: [table[code] for code in split(spans, bits)]


def _kernel(x: Any, codes: Any, table: Any, out: Any, *, bits: int, blocks: Blocks) -> None:
    """One block of columns and ``depth`` rows; refs in, refs out."""
    group, span = pattern(bits)
    batch, steps = x.shape[0], blocks.depth // (blocks.rows * blocks.unroll)
    decode = _decoder(table, bits, blocks.lookup)
    dot = blocks.lookup == "dot"

    def load(piece: Any) -> list[Any]:
        if span == 1:
            return [codes[piece, :].astype(jnp.int32)]
        return [codes[piece, :, s].astype(jnp.int32) for s in range(span)]

    def step(i: Any, sums: list[Any]) -> list[Any]:
        starts = [(i * blocks.unroll + u) * blocks.rows for u in range(blocks.unroll)]
        pieces = [pl.ds(start, blocks.rows) for start in starts]
        for piece, spans in zip(pieces, [load(piece) for piece in pieces], strict=True):
            levels = decode(spans)
            if dot:
                rows = x[:, piece]
                products = [_tensor_core_dot(rows, w.astype(rows.dtype)) for w in levels]
            else:
                columns = [x[b, piece].astype(jnp.float32)[:, None] for b in range(batch)]
                products = [column * w for column in columns for w in levels]
            sums = [total + product for total, product in zip(sums, products, strict=True)]
        return sums

    shape = (batch if dot else blocks.rows, blocks.columns)
    sums = [jnp.zeros(shape, jnp.float32)] * (group if dot else batch * group)
    sums = jax.lax.fori_loop(0, steps, step, sums)
    for i, total in enumerate(sums):
        if dot:
            out[:, i, :] = total
        else:
            out[i // group, i % group, :] = total.sum(0)


def _tensor_core_dot(a: jax.Array, b: jax.Array) -> jax.Array:
    return jax.lax.dot(a, b, preferred_element_type=jnp.float32)


def fits(rows: int, columns: int, bits: int, blocks: Blocks) -> bool:
    """Whether the kernel can cut a matrix of this shape up without a remainder."""
    width = blocks.columns * pattern(bits)[0]
    return columns % width == 0 and rows % blocks.depth == 0


def partial_sums(
    x: jax.Array,
    codes: jax.Array,
    levels: jax.Array,
    bits: int,
    blocks: Blocks,
    interpret: bool = False,
) -> jax.Array:
    """The product by the Pallas kernel, one partial sum for each ``depth`` rows.

    Args:
        x: [batch, rows], float32 or bfloat16.
        codes: uint8[rows * columns * bits / 8], as `corrq_jax.core.coding.pack` makes them.
        levels: float32[2**bits].
        bits: bits of a code.
        blocks: how to cut the matrix; it must fit (`fits`).
        interpret: run the kernel step by step without a GPU, slowly.

    Returns:
        float32[rows / depth, batch, columns].
    """
    batch, rows = x.shape
    group, span = pattern(bits)
    packed = patterns(codes, rows, bits)
    if span == 1:
        packed = packed[..., 0]
    table = _pairs(levels) if blocks.lookup == "pair" else levels
    last = (None,) if span > 1 else ()
    width = packed.shape[1]
    block = (blocks.depth, blocks.columns, span)[: packed.ndim]
    sums = pl.pallas_call(
        partial(_kernel, bits=bits, blocks=blocks),
        grid=(width // blocks.columns, rows // blocks.depth),
        in_specs=[
            pl.BlockSpec((batch, blocks.depth), lambda j, k: (0, k)),
            pl.BlockSpec(block, lambda j, k: (k, j, *(0 for _ in last))),
            pl.BlockSpec(table.shape, lambda j, k: (0,)),
        ],
        out_specs=pl.BlockSpec((None, batch, group, blocks.columns), lambda j, k: (k, 0, 0, j)),
        out_shape=jax.ShapeDtypeStruct((rows // blocks.depth, batch, group, width), jnp.float32),
        interpret=interpret,
        compiler_params=_compiler_params(blocks, interpret),
    )(x, packed, table)
    return sums.swapaxes(2, 3).reshape(rows // blocks.depth, batch, -1)


def _compiler_params(blocks: Blocks, interpret: bool) -> Any:
    if interpret:
        return None
    from jax.experimental.pallas import triton

    return triton.CompilerParams(num_warps=blocks.warps)


def fused_partial_sums(
    x: jax.Array, codes: jax.Array, levels: jax.Array, bits: int, depth: int, lookup: str = "gather"
) -> jax.Array:
    """As `partial_sums`, by products and sums that XLA fuses with the decoding: no kernel."""
    batch, rows = x.shape
    packed = patterns(codes, rows, bits).astype(jnp.int32)
    spans = [packed[..., s] for s in range(packed.shape[-1])]
    if lookup == "select":
        decode = _decoder(levels, bits, lookup)
    else:
        table = levels.at
        decode = lambda spans: [  # noqa: E731
            table[code].get(mode="promise_in_bounds") for code in split(spans, bits)
        ]
    columns = x.astype(jnp.float32)[..., None]
    sums = [
        [(row * w).reshape(rows // depth, depth, -1).sum(1) for w in decode(spans)]
        for row in (columns[b] for b in range(batch))
    ]
    stacked = jnp.stack([jnp.stack(row, axis=-1) for row in sums], axis=1)
    return stacked.reshape(rows // depth, batch, -1)
