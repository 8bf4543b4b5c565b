"""Pearson correlation against the oracle, and its invariances."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import corrq_jax as corrq
from corrq_jax.core import correlation as corr
from corrq_jax.core.density import CHUNK, density

RNG = np.random.default_rng(0)
NORMAL = RNG.normal(size=5000)
ROUNDED = np.round(NORMAL * 4) / 4


@pytest.mark.parametrize("size", [2, 3, 1000, CHUNK + 3])
def test_equals_the_oracle(size):
    w = RNG.normal(size=size)
    v = w + RNG.normal(size=size)
    assert corrq.correlation(w, v) == pytest.approx(oracles.rho(w, v), abs=1e-12)


@pytest.mark.parametrize("scale", [1e30, 1e-30, 1e-300, 1e300])
@pytest.mark.parametrize("mean", [0, 1e6, -1e6])
def test_is_as_exact_at_any_scale_and_mean(scale, mean):
    expected = oracles.rho(NORMAL, ROUNDED)
    w, v = (NORMAL + mean) * scale, (ROUNDED + mean) * scale
    # A mean of 1e6 leaves float64 10 digits of the deviations.
    assert corrq.correlation(w, v) == pytest.approx(expected, abs=1e-9)
    assert corrq.correlation(w, ROUNDED) == pytest.approx(expected, abs=1e-9)


def test_tells_apart_what_differs_in_the_tenth_digit():
    w = RNG.normal(size=100_000)
    v = w + 1e-5 * RNG.normal(size=w.size)
    assert 1 - corrq.correlation(w, v) == pytest.approx(1 - oracles.rho(w, v), rel=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_narrow_dtypes_are_computed_in_float64(dtype):
    w, v = jnp.asarray(NORMAL, dtype), jnp.asarray(ROUNDED, dtype)
    exact = oracles.rho(np.asarray(w, np.float64), np.asarray(v, np.float64))
    assert corrq.correlation(w, v) == pytest.approx(exact, abs=1e-12)


def test_float16_sums_do_not_overflow():
    w = np.array([6e4, -6e4, 5e4, 6.5e4], np.float16)
    assert corrq.correlation(w, -w) == -1


values = hnp.arrays(
    np.float64, st.integers(3, 30), elements=st.integers(-1000, 1000).map(lambda i: i / 8)
)


@given(w=values, gain=st.floats(1e-3, 1e3), offset=st.floats(-1e3, 1e3), seed=st.integers(0, 99))
@settings(max_examples=60)
def test_is_invariant_under_gain_offset_and_permutation(w, gain, offset, seed):
    rng = np.random.default_rng(seed)
    v = w + rng.integers(-4, 5, size=w.size)
    rho = corrq.correlation(w, v)
    order = rng.permutation(w.size)
    if np.isnan(rho):
        assert np.ptp(w) == 0 or np.ptp(v) == 0
        return
    assert -1 <= rho <= 1
    assert corrq.correlation(w[order], v[order]) == pytest.approx(rho, abs=1e-9)
    assert corrq.correlation(v, w) == pytest.approx(rho, abs=1e-9)
    assert corrq.correlation(w, gain * v + offset) == pytest.approx(rho, abs=1e-6)
    assert corrq.correlation(w, -gain * v + offset) == pytest.approx(-rho, abs=1e-6)


def test_is_over_all_elements_of_any_shape():
    w, v = NORMAL.reshape(5, 10, 100), ROUNDED.reshape(5, 10, 100)
    assert corrq.correlation(w, v) == corrq.correlation(NORMAL, ROUNDED)
    assert corrq.correlation(w, w) == 1


@pytest.mark.parametrize("constant", [0.0, 1.0, 0.1, 1e30])
def test_is_undefined_for_what_is_constant(constant):
    flat = np.full(5000, constant)
    assert np.isnan(corrq.correlation(flat, NORMAL))
    assert np.isnan(corrq.correlation(NORMAL, flat))
    assert np.isnan(corrq.correlation(flat, flat))
    assert np.isnan(corrq.correlation([], []))


def test_shapes_have_to_agree():
    with pytest.raises(ValueError, match=r"the shapes differ: \(2,\) and \(1, 2\)"):
        corrq.correlation(np.ones(2), np.ones((1, 2)))


@jax.jit
def in_normalized_units(w, boundaries, values):
    found, norm = density(w)
    with jax.enable_x64(True):
        m = corr.moments(found)
        x = (boundaries - norm.center) * norm.scale
        c = corr.cells(m.sums, corr.bin_edges(m, x))
        noises = corr.noise_of_means(m, c), corr.noise_of_values(m, c, values)
        return noises, corr.gain_offset(m, c, values), c.mass, norm


def quantities(w, boundaries, values):
    """Noise of means, noise of values, gain, offset and masses, in units of the weights."""
    with jax.enable_x64(True):
        arguments = jnp.asarray(boundaries, jnp.float64), jnp.asarray(values, jnp.float64)
        found = in_normalized_units(jnp.asarray(w, jnp.float32), *arguments)
    noises, (gain, offset), mass, norm = jax.tree.map(np.float64, found)
    return *noises, gain / norm.scale, offset / norm.scale + norm.center, mass


@pytest.mark.parametrize("mean", [0, 5])
def test_cells_give_the_noise_gain_and_offset_of_the_weights(mean):
    w = (RNG.laplace(size=3000) + mean).astype(np.float32).astype(np.float64)
    boundaries = np.array([-1.0, 0.25, 2.0]) + mean
    w[:9] = np.repeat(boundaries, 3)  # A weight at a boundary lies below it.
    values = np.array([-2.0, -0.3, 1.0, 2.5])
    of_means, of_values, gain, offset, mass = quantities(w, boundaries, values)
    code = np.searchsorted(boundaries, w)
    means = np.array([w[code == k].mean() for k in range(4)])
    q = values[code]
    slope, intercept = np.polyfit(q, w, 1)
    np.testing.assert_array_equal(mass, np.bincount(code, minlength=4))
    assert of_means == pytest.approx(1 - oracles.rho(w, means[code]) ** 2, rel=1e-9)
    assert of_values == pytest.approx(1 - oracles.rho(w, q) ** 2, rel=1e-9)
    assert gain == pytest.approx(slope, rel=1e-9)
    assert offset == pytest.approx(intercept, rel=1e-9)


def test_noise_is_one_where_nothing_or_the_opposite_is_explained():
    w = RNG.normal(size=100)
    boundaries = np.array([0.0])
    assert quantities(w, boundaries, [1.0, -1.0])[1] == 1
    assert quantities(w, boundaries, [1.0, 1.0])[1] == 1
