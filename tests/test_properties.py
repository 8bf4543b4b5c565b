"""What holds for any tree, dtype, shape and width: files, invariances, more bits, jit and vmap."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stored_trees import same, tensor

import corrq_jax as corrq
from corrq_jax.codings import CODINGS
from corrq_jax.tensor import is_quantized

FEW = settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
DTYPES = st.sampled_from(["float32", "float16", "bfloat16"])
SHAPES = st.lists(st.integers(1, 9), min_size=2, max_size=4).map(tuple)


@st.composite
def kernels(draw):
    """Weights of any shape and dtype: heavy or light tails, few values, or one."""
    shape, rng = draw(SHAPES), np.random.default_rng(draw(st.integers(0, 2**32)))
    kind = draw(st.sampled_from(["normal", "laplace", "few", "constant"]))
    if kind == "few":
        w = rng.choice([-1.5, 0.0, 0.25, 3.0], size=shape)
    elif kind == "constant":
        w = np.full(shape, rng.normal())
    else:
        w = getattr(rng, kind)(size=shape)
    return jnp.asarray(w, draw(DTYPES))


@given(
    tree=st.dictionaries(st.sampled_from("abc"), st.fixed_dictionaries({"kernel": kernels()}),
                         min_size=1, max_size=3),
    bits=st.integers(1, 8),
    coding=st.sampled_from(CODINGS),
    granularity=st.sampled_from(["tensor", "channel"]),
)  # fmt: skip
@FEW
def test_what_is_quantized_comes_back_from_a_file(tmp_path, tree, bits, coding, granularity):
    quantized, report = corrq.quantize(tree, bits=bits, coding=coding, granularity=granularity)
    path = tmp_path / "net.safetensors"
    assert corrq.save(path, quantized) == report.file_nbytes == path.stat().st_size
    again = corrq.load(path)
    assert same(again, quantized)
    assert same(corrq.dequantize(again), corrq.dequantize(quantized))
    for name, leaf in tree.items():
        back = corrq.dequantize(quantized)[name]["kernel"]
        assert (back.shape, back.dtype) == (leaf["kernel"].shape, leaf["kernel"].dtype)


def weights(seed, size=1500):
    return np.random.default_rng(seed).laplace(size=size).astype(np.float32)


def correlation(w, bits):
    _, report = corrq.quantize({"kernel": w.reshape(-1, 10)}, bits=bits)
    return report.rows[0].correlation


@given(seed=st.integers(0, 2**32), bits=st.integers(1, 6), power=st.integers(-3, 3))
@FEW
def test_order_and_scale_of_the_weights_do_not_matter(seed, bits, power):
    """A power of two keeps every bit of float32; an order changes the order of sums alone."""
    w = weights(seed)
    rho = correlation(w, bits)
    shuffled = np.random.default_rng(seed).permutation(w)
    # Float32 sums of 1,500 products differ by up to some 1e-6 in another order.
    np.testing.assert_allclose(correlation(shuffled, bits), rho, atol=2e-6)
    np.testing.assert_allclose(correlation(w * np.float32(2.0**power), bits), rho, atol=2e-6)


@given(seed=st.integers(0, 2**32))
@FEW
def test_more_bits_are_never_worse(seed):
    found = [correlation(weights(seed), bits) for bits in range(1, 9)]
    # At 8 bits what is left is near the resolution of float32.
    assert (np.diff(found) >= -1e-6).all()


@given(
    bits=st.integers(1, 8), shape=SHAPES, dtype=DTYPES, seed=st.integers(0, 99), n=st.integers(1, 3)
)
@FEW
def test_jit_and_vmap_decode_as_the_loop_does(bits, shape, dtype, seed, n):
    tensors = [tensor(bits, shape, dtype, seed + i) for i in range(n)]
    looped = [np.asarray(t.dequantize()) for t in tensors]
    for t, expected in zip(tensors, looped, strict=True):
        assert same(jax.jit(corrq.dequantize)(t), expected)
    stacked = jax.tree.map(lambda *parts: jnp.stack(parts), *tensors)
    assert is_quantized(stacked)
    assert same(jax.jit(corrq.dequantize)(stacked), np.stack(looped))
