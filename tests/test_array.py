"""One array in one pure call: the codes and levels of the tree function, under any transform."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import corrq_jax as corrq
from corrq_jax import Config, InputError, quantize_array
from corrq_jax.core import coding
from corrq_jax.core.density import SORTED_SIZE

# Compiles in a fraction of the time: where what is searched does not matter.
QUICK = Config(3, "linear", fit="range")
CONFIGS = [
    Config(4),
    Config(2, "linear"),
    Config(3, "exponential", zero=True),
    Config(4, "nf4"),
]


def weights(*shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).laplace(size=shape).astype(dtype)


def by_tree(w, config):
    """The tensor, and its rho, from the function that this one has to agree with."""
    tree, report = corrq.quantize({"kernel": w}, config=config)
    return tree["kernel"], report.rows[0].correlation


def assert_equal(found, expected):
    assert (found.shape, found.dtype, found.bits) == (expected.shape, expected.dtype, expected.bits)
    both = (coding.unpack(q.codes, q.size, q.bits) for q in (found, expected))
    np.testing.assert_array_equal(*both)
    np.testing.assert_array_equal(found.levels, expected.levels)


class TestAgreesWithTheTree:
    @pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.grid}-{c.bits}")
    def test_under_jit(self, config):
        w = weights(40, 33)
        found, rho = quantize_array(w, config)
        expected, expected_rho = by_tree(w, config)
        assert_equal(found, expected)
        assert float(rho) == pytest.approx(expected_rho, abs=1e-6)
        assert corrq.correlation(w, found.dequantize()) == pytest.approx(float(rho), abs=2e-4)

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
    def test_in_other_dtypes(self, dtype):
        w = jnp.asarray(weights(40, 33), dtype)
        found, _ = quantize_array(w, QUICK)
        assert_equal(found, by_tree(w, QUICK)[0])
        assert found.dequantize().dtype == dtype

    def test_of_weights_far_from_zero(self):
        w = 5 + 0.01 * weights(40, 33)
        found, rho = quantize_array(w)
        assert_equal(found, by_tree(w, Config())[0])
        assert corrq.correlation(w, found.dequantize()) == pytest.approx(float(rho), abs=1e-3)

    def test_of_more_weights_than_are_sorted(self):
        w = weights(SORTED_SIZE + 77, 1)
        assert_equal(quantize_array(w)[0], by_tree(w, Config())[0])

    def test_under_vmap(self):
        stack = np.stack([weights(40, 33, seed=seed) for seed in range(3)])
        found, rho = jax.vmap(quantize_array)(stack)
        assert rho.shape == (3,)
        for i, w in enumerate(stack):
            expected, expected_rho = by_tree(w, Config())
            assert_equal(jax.tree.map(lambda a, i=i: a[i], found), expected)
            assert float(rho[i]) == pytest.approx(expected_rho, abs=1e-6)
        decoded = found.dequantize()
        assert decoded.shape == stack.shape
        np.testing.assert_array_equal(decoded[1], by_tree(stack[1], Config())[0].dequantize())

    def test_under_scan(self):
        stack = np.stack([weights(40, 33, seed=seed) for seed in range(3)])

        def step(carry, w):
            return carry, quantize_array(w, QUICK)

        _, (found, _) = jax.lax.scan(step, None, stack)
        for i, w in enumerate(stack):
            assert_equal(jax.tree.map(lambda a, i=i: a[i], found), by_tree(w, QUICK)[0])

    def test_decoding_under_scan(self):
        stack = np.stack([weights(40, 33, seed=seed) for seed in range(3)])
        found, _ = jax.vmap(lambda w: quantize_array(w, QUICK))(stack)
        _, decoded = jax.lax.scan(lambda carry, q: (carry, q.dequantize()), None, found)
        np.testing.assert_array_equal(decoded, found.dequantize())


def test_compiles_once_a_shape():
    traces = 0

    @functools.partial(jax.jit, static_argnames="config")
    def step(w, config):
        nonlocal traces
        traces += 1
        return quantize_array(w, config)[1]

    for seed in range(2):
        step(weights(8, 9, seed=seed), QUICK)
    assert traces == 1


class TestErrors:
    @pytest.mark.parametrize("w", [np.ones((4, 4), np.int32), np.ones(1, np.float32)])
    def test_of_arrays(self, w):
        with pytest.raises(InputError, match="at least two weights of float16"):
            quantize_array(w)

    def test_of_a_list(self):
        with pytest.raises(InputError, match="got a list; give an array"):
            quantize_array([[1.0, 2.0]])

    def test_of_a_mapping(self):
        with pytest.raises(InputError, match="one number"):
            quantize_array(weights(3, 3), Config({"*": 4}))

    @pytest.mark.parametrize(
        "option",
        [{"coding": "trellis"}, {"granularity": "channel"}, {"bits_per_weight": 3}],
        ids=str,
    )
    def test_of_options_that_only_the_tree_function_has(self, option):
        with pytest.raises(InputError, match=f"{next(iter(option))}=.* only for corrq_jax.quan"):
            quantize_array(weights(3, 3), Config(bits=3, **option))

    def test_of_the_tree_function_inside_jit(self):
        with pytest.raises(InputError, match="quantize_array"):
            jax.jit(lambda w: corrq.quantize({"kernel": w})[0])(weights(3, 3))
