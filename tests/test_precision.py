"""Networks in bfloat16: what is computed in it, and how near its metrics are."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import corrq_jax as corrq
from corrq_jax import evaluation
from corrq_jax.data import batches
from corrq_jax.errors import InputError
from corrq_jax.flax import functional
from corrq_jax.precision import in_dtype


class Network(nnx.Module):
    """Two convolutions, a normalization, Dropout with its random key, and a classifier."""

    def __init__(self, rngs):
        self.stem = nnx.Conv(3, 16, (3, 3), strides=2, rngs=rngs)
        self.norm = nnx.BatchNorm(16, epsilon=1e-5, use_running_average=True, rngs=rngs)
        self.body = nnx.Conv(16, 16, (3, 3), rngs=rngs)
        self.drop = nnx.Dropout(0.5, deterministic=True, rngs=rngs)
        self.head = nnx.Linear(16, 10, rngs=rngs)

    def __call__(self, images):
        x = nnx.relu(self.norm(self.stem(images)))
        return self.head(self.drop(nnx.relu(self.body(x)).mean((1, 2))))


@pytest.fixture(scope="module")
def network():
    return functional(Network(nnx.Rngs(0)))


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).normal(size=(23, 12, 12, 3)).astype(np.float32)


def trees(params):
    """Parameters in the forms that can be evaluated."""
    return {
        "float": params,
        "quantized": corrq.quantize(params, bits=4)[0],
        "scaled": corrq.quantize(params, bits=4, granularity="channel")[0],
    }


FORMS = pytest.mark.parametrize("form", ["float", "quantized", "scaled"])


def products(apply, params, images):
    """The operand and result types of all convolutions and matrix products of the step."""
    text = jax.jit(apply).lower(params, images).as_text()
    lines = [
        line
        for line in text.splitlines()
        if re.search(r"stablehlo\.(convolution|dot_general)", line)
    ]
    return [re.findall(r"x(bf16|f16|f32|f64)>", line) for line in lines]


@FORMS
def test_all_products_are_in_bfloat16(network, images, form):
    apply, params = network
    tree = trees(params)[form]
    assert products(apply, tree, images) == [["f32"] * 3] * 3
    assert products(in_dtype(apply, "bfloat16"), tree, images) == [["bf16"] * 3] * 3


@FORMS
def test_metrics_in_bfloat16_are_near(network, images, form):
    apply, params = network
    tree, pictures = trees(params)[form], list(batches(images, np.full(23, -1), 10))
    exact = evaluation.logits(apply, tree, pictures)
    half = evaluation.logits(apply, tree, pictures, dtype="bfloat16")
    assert half.dtype == np.float32
    error = np.linalg.norm(half - exact) / np.linalg.norm(exact)
    # A rounding errs by up to 2**-9 = 0.2 %. Images, kernels and the results of a dozen steps are
    # rounded, and the errors of independent roundings add up as their squares do.
    assert 1e-4 < error < 12**0.5 * 2**-9
    found = evaluation.evaluate(apply, tree, pictures, exact, dtype=jnp.bfloat16)
    # KL is half the variance of the logits' errors, to second order, and 1 - r half the square of
    # the relative error; twice that allows for errors that are not alike for all classes.
    assert 0 < found.kl < error**2 * np.square(exact).mean()
    assert found.correlation > 1 - error**2
    assert found.agreement > 0.9


@pytest.mark.parametrize("form", ["quantized", "scaled"])
def test_a_quantized_kernel_is_rounded_once(network, form):
    kernel = trees(network[1])[form]["body"]["kernel"]
    expected = kernel.dequantize().astype(jnp.bfloat16).astype(jnp.float32)

    def decoded(params, images):
        assert params.dequantize().dtype == jnp.bfloat16
        return params.dequantize()

    found = jax.jit(in_dtype(decoded, "bfloat16"))(kernel, jnp.zeros(1))
    np.testing.assert_array_equal(found, expected)


def test_only_what_is_floating_is_cast():
    params = {
        "float": np.ones(2, np.float32),
        "half": np.ones(2, np.float16),
        "number": 1.0,
        "integer": np.arange(2),
        "flag": np.array(True),
        "key": jax.random.key(0),
        "none": None,
    }
    seen = {}

    def apply(params, images):
        seen.update({name: value.dtype.name for name, value in params.items() if value is not None})
        seen["images"] = images.dtype.name
        return params["float"]

    half = in_dtype(apply, "bfloat16")
    assert jax.jit(half)(params, np.zeros(3, np.uint8)).dtype == np.float32
    assert seen == {
        **dict.fromkeys(("float", "half", "number"), "bfloat16"),
        "integer": "int32",
        "flag": "bool",
        "key": "key<fry>",
        "images": "uint8",
    }
    half(params, np.zeros(3, np.float32))
    assert seen["images"] == "bfloat16"


def test_it_is_traced_once_for_each_dtype(network, images):
    traces = []

    def apply(params, images):
        traces.append(images.dtype.name)
        return network[0](params, images)

    pictures = list(batches(images, np.full(23, -1), 10))
    for _ in range(2):
        for dtype in (None, "bfloat16", jnp.bfloat16, "float16"):
            for params in (network[1], jax.tree.map(lambda leaf: leaf + 0, network[1])):
                evaluation.evaluate(apply, params, pictures, dtype=dtype)
    assert traces == ["float32", "bfloat16", "float16"]
    assert in_dtype(apply, "bfloat16") == in_dtype(apply, jnp.bfloat16)


@pytest.mark.parametrize("dtype", ["int8", "float64", "bf16", jnp.float8_e4m3fn, 3])
def test_other_dtypes_are_refused(network, images, dtype):
    pictures = list(batches(images, np.full(23, -1), 10))
    with pytest.raises(InputError, match=r"dtype is .*; give one of bfloat16, float16, float32"):
        evaluation.evaluate(*network, pictures, dtype=dtype)
