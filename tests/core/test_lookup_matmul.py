"""The product with packed codes: against a slow float64 look-up, at every width."""

import jax.numpy as jnp
import numpy as np
import pytest

from corrq_jax.core import coding, lookup_matmul
from corrq_jax.core.lookup_matmul import Blocks

ROWS, BATCH = 64, 2


def problem(bits, columns, dtype, seed=0):
    """x, packed codes and levels, and the product in float64."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(BATCH, ROWS)).astype(dtype)
    codes = rng.integers(0, 2**bits, (ROWS, columns)).astype(np.uint8)
    levels = np.sort(rng.normal(size=2**bits)).astype(dtype)
    packed = coding.pack(jnp.asarray(codes.reshape(-1)), bits)
    exact = x.astype(np.float64) @ levels.astype(np.float64)[codes]
    return (jnp.asarray(x), packed, jnp.asarray(levels)), exact


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize(("dtype", "options"), [
    (np.float32, {}),
    (jnp.bfloat16, {"unroll": 2, "ahead": True}),
])  # fmt: skip
def test_gives_the_product(bits, dtype, options):
    """Two programs along either axis, some steps in each."""
    columns = 16 * coding.pattern(bits)[0]
    arrays, exact = problem(bits, columns, dtype)
    blocks = Blocks(rows=8, columns=8, depth=32, **options)
    assert lookup_matmul.fits(ROWS, columns, bits, blocks)
    sums = lookup_matmul.partial_sums(*arrays, bits, blocks, interpret=True)
    assert sums.shape == (2, BATCH, columns)
    assert sums.dtype == jnp.float32
    # Products and sums are rounded to float32: ROWS roundings, of numbers of about 10.
    np.testing.assert_allclose(sums.sum(0), exact, rtol=0, atol=ROWS * 10 * 2.0**-24)


def test_what_fits():
    blocks = Blocks(rows=8, columns=8, depth=32)
    assert lookup_matmul.fits(64, 16, 4, blocks)
    assert not lookup_matmul.fits(64, 16, 3, blocks)  # eight codes in a pattern
    assert not lookup_matmul.fits(48, 16, 4, blocks)
