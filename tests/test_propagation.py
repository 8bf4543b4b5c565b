"""Distributions against Monte Carlo and closed forms."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax import lax

from corrq_jax.interpreter import Interpreter
from corrq_jax.propagation import RULES
from corrq_jax.signals import Signal, gaussian

MEAN = np.array([-1.0, 0.0, 0.5, 3.0])
DEVIATION = np.array([0.5, 1.0, 2.0, 1.5])


def propagated(function, *shapes):
    """Outputs for independent Gaussian inputs whose four last channels are as above."""
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    closed = jax.make_jaxpr(function)(*arguments)
    inputs = [Signal(gaussian(*along_last(s, MEAN, DEVIATION**2))) for s in shapes]
    return Interpreter(RULES).run(closed.jaxpr, closed.consts, inputs)


def along_last(shape, *moments):
    return [m.reshape(*[1] * (len(shape) - 1), -1) for m in moments]


def sampled(function, *shapes, draws, seed=0):
    """float[draws, *shape] of the function of one draw after the other."""
    rng = np.random.default_rng(seed)
    inputs = [rng.normal(MEAN, DEVIATION, (draws, *s)).astype(np.float32) for s in shapes]
    return np.asarray(jax.jit(jax.vmap(function))(*inputs), np.float64)


def assert_like_samples(signal, samples, rtol=0.02):
    """Equal per channel, if places (axes of length 1 in the signal) are alike."""
    mean, variance = signal.moments()
    assert mean.ndim == samples.ndim - 1
    places = tuple(i + 1 for i, size in enumerate(mean.shape) if size == 1)
    expected = samples.mean((0, *places), keepdims=True)[0]
    spread = samples.var((0, *places), keepdims=True)[0]
    # Means of 10^5 draws are off by 0.3 % of the deviation, variances by 0.5 %; the nodes by 0.1 %
    # of the largest, at a kink.
    np.testing.assert_allclose(mean, expected, rtol=0, atol=0.5 * rtol * np.sqrt(spread.max()))
    np.testing.assert_allclose(variance, spread, rtol=rtol, atol=1e-3 * spread.max())


def test_relu6_has_the_closed_form_of_a_clipped_gaussian():
    [signal] = propagated(jax.nn.relu6, (1, 4))
    mean, variance = oracles.clipped_moments(MEAN, DEVIATION, 0, 6)
    found = [moment.ravel() for moment in signal.moments()]
    # A kink costs a part of the step squared, which is 0.009.
    np.testing.assert_allclose(found[0], mean, atol=1e-3)
    np.testing.assert_allclose(found[1], variance, rtol=5e-3, atol=1e-4)


@pytest.mark.parametrize(
    "activation",
    [
        *(jax.nn.relu, jax.nn.swish, jax.nn.hard_swish, jax.nn.hard_tanh, jax.nn.leaky_relu),
        *(jax.nn.sigmoid, jax.nn.elu, jax.nn.softplus, jax.nn.mish, jax.nn.selu, jax.nn.soft_sign),
        jax.nn.gelu,
        lambda x: jax.nn.gelu(x, approximate=False),
        lambda x: jnp.where(x > 0.5, x**3, -jnp.abs(x)),
        lambda x: jnp.clip(x, -1.0, 2.0),
    ],
)
def test_activations(activation):
    [signal] = propagated(activation, (1, 4))
    samples = sampled(lambda x: activation(x)[0], (1, 4), draws=100_000)
    assert_like_samples(Signal(signal.nodes[:, 0]), samples)


PLACES = (1, 6, 6, 4)
MATRIX = np.arange(16.0, dtype=np.float32).reshape(4, 4) / 16


@pytest.mark.parametrize(
    ("function", "rtol"),
    [
        (lambda x, y: x + y, 0.02),
        (lambda x, y: x - 2 * y, 0.02),
        (lambda x, y: x * jax.nn.sigmoid(y), 0.02),
        (lambda x, y: jnp.maximum(x, y), 0.02),
        (lambda x, y: x + jax.nn.relu(x), 0.02),
        (lambda x, y: jnp.concatenate([x, jax.nn.relu(y)], -1) * 3, 0.02),
        (lambda x, y: jnp.concatenate([x, jnp.ones((1, 6, 6, 2))], -1), 0.02),
        (lambda x, y: x[..., :2] * jax.nn.sigmoid(x[..., 2:]), 0.02),
        (lambda x, y: x[..., ::-1] + y, 0.02),
        (lambda x, y: x[:, 1:5, ::2] + 1, 0.02),
        (lambda x, y: jnp.multiply(*jnp.split(x, 2, axis=-1)), 0.02),
        (lambda x, y: jnp.pad(x, ((0, 0), (0, 0), (0, 0), (1, 2))), 0.02),
        (lambda x, y: x.reshape(1, 36, 4) + 1, 0.02),
        (lambda x, y: x.reshape(1, -1) * 2, 0.12),  # here places are not pooled: fewer draws
        (lambda x, y: x.transpose(0, 3, 1, 2) * 2, 0.02),
        (lambda x, y: x.reshape(1, 6, 6, 2, 2).swapaxes(3, 4).reshape(1, 6, 6, 4), 0.02),
        (lambda x, y: x.mean((1, 2)), 0.08),  # likewise
        (lambda x, y: x - 0 * y.sum(-1, keepdims=True), 0.02),
        (lambda x, y: x * jax.nn.sigmoid(y.mean((1, 2), keepdims=True)), 0.03),
        (lambda x, y: x.max((1, 2)), 0.08),  # the extreme of 36 lies in the last nodes
        (lambda x, y: x.min((1, 2)), 0.08),
        (lambda x, y: (x - jnp.array([1.0, 2, 3, 4])) / jnp.array([1.0, 2, 3, 4]), 0.02),
        (lambda x, y: x * lax.platform_dependent(cpu=lambda: 2.0, default=lambda: 3.0), 0),
        (lambda x, y: jax.checkpoint(jax.nn.relu)(x), 0.02),
        (lambda x, y: jnp.where(jnp.arange(4) % 2 == 0, x, y), 0.02),
        (lambda x, y: lax.rev(x, (1, 3)), 0.02),
        (lambda x, y: jnp.tile(x, (1, 1, 1, 2)), 0.02),
        (lambda x, y: x.astype(jnp.bfloat16).astype(jnp.float32) + MATRIX[0], 0.02),
    ],
)
def test_operations(function, rtol):
    [signal] = propagated(function, PLACES, PLACES)
    if rtol:  # otherwise the platform here takes another branch: it is only followed
        assert_like_samples(signal, sampled(function, PLACES, PLACES, draws=3000), rtol)
    else:
        np.testing.assert_allclose(signal.moments()[0].ravel(), 3 * MEAN, atol=1e-9)


@jax.custom_vjp
def with_own_gradient(x):
    return jax.nn.relu(x)


with_own_gradient.defvjp(lambda x: (x, None), lambda _, g: (g,))


def test_functions_with_their_own_gradient_are_entered():
    [signal] = propagated(with_own_gradient, (1, 4))
    [expected] = propagated(jax.nn.relu, (1, 4))
    np.testing.assert_array_equal(signal.nodes, expected.nodes)


@pytest.mark.parametrize("axes", [(-1,), (1, 2), (1, 2, 3)])
def test_normalization_by_the_input_itself(axes):
    """LayerNorm, InstanceNorm and GroupNorm, written out; over many values, as in networks."""

    def normalize(x):
        x = x.reshape(1, 12, -1) if -1 in axes else x  # 48 channels
        mean = x.mean(axes, keepdims=True)
        variance = jnp.maximum((x * x).mean(axes, keepdims=True) - mean**2, 0)
        return (x - mean) * lax.rsqrt(variance + 1e-6)

    shape = (1, 12, 12, 4)
    [signal] = propagated(normalize, shape)
    samples = sampled(normalize, shape, draws=300)
    # That the normalizer depends on each of the values it normalizes is neglected.
    assert_like_samples(signal, samples, rtol=0.2)


def test_the_largest_of_four_and_of_two_have_their_known_moments():
    pool = {"window_dimensions": (1, 2, 2, 1), "window_strides": (1, 2, 2, 1), "padding": "VALID"}
    [signal] = propagated(lambda x: lax.reduce_window(x, -jnp.inf, lax.max, **pool), PLACES)
    mean, variance = (moment.ravel() for moment in signal.moments())
    # Of standard Gaussians: 1.02938 and 0.49172; of two: 1 / sqrt(pi) and 1 - 1 / pi.
    np.testing.assert_allclose((mean - MEAN) / DEVIATION, 1.02938, rtol=2e-3)
    np.testing.assert_allclose(variance / DEVIATION**2, 0.49172, rtol=5e-3)
    [signal] = propagated(lambda x, y: jnp.maximum(x, y), (1, 4), (1, 4))
    mean, variance = (moment.ravel() for moment in signal.moments())
    np.testing.assert_allclose((mean - MEAN) / DEVIATION, math.pi**-0.5, rtol=5e-3)
    np.testing.assert_allclose(variance / DEVIATION**2, 1 - 1 / math.pi, rtol=5e-3)


@pytest.mark.parametrize("padding", ["VALID", "SAME"])
def test_averages_of_a_window_keep_the_distribution(padding):
    def pool(x):
        window = ((1, 3, 3, 1), (1, 1, 1, 1), padding)
        count = lax.reduce_window(jnp.ones_like(x), 0.0, lax.add, *window)
        return lax.reduce_window(x, 0.0, lax.add, *window) / count

    [signal] = propagated(pool, (1, 7, 7, 4))
    mean, variance = (moment.ravel() for moment in signal.moments())
    np.testing.assert_allclose(mean, MEAN, atol=1e-6)
    np.testing.assert_allclose(variance, DEVIATION**2, rtol=1e-6)


def test_a_table_of_positions_is_added_by_its_mean():
    table = np.arange(36.0, dtype=np.float32).reshape(1, 6, 6, 1)
    [signal] = propagated(lambda x: x + table, PLACES)
    np.testing.assert_allclose(signal.moments()[0].ravel(), MEAN + 17.5, atol=1e-6)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x: jnp.sort(x, -1), "sort is not followed"),
        (lambda x: jax.nn.relu(jnp.sort(x, -1)) + 1, "sort is not followed"),
        (lambda x: lax.top_k(x, 2)[0], "top_k is not followed"),
        (lambda x: jax.nn.softmax(x), "reduce_max across channels"),
        (lambda x: lax.scan(lambda c, y: (c, c + y), x[0, 0, 0], x[0, 0])[1], "scan"),
        (lambda x: jnp.concatenate([x, x + 1], 1), "of positions"),
        (lambda x: jnp.where(np.eye(6)[None, :, :, None] > 0, x, 0.0), "differ between positions"),
        (lambda x: lax.cond(x[0, 0, 0, 0] > 0, jnp.sin, jnp.cos, x), "cond is not followed"),
    ],
)
def test_what_is_not_understood_has_a_reason(function, reason):
    [signal] = propagated(function, PLACES)
    assert signal.values is None
    assert reason in signal.reason


def test_too_many_positions_are_not_followed():
    shape = (1, 400, 400, 4)
    [signal] = propagated(lambda x: x.reshape(1, -1), shape)
    assert "too many" in signal.reason
