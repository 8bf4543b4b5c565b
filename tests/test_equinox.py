"""Equinox modules: equal outputs, no retraces, clear errors, also without the adapter."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import corrq_jax as corrq
from corrq_jax.equinox import dequantize, functional, quantize
from corrq_jax.errors import InputError
from corrq_jax.tensor import is_quantized

KERNELS = ["conv/weight", "embed/weight", "mlp/layers/0/weight", "mlp/layers/1/weight"]


class Net(eqx.Module):
    """A convolution, a token, a perceptron; dropout, a function and a number besides."""

    conv: eqx.nn.Conv2d
    embed: eqx.nn.Embedding
    mlp: eqx.nn.MLP
    dropout: eqx.nn.Dropout
    scale: float

    def __init__(self, seed):
        keys = jax.random.split(jax.random.key(seed), 3)
        self.conv = eqx.nn.Conv2d(3, 8, 3, padding=1, key=keys[0])
        self.embed = eqx.nn.Embedding(20, 8, key=keys[1])
        self.mlp = eqx.nn.MLP(8, 5, 16, 1, activation=jnp.tanh, key=keys[2])
        self.dropout = eqx.nn.Dropout(0.5, inference=True)
        self.scale = 2.0

    def __call__(self, image, token):
        x = jax.nn.relu(self.conv(image)).mean((1, 2)) + self.embed(token)
        return self.scale * self.mlp(self.dropout(x))


@pytest.fixture(scope="module")
def net():
    return Net(0)


@pytest.fixture(scope="module")
def inputs():
    images = np.random.default_rng(0).normal(size=(4, 3, 6, 6)).astype(np.float32)
    return images, np.arange(4)


def batched(model, images, tokens):
    return jax.vmap(model)(images, tokens)


def test_the_function_is_the_module(net, inputs):
    apply, params = functional(net)
    expected = batched(net, *inputs)
    found = jax.jit(lambda p, *a: jax.vmap(lambda *one: apply(p, *one))(*a))(params, *inputs)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    same, _ = functional(Net(1))
    assert (apply, hash(apply)) == (same, hash(same))


def test_quantized_called_and_not_traced_again(net, inputs):
    traces = []

    @jax.jit
    def step(model, images, tokens):
        traces.append(1)
        return batched(model, images, tokens)

    qmodel, report = quantize(net, bits=8)
    assert [row.path for row in report] == KERNELS
    found, expected = step(qmodel, *inputs), batched(net, *inputs)
    # 8 bits leave some 0.005 of each kernel's norm.
    assert 0 < np.linalg.norm(found - expected) < 0.02 * np.linalg.norm(expected)
    np.testing.assert_allclose(found, batched(dequantize(qmodel), *inputs), rtol=1e-5, atol=1e-5)
    step(quantize(Net(1), bits=8)[0], *inputs)
    assert len(traces) == 1
    assert not any(is_quantized(leaf) for leaf in jax.tree.leaves(net, is_leaf=is_quantized))


def test_the_tree_itself_is_enough(net, inputs):
    """What the module's docstring says of corrq_jax.quantize."""
    qnet, report = corrq.quantize(net, bits=8)
    assert [row.path for row in report] == KERNELS
    assert isinstance(qnet, Net)
    assert is_quantized(qnet.conv.weight)
    found = eqx.filter_jit(lambda m, *a: batched(corrq.dequantize(m), *a))(qnet, *inputs)
    expected = batched(quantize(net, bits=8)[0], *inputs)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_survives_a_file(net, inputs, tmp_path):
    qmodel, _ = quantize(net, bits=8)
    corrq.save(tmp_path / "net.safetensors", qmodel.params)
    back = qmodel.apply.module(corrq.load(tmp_path / "net.safetensors"))
    np.testing.assert_array_equal(batched(back, *inputs), batched(qmodel, *inputs))


def test_an_example_is_traced():
    net = eqx.nn.MLP(8, 5, 16, 1, key=jax.random.key(0))
    example = jax.ShapeDtypeStruct((8,), np.float32)
    options = {"example": example, "input_mean": 0.5, "match_moments": True}
    qmodel, report = quantize(net, bits=2, **options)
    assert report.matched.biases == ("layers/0/weight", "layers/1/weight")
    decoded = dequantize(qmodel).layers[0].weight
    shift = 0.5 * (decoded - net.layers[0].weight).sum(1)
    assert np.abs(shift).max() > 0.01
    found = net.layers[0].bias - qmodel.params.layers[0].bias
    np.testing.assert_allclose(found, shift, rtol=1e-4, atol=1e-6)  # float32


@pytest.mark.parametrize("other", [None, 3, {"weight": np.ones((2, 2))}])
def test_needs_a_module(other):
    with pytest.raises(InputError, match=f"equinox.Module is needed, not a {type(other).__name__}"):
        functional(other)


def test_wrong_parameters_are_named(net):
    apply, params = functional(net)
    with pytest.raises(InputError, match=r"conv/bias, .* missing"):
        apply.module({})
    wrong = eqx.tree_at(lambda p: p.conv.bias, params, np.ones(3))
    with pytest.raises(InputError, match=r"conv/bias \(3,\) instead of \(8, 1, 1\)"):
        apply.module(wrong)
