"""A product with a quantized matrix that reads packed codes, where that was measured faster.

The kernel (`corrq_jax.core.lookup_matmul`) is for CUDA GPUs and small batches, where a product
takes the time to read the matrix. Elsewhere the matrix is decoded and multiplied as usual.
"""

import importlib.util
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from corrq_jax.core import lookup_matmul
from corrq_jax.core.lookup_matmul import Blocks
from corrq_jax.errors import InputError
from corrq_jax.tensor import QuantizedTensor, is_quantized


class Use(NamedTuple):
    """Where the kernel was faster than decoding, and how it was used there.

    Attributes:
        bits: bits of a code.
        batch: largest number of rows of x.
        blocks: how the matrix was cut up.
        pairs: whether levels were looked up in pairs; they have to be in bfloat16 then.
    """

    bits: int
    batch: int
    blocks: Blocks
    pairs: bool = False


MEASURED = (
    Use(2, 1, Blocks(rows=64, columns=32, depth=1024, warps=8), pairs=True),
    Use(3, 1, Blocks(rows=128, columns=16, depth=4096, warps=16, ahead=True), pairs=True),
    Use(4, 1, Blocks(rows=64, columns=128, depth=1024, warps=16), pairs=True),
    Use(4, 4, Blocks(rows=64, columns=32, depth=4096, warps=16), pairs=True),
    Use(4, 1, Blocks(rows=256, columns=32, depth=4096, warps=16)),
    Use(8, 1, Blocks(rows=128, columns=32, depth=4096, warps=16)),
)
"""On an H100 (docs/performance.md). Elsewhere the matrix is decoded."""
LEAST_SIZE = 1 << 26
"""Weights of the matrix that was measured: smaller ones are decoded."""


def matmul(x: jax.Array, matrix: QuantizedTensor) -> jax.Array:
    """The product ``x @ matrix.dequantize()``, with sums in float32; to be called inside jit.

    Where the kernel was measured to be faster (`MEASURED`), no decoded matrix is written to memory.
    Products are the same, sums are in another order, and scales of columns multiply the sums, not
    the levels: results agree to the rounding of float32, or of the decoded matrix and the result if
    these are coarser.

    Args:
        x: [..., rows], float32 or bfloat16.
        matrix: a quantized [rows, columns].

    Returns:
        [..., columns], of the type that x and the decoded matrix have together.

    Raises:
        InputError: the matrix is not quantized, or the shapes are not those of a matrix product.

    >>> import numpy as np, corrq_jax as corrq
    >>> w = np.random.default_rng(0).normal(size=(64, 32)).astype(np.float32)
    >>> matrix = corrq.quantize({"w": w}, bits=4)[0]["w"]
    >>> jax.jit(corrq.matmul)(jnp.ones((2, 64)), matrix).shape
    (2, 32)
    """
    if not is_quantized(matrix):
        raise InputError(f"matmul: a {type(matrix).__name__} as the matrix; give a QuantizedTensor")
    if matrix.ndim != 2 or matrix.levels.ndim != 1 or x.shape[-1:] != matrix.shape[:1]:
        raise InputError(
            f"matmul: x of shape {x.shape} and a quantized tensor of shape {matrix.shape}; needed"
            " are [..., rows] and [rows, columns]"
        )
    flat = x.reshape(-1, x.shape[-1])
    use = use_of_kernel(flat, matrix)
    if use is None:
        found = _decoded(flat, matrix)
    else:
        kernel = partial(by_kernel, use)
        found = jax.lax.platform_dependent(flat, matrix, cuda=kernel, default=_decoded)
    return found.reshape(*x.shape[:-1], matrix.shape[1])


def use_of_kernel(x: jax.Array, matrix: QuantizedTensor) -> Use | None:
    """How the kernel is used on a CUDA GPU for this product; None where the matrix is decoded."""
    uses = [use for use in MEASURED if use.bits == matrix.bits and 0 < len(x) <= use.batch]
    able = (
        matrix.size >= LEAST_SIZE
        and matrix.blocks is None
        and not matrix.is_along_trellis
        and {str(x.dtype), matrix.dtype} <= {"float32", "bfloat16"}
        and (matrix.rows is None or matrix.rows.shape == (1, matrix.shape[1]))
        and importlib.util.find_spec("jax.experimental.pallas.triton") is not None
    )
    rows, columns = matrix.shape
    for use in uses if able else ():
        if use.pairs and matrix.dtype != "bfloat16":
            continue
        if lookup_matmul.fits(rows, columns, matrix.bits, use.blocks):
            return use
    return None


def _decoded(x: jax.Array, matrix: QuantizedTensor) -> jax.Array:
    w = matrix.dequantize()
    return jnp.dot(x, w, preferred_element_type=jnp.float32).astype(jnp.result_type(x, w))


@partial(jax.custom_jvp, nondiff_argnums=(0, 3))
def by_kernel(
    use: Use, x: jax.Array, matrix: QuantizedTensor, interpret: bool = False
) -> jax.Array:
    """The product of x, [batch, rows], by the kernel."""
    dtype = jnp.dtype(matrix.dtype)
    levels = jnp.pad(matrix.levels, (0, 2**matrix.bits - len(matrix.levels)))
    if matrix.scales is None:
        levels = levels.astype(dtype)  # as they are in the decoded matrix
    if not use.pairs:
        levels = levels.astype(jnp.float32)
    codes = jnp.asarray(matrix.codes)
    parts = lookup_matmul.partial_sums(x, codes, levels, matrix.bits, use.blocks, interpret)
    found = parts.sum(0)
    if matrix.scales is not None:
        found *= matrix.scales.astype(jnp.float32)
    return found.astype(jnp.result_type(x, dtype))


@by_kernel.defjvp
def _slope(use: Use, interpret: bool, primals: tuple, tangents: tuple) -> tuple:
    """Derivatives are those of the product with the decoded matrix."""
    return by_kernel(use, *primals, interpret), jax.jvp(_decoded, primals, tangents)[1]
