"""The product with a quantized matrix: decoded or by the kernel, with the same result."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import corrq_jax as corrq
from corrq_jax.core.lookup_matmul import Blocks
from corrq_jax.errors import InputError
from corrq_jax.matmul import LEAST_SIZE, MEASURED, Use, by_kernel, matmul, use_of_kernel
from corrq_jax.tensor import QuantizedTensor, Rows

ROWS, COLUMNS = 64, 32
SMALL = Blocks(rows=8, columns=8, depth=32)


def quantized(bits=4, dtype=np.float32, **options):
    w = np.random.default_rng(0).normal(size=(ROWS, COLUMNS)).astype(dtype)
    return corrq.quantize({"kernel": w}, bits=bits, **options)[0]["kernel"]


def inputs(*shape, dtype=np.float32):
    return jnp.asarray(np.random.default_rng(1).normal(size=shape).astype(dtype))


def exact(x, matrix):
    return np.asarray(x, np.float64) @ np.asarray(matrix.dequantize(), np.float64)


# ROWS sums of numbers of about 10, rounded to float32.
TOLERANCE = ROWS * 10 * 2.0**-24


@pytest.mark.parametrize("shape", [(ROWS,), (3, ROWS), (2, 3, ROWS)])
def test_equals_the_product_with_the_decoded_matrix(shape):
    x, matrix = inputs(*shape), quantized()
    found = jax.jit(corrq.matmul)(x, matrix)
    assert found.shape == (*shape[:-1], COLUMNS)
    np.testing.assert_allclose(found, exact(x, matrix), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("options", [{}, {"granularity": "channel"}, {"bits": 2}])
def test_the_kernel_gives_the_same(options):
    x, matrix = inputs(2, ROWS), quantized(**options)
    found = by_kernel(Use(matrix.bits, 2, SMALL), x, matrix, True)
    np.testing.assert_allclose(found, exact(x, matrix), rtol=0, atol=TOLERANCE)


def test_the_kernel_gives_the_same_for_bfloat16():
    x, matrix = inputs(2, ROWS, dtype=jnp.bfloat16), quantized(dtype=jnp.bfloat16)
    found = by_kernel(Use(4, 2, SMALL, pairs=True), x, matrix, True)
    assert found.dtype == jnp.bfloat16
    # Rounded once, to 8 bits, beside the rounding of sums.
    np.testing.assert_allclose(
        np.asarray(found, np.float64), exact(x, matrix), rtol=2.0**-8, atol=TOLERANCE
    )


def test_the_kernel_has_the_derivatives_of_the_decoded_product():
    x, matrix = inputs(2, ROWS), quantized()
    use = Use(4, 2, SMALL)
    found = jax.grad(lambda x: by_kernel(use, x, matrix, True).sum())(x)
    expected = np.asarray(matrix.dequantize(), np.float64).sum(1)
    np.testing.assert_allclose(found, np.broadcast_to(expected, x.shape), rtol=0, atol=TOLERANCE)


def of_shape(rows, columns, bits=4, dtype="float32", scales=None, shares=None):
    """What a large matrix looks like; no weights are made."""
    codes = jax.ShapeDtypeStruct((rows * columns * bits // 8,), jnp.uint8)
    levels = jax.ShapeDtypeStruct((2**bits,), jnp.float32)
    return QuantizedTensor(codes, levels, (rows, columns), dtype, bits, scales, shares)


def use(batch=1, rows=4096, columns=16384, x_dtype=jnp.float32, **matrix):
    x = jnp.zeros((batch, rows), x_dtype)
    return use_of_kernel(x, of_shape(rows, columns, **matrix))


def test_the_kernel_is_used_where_it_was_measured():
    half = {"x_dtype": jnp.bfloat16, "dtype": "bfloat16"}
    assert [use(bits=bits, **half) for bits in (2, 3, 4, 8)] == [MEASURED[i] for i in (0, 1, 2, 5)]
    found = [use(batch, **half) for batch in (1, 2, 4, 5)]
    assert found == [MEASURED[2], MEASURED[3], MEASURED[3], None]
    assert [use(bits=bits) for bits in (3, 4, 8)] == [None, *MEASURED[4:]]
    assert use(2) is None  # levels in float32 were measured at one row only
    assert use(bits=5) is None
    assert use(columns=16384 // 2) is None  # smaller than what was measured
    assert LEAST_SIZE == 4096 * 16384
    assert use(rows=4096 + 8) is None  # does not fit
    assert use(x_dtype=jnp.float16) is None
    scales = jax.ShapeDtypeStruct((1, 16384), jnp.float16)
    assert use(scales=scales, shares=Rows(4096, 16384, 1, 4096)) == MEASURED[4]
    assert use(scales=scales, shares=Rows(4096, 16384, 1, 64)) is None  # groups
    assert use(scales=scales, shares=Rows(1, 4096, 16384, 16384)) is None  # scales of rows


@pytest.mark.parametrize("batch", [1])
def test_it_is_compiled_for_cuda(batch):
    x, matrix = jax.ShapeDtypeStruct((batch, 4096), jnp.float32), of_shape(4096, 16384)
    traced = jax.jit(matmul).trace(x, matrix)
    assert "triton" in traced.lower(lowering_platforms=("cuda",)).as_text()
    assert "triton" not in traced.lower(lowering_platforms=("cpu",)).as_text()


@pytest.mark.parametrize("shape", [(), (ROWS + 1,), (2, COLUMNS)])
def test_shapes_that_do_not_fit_are_named(shape):
    with pytest.raises(InputError, match=r"needed are \[\.\.\., rows\] and \[rows, columns\]"):
        matmul(jnp.zeros(shape), quantized())


def test_a_matrix_that_is_not_quantized_is_named():
    with pytest.raises(InputError, match="a ndarray as the matrix; give a QuantizedTensor"):
        matmul(jnp.zeros((2, 3)), np.zeros((3, 4)))
