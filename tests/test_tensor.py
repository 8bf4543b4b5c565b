"""`QuantizedTensor` as a pytree, and its ways of decoding."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

import corrq_jax as corrq
from corrq_jax.core import coding
from corrq_jax.core.density import CHUNK
from corrq_jax.tensor import QuantizedTensor

RNG = np.random.default_rng(0)


def tensor(shape=(3, 5), bits=3, dtype="float32", levels=None):
    """A tensor of random codes, and the array it stands for."""
    count = 2**bits if levels is None else levels
    codes = RNG.integers(0, count, size=int(np.prod(shape))).astype(np.uint8)
    values = np.sort(RNG.normal(size=count)).astype(np.float32)
    packed = jnp.asarray(oracles.pack(codes, bits))
    array = values[codes].reshape(shape)
    return QuantizedTensor(packed, jnp.asarray(values), shape, dtype, bits), array


@pytest.mark.parametrize("bits", range(1, 9))
def test_decodes_in_pieces_and_traced(bits):
    q, expected = tensor((7, 11), bits)
    np.testing.assert_array_equal(q.dequantize(), expected)
    np.testing.assert_array_equal(jax.jit(QuantizedTensor.dequantize)(q), expected)


@pytest.mark.parametrize("shape", [(), (1,), (0,), (0, 3), (2, 3, 4, 5)])
def test_any_shape(shape):
    q, expected = tensor(shape)
    out = q.dequantize()
    assert out.shape == expected.shape == jax.jit(QuantizedTensor.dequantize)(q).shape
    np.testing.assert_array_equal(out, expected)


def test_more_than_one_piece():
    q, expected = tensor((CHUNK + 5,), bits=3)
    np.testing.assert_array_equal(q.dequantize(), expected)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_dtype_is_restored_alike_on_both_ways(dtype):
    q, expected = tensor(dtype=dtype)
    out, traced = q.dequantize(), jax.jit(QuantizedTensor.dequantize)(q)
    assert out.dtype == traced.dtype == dtype
    np.testing.assert_array_equal(out, traced)
    np.testing.assert_array_equal(out, jnp.asarray(expected, dtype))


def test_float64_without_x64_is_numpy_and_exact():
    levels = np.array([1 / 3, 2 / 3])
    q = QuantizedTensor(jnp.array([0b10], jnp.uint8), levels, (2,), "float64", 1)
    out = q.dequantize()
    assert isinstance(out, np.ndarray)
    np.testing.assert_array_equal(out, levels)
    with jax.enable_x64(True):
        out = q.dequantize()
        assert isinstance(out, jax.Array)
        np.testing.assert_array_equal(out, levels)


def test_sizes():
    q, _ = tensor((3, 5), bits=3)
    assert (q.size, q.ndim, q.nbytes) == (15, 2, 6 + 4 * 8)


def test_repr_is_short():
    q, _ = tensor()
    assert repr(q) == "QuantizedTensor(shape=(3, 5), dtype=float32, bits=3, levels=(8,))"


def test_tree_functions_see_two_arrays_and_keep_what_is_static():
    q, expected = tensor()
    leaves, treedef = jax.tree.flatten(q)
    assert [leaf.dtype for leaf in leaves] == [jnp.uint8, jnp.float32]
    again = jax.tree.unflatten(treedef, leaves)
    assert (again.shape, again.dtype, again.bits) == (q.shape, q.dtype, q.bits)
    doubled = jax.tree.map(lambda x: x if x.dtype == jnp.uint8 else 2 * x, q)
    np.testing.assert_array_equal(doubled.dequantize(), 2 * expected)
    names = [jax.tree_util.keystr(k) for k, _ in jax.tree_util.tree_leaves_with_path(q)]
    assert names == [".codes", ".levels"]


def test_shape_dtype_and_bits_are_static_under_jit():
    traces = []

    @jax.jit
    def total(q):
        assert isinstance(q.codes, jax.core.Tracer)
        traces.append((q.shape, q.dtype, q.bits))
        return q.dequantize().sum()

    for shape in [(3, 5), (3, 5), (5, 3)]:
        q, expected = tensor(shape)
        assert float(total(q)) == pytest.approx(float(expected.sum()), abs=1e-5)
    assert traces == [((3, 5), "float32", 3), ((5, 3), "float32", 3)]


def test_device_put_and_numpy_leaves():
    q, expected = tensor()
    on_device = jax.device_put(q, jax.devices()[0])
    np.testing.assert_array_equal(on_device.dequantize(), expected)
    on_host = jax.tree.map(np.asarray, q)
    np.testing.assert_array_equal(on_host.dequantize(), expected)
    np.testing.assert_array_equal(jax.jit(corrq.dequantize)(on_host), expected)


def stack(count=3, shape=(4, 6), bits=3):
    parts, arrays = zip(*(tensor(shape, bits) for _ in range(count)), strict=True)
    return jax.tree.map(lambda *a: jnp.stack(a), *parts), np.stack(arrays)


def test_a_stack_decodes_with_its_axis_first():
    q, expected = stack()
    assert q.shape == (4, 6)
    np.testing.assert_array_equal(q.dequantize(), expected)
    np.testing.assert_array_equal(jax.jit(QuantizedTensor.dequantize)(q), expected)
    np.testing.assert_array_equal(jax.vmap(QuantizedTensor.dequantize)(q), expected)


def test_a_stack_of_stacks():
    (a, x), (b, y) = stack(), stack()
    both = jax.tree.map(lambda *leaves: jnp.stack(leaves), a, b)
    np.testing.assert_array_equal(both.dequantize(), np.stack([x, y]))
    np.testing.assert_array_equal(jax.jit(QuantizedTensor.dequantize)(both), np.stack([x, y]))


def test_scan_over_a_stack():
    q, expected = stack()
    x = RNG.normal(size=4).astype(np.float32)

    def step(total, q):
        w = q.dequantize()
        return total + x @ w, w[0]

    total, rows = jax.lax.scan(step, jnp.zeros(6), q)
    np.testing.assert_allclose(total, (x @ expected).sum(axis=0), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(rows, expected[:, 0])


def test_grad_flows_to_the_levels():
    q, _ = tensor()
    index = np.asarray(coding.unpack(q.codes, q.size, q.bits))

    def loss(levels):
        return QuantizedTensor(q.codes, levels, q.shape, q.dtype, q.bits).dequantize().sum()

    np.testing.assert_allclose(jax.grad(loss)(q.levels), np.bincount(index, minlength=8))


def test_what_quantize_makes_decodes_alike_on_both_ways():
    w = RNG.normal(size=(130, 130)).astype(np.float32)
    q, _ = corrq.quantize(w)
    assert (q.shape, q.dtype, q.bits, q.codes.size) == ((130, 130), "float32", 4, 8450)
    assert (np.diff(q.levels) > 0).all()
    np.testing.assert_array_equal(q.dequantize(), jax.jit(QuantizedTensor.dequantize)(q))
