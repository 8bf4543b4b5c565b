"""Flax networks quantized with an example: moments matched, budgets by importance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

import corrq_jax as corrq
import corrq_jax.flax

EXAMPLE = jax.ShapeDtypeStruct((1, 8, 8, 3), np.float32)


class Net(nnx.Module):
    """Two convolutions with BatchNorm, the second in a residual branch, and a dense layer."""

    def __init__(self, rngs):
        self.conv1 = nnx.Conv(3, 16, (3, 3), rngs=rngs)
        self.norm1 = nnx.BatchNorm(16, use_running_average=True, rngs=rngs)
        self.conv2 = nnx.Conv(16, 16, (3, 3), rngs=rngs)
        self.norm2 = nnx.BatchNorm(16, use_running_average=True, rngs=rngs)
        self.dense = nnx.Linear(16, 10, rngs=rngs)

    def __call__(self, x):
        x = jax.nn.relu(self.norm1(self.conv1(x)))
        x = x + jax.nn.relu(self.norm2(self.conv2(x)))
        return self.dense(x.mean(axis=(1, 2)))


class LinenNet(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.relu(linen.BatchNorm(use_running_average=True)(linen.Conv(8, (3, 3))(x)))
        return linen.Dense(4)(x.mean(axis=(1, 2)))


@pytest.fixture(scope="module")
def net():
    return Net(nnx.Rngs(0))


def test_an_example_matches_moments(net):
    plain, report = corrq_jax.flax.quantize(net, bits=2)
    matched, with_example = corrq_jax.flax.quantize(net, bits=2, example=EXAMPLE)
    assert report.matched is None
    assert set(with_example.matched.norms) == {"conv1/kernel", "conv2/kernel"}
    assert with_example.matched.biases == ("dense/kernel",)
    assert "moments matched: 2 kernels by the normalization" in str(with_example)
    for name in ("norm1", "norm2"):
        for part in ("mean", "var"):
            assert (matched.params[name][part] != plain.params[name][part]).any()
        np.testing.assert_array_equal(matched.params[name]["scale"], plain.params[name]["scale"])
    codes = [m.params["conv1"]["kernel"].codes for m in (plain, matched)]
    np.testing.assert_array_equal(*codes)
    out = jax.jit(lambda m, x: m(x))(matched, jnp.ones((2, 8, 8, 3)))
    assert out.shape == (2, 10)


def test_matching_can_be_refused_and_needs_an_example(net):
    _, report = corrq_jax.flax.quantize(net, bits=2, example=EXAMPLE, match_moments=False)
    assert report.matched is None
    with pytest.raises(corrq.InputError, match="needs an example of the inputs: give example="):
        corrq_jax.flax.quantize(net, bits=2, match_moments=True)


def test_a_network_without_normalization_is_matched_on_request_only():
    model = nnx.Linear(8, 4, rngs=nnx.Rngs(0))
    example = jax.ShapeDtypeStruct((1, 8), np.float32)
    _, report = corrq_jax.flax.quantize(model, bits=2, example=example)
    assert report.matched is None
    options = {"example": example, "match_moments": True, "input_mean": 1.0}
    qmodel, report = corrq_jax.flax.quantize(model, bits=2, **options)
    assert report.matched.biases == ("kernel",)
    assert (np.asarray(qmodel.params["bias"]) != np.asarray(model.bias[...])).any()


def test_a_budget_goes_by_importance(net):
    options = {"bits_per_weight": 4.5, "bits": (2, 3, 4, 5, 6)}
    alike = corrq_jax.flax.quantize(net, **options)[1]
    weighed = corrq_jax.flax.quantize(net, example=EXAMPLE, **options)[1]
    assert weighed.bits_per_weight <= 4.5
    noise = {r.path: r.noise for r in alike}, {r.path: r.noise for r in weighed}
    # The residual branch counts for less.
    assert noise[1]["conv2/kernel"] >= noise[0]["conv2/kernel"]


def test_linen_variables_with_an_example():
    model = LinenNet()
    variables = model.init(jax.random.key(0), jnp.ones((1, 8, 8, 3)))
    options = {"example": EXAMPLE, "apply": model.apply}
    quantized, report = corrq_jax.flax.quantize(variables, bits=2, **options)
    assert report.matched.norms == ("params/Conv_0/kernel",)
    before, after = variables["batch_stats"], quantized["batch_stats"]
    assert (after["BatchNorm_0"]["mean"] != before["BatchNorm_0"]["mean"]).any()
    assert model.apply(corrq.dequantize(quantized), jnp.ones((2, 8, 8, 3))).shape == (2, 4)
    budgeted = corrq_jax.flax.quantize(variables, bits_per_weight=24.0, **options)[1]
    assert budgeted.bits_per_weight <= 24  # headers outweigh such small kernels
    with pytest.raises(corrq.InputError, match="needs apply="):
        corrq_jax.flax.quantize(variables, bits=2, example=EXAMPLE)
