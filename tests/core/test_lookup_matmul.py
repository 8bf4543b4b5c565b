"""The product with packed codes: against a slow float64 look-up, by every form and width."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from corrq_jax.core import coding, lookup_matmul
from corrq_jax.core.lookup_matmul import Blocks

ROWS, COLUMNS, BATCH = 64, 256, 3


def problem(bits, dtype=np.float32, seed=0):
    """x, packed codes, levels, and the product in float64."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(BATCH, ROWS)).astype(dtype)
    codes = rng.integers(0, 2**bits, (ROWS, COLUMNS)).astype(np.uint8)
    levels = np.sort(rng.normal(size=2**bits)).astype(dtype).astype(np.float32)
    packed = coding.pack(jnp.asarray(codes.reshape(-1)), bits)
    exact = x.astype(np.float64) @ levels.astype(np.float64)[codes]
    return jnp.asarray(x), packed, jnp.asarray(levels), exact


def blocks_for(bits, **options):
    """Small blocks: two programs along either axis, two steps in each."""
    group = coding.pattern(bits)[0]
    sizes = {"rows": 16, "columns": COLUMNS // group // 2, "depth": 32}
    return Blocks(**{**sizes, **options})


def close(found, exact):
    """Products are rounded to float32 and summed in it: ROWS roundings, of terms near 1."""
    np.testing.assert_allclose(found, exact, rtol=0, atol=ROWS * 4 * 2.0**-24)


@pytest.mark.parametrize("bits", range(1, 9))
def test_kernel_gives_the_product(bits):
    x, codes, levels, exact = problem(bits)
    sums = lookup_matmul.partial_sums(x, codes, levels, bits, blocks_for(bits), interpret=True)
    assert sums.shape == (2, BATCH, COLUMNS)
    close(sums.sum(0), exact)


@pytest.mark.parametrize(("bits", "options"), [
    (4, {"lookup": "select"}),
    (3, {"lookup": "select"}),
    (4, {"unroll": 2}),
    (3, {"unroll": 2}),
])  # fmt: skip
def test_every_kernel_gives_the_product(bits, options):
    x, codes, levels, exact = problem(bits)
    blocks = blocks_for(bits, **options)
    close(lookup_matmul.partial_sums(x, codes, levels, bits, blocks, interpret=True).sum(0), exact)


@pytest.mark.parametrize(("bits", "lookup"), [(4, "pair"), (4, "dot"), (2, "dot")])
def test_kernels_of_bfloat16_give_the_product(bits, lookup):
    x, codes, levels, exact = problem(bits, jnp.bfloat16)
    blocks = blocks_for(bits, lookup=lookup)
    close(lookup_matmul.partial_sums(x, codes, levels, bits, blocks, interpret=True).sum(0), exact)


@pytest.mark.parametrize("bits", [1, 3, 4, 8])
@pytest.mark.parametrize("lookup", ["gather", "select"])
def test_fused_form_gives_the_product(bits, lookup):
    if (bits, lookup) == (8, "select"):
        pytest.skip("255 choices")
    x, codes, levels, exact = problem(bits)
    form = jax.jit(lookup_matmul.fused_partial_sums, static_argnums=(3, 4, 5))
    sums = form(x, codes, levels, bits, 32, lookup)
    assert sums.shape == (2, BATCH, COLUMNS)
    close(sums.sum(0), exact)
