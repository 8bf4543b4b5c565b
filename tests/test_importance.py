"""Shares of kernels in the signal at the output: chains, sums, gates, and a simulation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from corrq_jax.moments import trace

WIDTH = 64


def kernels(*names, seed=0):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=(WIDTH, WIDTH)).astype(np.float32) / 8 for name in names}


def shares(apply, params, **options):
    example = jax.ShapeDtypeStruct((1, WIDTH), np.float32)
    return trace(apply, params, example, **options).shares


def test_every_kernel_of_a_chain_has_all_of_the_signal():
    def apply(p, x):
        return jax.nn.gelu(jax.nn.relu(x @ p["a"]) @ p["b"]) @ p["c"]

    assert shares(apply, kernels("a", "b", "c")) == pytest.approx({"a": 1, "b": 1, "c": 1})


@pytest.mark.parametrize("gain", [0.1, 1.0, 3.0])
def test_a_branch_has_its_part_of_the_variance(gain):
    """Both branches give a channel the variance of its column; one is scaled by the gain."""

    def apply(p, x):
        return x @ p["a"] + gain * (x @ p["b"])

    params = kernels("a", "b")
    a, b = ((params[name].astype(np.float64) ** 2).sum(axis=0) for name in "ab")
    expected = {"a": (a / (a + gain**2 * b)).mean(), "b": (gain**2 * b / (a + gain**2 * b)).mean()}
    assert shares(apply, params) == pytest.approx(expected)


def test_channels_count_by_what_the_next_kernel_makes_of_them():
    """Half of the channels come from a noisy branch, and the next kernel reads the other half."""

    def apply(p, x):
        return jnp.concatenate([x @ p["a"], x @ p["b"]], axis=-1) @ p["c"]

    params = kernels("a", "b")
    params["c"] = np.concatenate([np.zeros((WIDTH, 3)), np.ones((WIDTH, 3))]).astype(np.float32)
    assert shares(apply, params) == pytest.approx({"a": 0, "b": 1, "c": 1})


def test_a_shared_kernel_adds_up():
    def apply(p, x):
        return jax.nn.relu(x @ p["a"]) @ p["a"]

    assert shares(apply, kernels("a")) == pytest.approx({"a": 2})


def test_shares_predict_the_noise_at_the_output_of_linear_residual_blocks():
    """By simulation: noise of a hundredth of a kernel's variance, and what arrives of it."""
    names = ("stem", "b1", "b2", "b3", "head")

    def apply(p, x):
        x = x @ p["stem"]
        for name in ("b1", "b2", "b3"):
            x = x + 0.7 * (x @ p[name])
        return x @ p["head"]

    params = kernels(*names)
    found = shares(apply, params)
    rng = np.random.default_rng(1)
    x = rng.normal(size=(4000, WIDTH)).astype(np.float32)
    exact = np.asarray(apply(params, x))
    for name in names:
        noise = rng.normal(size=(WIDTH, WIDTH)).astype(np.float32) * params[name].std() / 10
        wrong = np.asarray(apply(params | {name: params[name] + noise}, x)) - exact
        ratio = 100 * wrong.var() / exact.var()
        # One draw of 4,096 errors, and random kernels whose outputs correlate a little.
        assert ratio == pytest.approx(found[name], rel=0.25), name


def test_importance_is_the_share_but_never_nothing():
    def apply(p, x):
        return x @ p["a"] + 0.1 * (x @ p["b"]) + 1e-9 * (x @ p["c"])

    example = jax.ShapeDtypeStruct((1, WIDTH), np.float32)
    wiring = trace(apply, kernels("a", "b", "c"), example)
    for name in "ab":
        assert wiring.importance[name] == wiring.shares[name]
    assert wiring.shares["c"] < 1e-10
    assert wiring.importance["c"] == 1e-4


def test_what_is_not_understood_still_gets_a_share():
    def apply(p, x):
        y = jnp.sort(x @ p["a"], axis=-1)
        return y @ p["b"]

    found = shares(apply, kernels("a", "b"))
    assert set(found) == {"a"}
    assert 0 <= found["a"] <= 1
