"""NNX modules and Linen variables: equal outputs, clear errors, no retraces, untouched state."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.core import FrozenDict

import corrq_jax as corrq
from corrq_jax import evaluation, fidelity
from corrq_jax.data import batches
from corrq_jax.errors import InputError
from corrq_jax.flax import QuantizedModel, dequantize, functional, quantize
from corrq_jax.paths import flatten
from corrq_jax.tensor import is_quantized

WIDTH = 16
LAYERS = 12  # more than ten: "10" sorts before "2"


class Net(nnx.Module):
    """A little of everything."""

    def __init__(self, rngs, layers=LAYERS):
        self.conv = nnx.Conv(3, WIDTH, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(WIDTH, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(
            num_heads=2, in_features=WIDTH, decode=False, rngs=rngs
        )
        self.blocks = nnx.List([nnx.Linear(WIDTH, WIDTH, rngs=rngs) for _ in range(layers)])
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(WIDTH, 5, rngs=rngs)

    def __call__(self, images):
        x = self.norm(self.conv(images))
        x = x.reshape(x.shape[0], -1, WIDTH)
        x = x + self.attention(x)
        for block in self.blocks:
            x = x + jnp.tanh(block(x))
        return self.head(self.dropout(x).mean(1))


def net(seed=0, **options):
    model = Net(nnx.Rngs(seed), **options)
    model.eval()
    return model


@pytest.fixture(scope="module")
def model():
    return net()


@pytest.fixture(scope="module")
def quantized(model):
    return quantize(model, bits=4)


@pytest.fixture
def images():
    return np.random.default_rng(0).normal(size=(3, 6, 6, 3)).astype(np.float32)


def relative_error(a, b):
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


class TestFunctional:
    def test_equals_the_module(self, model, images):
        apply, params = functional(model)
        np.testing.assert_array_equal(apply(params, images), model(images))
        compiled = jax.jit(lambda p, x: apply(p, x))(params, images)
        np.testing.assert_allclose(compiled, model(images), rtol=1e-5, atol=1e-5)

    def test_the_order_of_keys_does_not_matter(self, model, images):
        apply, params = functional(model)
        by_text = {str(i): params["blocks"][i] for i in sorted(params["blocks"], key=str)}
        assert list(by_text)[2] == "10"
        shuffled = dict(reversed((params | {"blocks": by_text}).items()))
        np.testing.assert_array_equal(apply(shuffled, images), model(images))

    def test_survives_a_file(self, model, images, tmp_path):
        apply, params = functional(model)
        corrq.save(tmp_path / "net.safetensors", params)
        back = corrq.load(tmp_path / "net.safetensors")
        np.testing.assert_array_equal(apply(back, images), model(images))

    def test_variables_that_hold_one_array_stay_apart(self):
        class Twice(nnx.Module):
            def __init__(self):
                one = jnp.ones(3)
                self.a, self.b = nnx.Param(one), nnx.Param(one)

            def __call__(self):
                return self.a + 10 * self.b

        apply, params = functional(Twice())
        np.testing.assert_array_equal(apply(params), np.full(3, 11))
        np.testing.assert_array_equal(apply(params | {"b": jnp.zeros(3)}), np.ones(3))

    def test_a_shared_module_is_there_once(self, images):
        class Tied(nnx.Module):
            def __init__(self, rngs):
                self.a = nnx.Linear(3, 3, rngs=rngs)
                self.b = self.a

            def __call__(self, x):
                return self.b(self.a(x))

        tied = Tied(nnx.Rngs(0))
        apply, params = functional(tied)
        assert len(jax.tree.leaves(params)) == 2
        np.testing.assert_array_equal(apply(params, images), tied(images))

    def test_changes_of_state_are_dropped(self, images):
        model = net()
        model.train()
        apply, params = functional(model)
        before = np.array(params["norm"]["mean"])
        first = apply(params, images)
        np.testing.assert_array_equal(params["norm"]["mean"], before)
        np.testing.assert_array_equal(model.norm.mean[...], before)
        np.testing.assert_array_equal(apply(params, images), first)  # the same random key
        np.testing.assert_array_equal(model(images), first)

    def test_wrong_parameters_are_named(self, model, images):
        apply, params = functional(model)
        with pytest.raises(InputError, match="head/bias, head/kernel missing"):
            apply({k: v for k, v in params.items() if k != "head"}, images)
        with pytest.raises(InputError, match="tail unknown"):
            apply(params | {"tail": np.ones(3)}, images)
        head = params["head"] | {"bias": np.zeros(7)}
        wrong = r"head/bias \(7,\) instead of \(5,\) of another shape"
        with pytest.raises(InputError, match=wrong):
            apply(params | {"head": head}, images)
        with pytest.raises(InputError, match=r"attention/key/bias, .*, \.\.\. missing"):
            apply({}, images)

    @pytest.mark.parametrize("other", [None, {"kernel": 1}, nn.Dense(3), 3])
    def test_needs_an_nnx_module(self, other):
        with pytest.raises(InputError, match=type(other).__name__):
            functional(other)


class TestQuantize:
    def test_chooses_the_kernels(self, quantized):
        _, report = quantized
        parts = ("query", "key", "value", "out")
        expected = {"conv/kernel", "head/kernel"}
        expected |= {f"attention/{part}/kernel" for part in parts}
        expected |= {f"blocks/{i}/kernel" for i in range(LAYERS)}
        assert {row.path for row in report} == expected
        assert {"norm/mean", "dropout/rngs/key"} <= {s.path for s in report.skipped}

    def test_equals_the_decoded_module(self, quantized, images):
        qmodel, _ = quantized
        decoded = dequantize(qmodel)
        assert isinstance(decoded, Net)
        np.testing.assert_array_equal(qmodel(images), decoded(images))

    def test_each_layer_is_its_own(self, model, quantized):
        decoded = dequantize(quantized[0])
        for ours, original in zip(decoded.blocks, model.blocks, strict=True):
            assert relative_error(ours.kernel[...], original.kernel[...]) < 0.15
            np.testing.assert_array_equal(ours.bias[...], original.bias[...])

    def test_error_falls_with_bits(self, model, images):
        errors = [relative_error(quantize(model, bits=b)[0](images), model(images)) for b in (8, 4)]
        assert errors[0] < 0.02
        assert errors[1] > 4 * errors[0]

    def test_takes_the_options_of_the_core(self, model):
        qmodel, report = quantize(model, bits={"head/*": 4}, select="*/kernel")
        assert [(row.path, row.bits) for row in report] == [("head/kernel", 4)]
        assert isinstance(qmodel, QuantizedModel)
        with pytest.raises(InputError, match="matches no leaf"):
            quantize(model, select="tail")

    @pytest.mark.parametrize("other", [None, 3, "net"])
    def test_needs_a_network(self, other):
        with pytest.raises(InputError, match=type(other).__name__):
            quantize(other)


class TestTransformations:
    def test_jit(self, quantized, images):
        qmodel, _ = quantized
        compiled = jax.jit(lambda m, x: m(x))(qmodel, images)
        np.testing.assert_allclose(compiled, qmodel(images), rtol=1e-4, atol=1e-5)

    def test_only_codes_enter_the_compiled_function(self, model):
        qmodel, _ = quantize(model, bits=4)
        paths = {path: leaf for path, leaf in flatten(qmodel.params)[0] if is_quantized(leaf)}
        assert all(leaf.codes.dtype == jnp.uint8 for leaf in paths.values())
        assert all(leaf.codes.nbytes == leaf.size // 2 for leaf in paths.values())

    def test_vmap_over_pictures(self, quantized, images):
        qmodel, _ = quantized
        one = jax.vmap(lambda m, x: m(x[None])[0], in_axes=(None, 0))(qmodel, images)
        np.testing.assert_allclose(one, qmodel(images), rtol=1e-4, atol=1e-5)

    def test_vmap_over_networks(self, images):
        qmodels = [quantize(net(seed), bits=4)[0] for seed in (0, 1)]
        stacked = jax.tree.map(lambda *a: jnp.stack(a), *qmodels)
        both = jax.vmap(lambda m: m(images))(stacked)
        for found, qmodel in zip(both, qmodels, strict=True):
            np.testing.assert_allclose(found, qmodel(images), rtol=1e-4, atol=1e-5)

    def test_a_second_network_is_not_traced_again(self, images):
        traces = 0

        @jax.jit
        def step(network, x):
            nonlocal traces
            traces += 1
            return network(x)

        outputs = [step(quantize(net(seed), bits=4)[0], images) for seed in (0, 1)]
        assert traces == 1
        assert not np.allclose(*outputs)
        step(quantize(net(layers=2), bits=4)[0], images)
        assert traces == 2

    def test_one_evaluation_step_for_all_parameters(self, images):
        class Counting(nnx.Module):
            def __init__(self, rngs):
                self.head = nnx.Linear(6 * 6 * 3, 5, rngs=rngs)

            def __call__(self, x):
                traces.append(1)
                return self.head(x.reshape(len(x), -1))

        traces: list[int] = []
        pictures = list(batches(images, np.array([0, 1, 2], np.int32), 2))
        (apply, params), (same, others) = (functional(Counting(nnx.Rngs(i))) for i in (0, 1))
        assert (apply, hash(apply)) == (same, hash(same))
        found = []
        for tree, in_all in ((params, 1), (others, 1)):
            found.append(evaluation.logits(same, tree, pictures))
            assert len(traces) == in_all
        for tree, in_all in ((params, 2), (others, 2)):
            found.append(evaluation.logits(apply, corrq.quantize(tree, bits=8)[0], pictures))
            assert len(traces) == in_all
        for exact, close in ((0, 2), (1, 3)):
            assert relative_error(found[close], found[exact]) < 0.02


class Stack(nn.Module):
    """Layers of one kind under nn.scan: every kernel has an axis of layers."""

    layers: int = 3

    @nn.compact
    def __call__(self, x):
        class Block(nn.Module):
            @nn.compact
            def __call__(self, x, _):
                return x + jnp.tanh(nn.Dense(WIDTH)(x)), None

        scanned = nn.scan(
            Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=self.layers
        )
        x, _ = scanned(name="blocks")(x, None)
        x = nn.BatchNorm(use_running_average=True)(x)
        self.variable("cache", "kernel", lambda: jnp.arange(16.0).reshape(4, 4))
        return nn.Dense(5)(x)


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(1).normal(size=(7, WIDTH)).astype(np.float32)


@pytest.fixture(scope="module")
def variables(x):
    return Stack().init(jax.random.key(0), x)


class TestLinen:
    @pytest.mark.parametrize("kind", [dict, FrozenDict])
    def test_variables(self, variables, x, kind):
        given = kind(variables)
        qvariables, report = quantize(given, bits=8)
        assert type(qvariables) is kind
        assert {row.path for row in report} == {"blocks/Dense_0/kernel", "Dense_0/kernel"}
        for collection in ("batch_stats", "cache"):
            pairs = zip(
                jax.tree.leaves(qvariables[collection]),
                jax.tree.leaves(given[collection]),
                strict=True,
            )
            assert all(ours is theirs for ours, theirs in pairs)
        decoded = dequantize(qvariables)
        assert jax.tree.structure(decoded) == jax.tree.structure(given)
        expected = Stack().apply(variables, x)
        assert relative_error(Stack().apply(decoded, x), expected) < 0.02

    def test_a_scanned_stack_is_decoded_inside_jit(self, variables, x):
        qvariables, _ = quantize(variables, bits=4)
        kernel = qvariables["params"]["blocks"]["Dense_0"]["kernel"]
        assert is_quantized(kernel)
        assert kernel.shape == (3, WIDTH, WIDTH)

        @jax.jit
        def step(variables, x):
            return Stack().apply(dequantize(variables), x)

        np.testing.assert_allclose(
            step(qvariables, x), Stack().apply(dequantize(qvariables), x), rtol=1e-5, atol=1e-5
        )

    def test_parameters_alone(self, variables):
        qparams, report = quantize(variables["params"], bits=4)
        assert is_quantized(qparams["Dense_0"]["kernel"])
        assert report.size == 3 * WIDTH * WIDTH + WIDTH * 5

    def test_the_given_variables_stay(self, variables):
        before = jax.tree.map(np.array, variables)
        quantize(variables, bits=1)
        jax.tree.map(np.testing.assert_array_equal, variables, before)
        assert not any(map(is_quantized, jax.tree.leaves(variables, is_leaf=is_quantized)))


def test_efficientnet_keeps_its_logits():
    network = fidelity.subject("efficientnet_lite0")
    pictures = network.pictures[:1]
    qparams, _ = corrq.quantize(network.params, bits=8)
    expected = evaluation.logits(network.apply, network.params, pictures)
    found = evaluation.logits(network.apply, qparams, pictures)  # decoded inside jit
    assert corrq.correlation(expected, found) > 0.99
    np.testing.assert_array_equal(expected.argmax(1), found.argmax(1))
