"""Keras models: equal outputs, clear errors, no retraces, untouched variables, moments matched."""

import jax
import keras_reference
import numpy as np
import pytest
from flax import nnx

import corrq_jax as corrq
import corrq_jax.flax
from corrq_jax.errors import InputError
from corrq_jax.keras import assign, dequantize, functional, quantize
from corrq_jax.paths import flatten
from corrq_jax.tensor import is_quantized

CLASSES = 7
SIZE = 32
EXAMPLE = jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), np.float32)


@pytest.fixture(scope="module")
def keras():
    return keras_reference.keras()


@pytest.fixture(scope="module")
def images():
    return keras_reference.pictures(np.random.default_rng(0), (SIZE, SIZE))


def made(create):
    """A model with random variables."""
    model = keras_reference.uninitialized(create)
    rng = np.random.default_rng(0)
    for variable in model.variables:
        kind = variable.path.rpartition("/")[2]
        if "seed" in kind:
            variable.assign(np.array([0, 7], np.uint32))
        elif kind == "variance":  # of EfficientNet's input
            variable.assign(np.ones(variable.shape))
        else:
            variable.assign(keras_reference.random_variable(rng, kind, tuple(variable.shape)))
    return model


def build(keras, width=16):
    """Two convolutions with BatchNorm, the second in a residual branch, and a dense layer."""
    layers = keras.layers

    def create():
        inputs = keras.Input((SIZE, SIZE, 3))
        x = layers.BatchNormalization(name="norm1")(layers.Conv2D(width, 3, name="conv1")(inputs))
        x = layers.ReLU()(x)
        y = layers.Conv2D(width, 3, padding="same", use_bias=False, name="conv2")(x)
        x = layers.Add()([x, layers.ReLU()(layers.BatchNormalization(name="norm2")(y))])
        x = layers.Dropout(0.5, name="dropout")(layers.GlobalAveragePooling2D()(x))
        return keras.Model(inputs, layers.Dense(10, name="dense")(x))

    return made(create)


@pytest.fixture(scope="module")
def model(keras):
    return build(keras)


def values(model):
    return [np.array(variable.value) for variable in model.variables]


def relative_error(a, b):
    return float(np.linalg.norm(np.asarray(a) - b) / np.linalg.norm(b))


@pytest.mark.parametrize(
    ("name", "options"),
    [("MobileNet", {"alpha": 0.25}), ("MobileNetV2", {"alpha": 0.35}), ("EfficientNetB0", {})],
)
def test_networks_of_keras_applications(keras, images, name, options):
    """benchmarks/keras_applications.py does this with all of them."""
    create = getattr(keras.applications, name)
    options |= {"weights": None, "input_shape": (SIZE, SIZE, 3), "classes": CLASSES}
    network = made(lambda: create(**options))
    before = values(network)
    bits = 8 if name == "MobileNet" else 4  # which is quicker
    qmodel, report = quantize(network, bits=bits, example=EXAMPLE)
    kernels = [v for v in network.weights if len(v.shape) > 1]
    assert sorted(row.shape for row in report) == sorted(tuple(v.shape) for v in kernels)
    # In these networks a kernel comes before every BatchNorm, and a BatchNorm after most kernels.
    norms = [v for v in network.weights if v.path.endswith("/moving_mean")]
    assert len(report.matched.norms) == len(norms) >= len(kernels) / 2
    assert not report.matched.unreached
    jax.tree.map(np.testing.assert_array_equal, values(network), before)
    if name == "MobileNet":  # the others take long to compile
        apply, params = functional(network)
        expected = jax.jit(apply)(params, images)
        found = jax.jit(lambda m, x: m(x))(qmodel, images)
        # 8 bits leave some 0.005 of each kernel's norm, and 28 kernels follow each other.
        assert 0 < relative_error(found, expected) < 0.05


def nnx_layer():
    return nnx.Linear(1, 1, rngs=nnx.Rngs(0))


class TestFunctional:
    def test_equals_the_model(self, model, images):
        apply, params = functional(model)
        np.testing.assert_array_equal(apply(params, images), model(images))

    def test_paths_are_those_of_keras(self, model):
        _, params = functional(model)
        named = {variable.path: variable.value for variable in model.variables}
        found = dict(flatten(params)[0])
        assert found.keys() == named.keys()
        jax.tree.map(np.testing.assert_array_equal, found, named)

    def test_what_keras_donates_is_not_lost(self, keras, images):
        """`predict` and `fit` donate the model's arrays: they are deleted."""
        model = build(keras)
        apply, params = functional(model)
        qmodel, _ = quantize(model, bits=4)
        expected, found = apply(params, images), qmodel(images)
        decoded = dequantize(qmodel)
        for network in (model, decoded):
            network.predict(images, verbose=0)
        np.testing.assert_array_equal(apply(params, images), expected)
        assign(model, qmodel.params)
        own = model.predict(images, verbose=0)
        np.testing.assert_array_equal(qmodel(images), found)
        assert relative_error(own, found) < 1e-5  # compiled as a whole, float32

    def test_training_changes_nothing(self, model, images):
        apply, params = functional(model)
        before = values(model)
        trained = apply(params, images, training=True)
        assert relative_error(trained, model(images)) > 0.1
        np.testing.assert_array_equal(apply(params, images, training=True), trained)
        jax.tree.map(np.testing.assert_array_equal, values(model), before)

    def test_frozen_layers_are_passed_by_path(self, keras, images):
        model = build(keras)
        apply, params = functional(model)
        expected = np.array(model(images))
        model.get_layer("conv1").trainable = False
        np.testing.assert_array_equal(apply(params, images), expected)

    def test_survives_a_file(self, model, images, tmp_path):
        qmodel, _ = quantize(model, bits=4)
        corrq.save(tmp_path / "net.safetensors", qmodel.params)
        back = corrq.load(tmp_path / "net.safetensors")
        np.testing.assert_array_equal(qmodel.apply(back, images), qmodel(images))

    def test_a_subclass_with_several_inputs(self, keras):
        class Two(keras.Model):
            def __init__(self):
                super().__init__()
                self.embed = keras.layers.Embedding(50, 8)
                self.dense = keras.layers.Dense(8)

            def call(self, tokens, x):
                return {"out": self.embed(tokens) + self.dense(x)}

        model, inputs = Two(), (np.arange(6).reshape(2, 3), np.ones((2, 3, 4), np.float32))
        with pytest.raises(InputError, match=r"two.* has no variables yet; call it on a batch"):
            functional(model)
        model(*inputs)
        qmodel, report = quantize(model, bits=8)
        assert len(report) == 2
        assert relative_error(qmodel(*inputs)["out"], np.asarray(model(*inputs)["out"])) < 0.02

    def test_variables_of_one_path_stay_apart(self, keras):
        def tower(scale):
            inputs = keras.Input((4,))
            x = keras.layers.Dense(4, name="dense")(inputs)
            inner = keras.Model(inputs, x, name="tower")
            inner.get_layer("dense").kernel.assign(scale * np.eye(4))
            return inner

        class Both(keras.Model):
            def __init__(self):
                super().__init__()
                self.a, self.b = tower(1.0), tower(10.0)

            def call(self, x):
                return self.b(self.a(x))

        both, x = Both(), np.ones((1, 4), np.float32)
        both(x)
        paths = [variable.path for variable in both.variables]
        assert len(set(paths)) < len(paths)
        apply, params = functional(both)
        assert len(jax.tree.leaves(params)) == 4
        np.testing.assert_array_equal(apply(params, x), both(x))
        assert {float(leaf.max()) for leaf in jax.tree.leaves(params)} == {0, 1, 10}

    def test_wrong_parameters_are_named(self, model, images):
        apply, params = functional(model)
        with pytest.raises(InputError, match="dense/bias missing"):
            apply(params | {"dense": {"kernel": params["dense"]["kernel"]}}, images)
        with pytest.raises(InputError, match="tail unknown"):
            apply(params | {"tail": np.ones(3)}, images)
        dense = params["dense"] | {"bias": np.zeros(7)}
        with pytest.raises(InputError, match=r"dense/bias \(7,\) instead of \(10,\)"):
            apply(params | {"dense": dense}, images)

    @pytest.mark.parametrize("make", [lambda: None, lambda: 3, nnx_layer], ids=["None", "3", "nnx"])
    @pytest.mark.usefixtures("keras")  # which says what it runs on
    def test_needs_a_keras_model(self, make):
        other = make()
        with pytest.raises(
            InputError, match=f"a Keras model is needed, not .*{type(other).__name__}"
        ):
            functional(other)

    def test_needs_the_jax_backend(self, keras, model, monkeypatch):
        monkeypatch.setattr(keras.backend, "backend", lambda: "torch")
        with pytest.raises(InputError, match=r"Keras runs on torch; .* KERAS_BACKEND=jax"):
            functional(model)


class TestQuantize:
    def test_one_trace_for_all_parameters_of_a_model(self, keras, model, images):
        traces = []

        @jax.jit
        def step(network, x):
            traces.append(1)
            return network(x)

        first = step(quantize(model, bits=3, grid="optimal")[0], images)
        second = step(quantize(model, bits=3, grid="optimal", example=EXAMPLE)[0], images)
        assert len(traces) == 1
        assert not np.allclose(first, second)
        step(quantize(build(keras), bits=3)[0], images)  # another model's layers are others
        assert len(traces) == 2

    def test_only_codes_enter_the_compiled_function(self, model, images):
        qmodel, _ = quantize(model, bits=4)
        entries = dict(flatten(qmodel.params)[0])
        quantized = {path for path, leaf in entries.items() if is_quantized(leaf)}
        assert quantized == {"conv1/kernel", "conv2/kernel", "dense/kernel"}
        closed = jax.make_jaxpr(lambda m, x: m(x))(qmodel, images)
        held = [v.size for v in closed.consts] + [v.aval.size for v in closed.jaxpr.constvars]
        assert max(held, default=0) < 16

    def test_needs_an_example_to_match(self, model):
        with pytest.raises(InputError, match="needs an example of the inputs: give example="):
            quantize(model, bits=2, match_moments=True)
        assert quantize(model, bits=2, example=EXAMPLE, match_moments=False)[1].matched is None


class FlaxNet(nnx.Module):
    """What `build` makes."""

    def __init__(self, rngs, width=16):
        norm = {"epsilon": 1e-3, "use_running_average": True, "rngs": rngs}
        self.conv1 = nnx.Conv(3, width, (3, 3), padding="VALID", rngs=rngs)
        self.norm1 = nnx.BatchNorm(width, **norm)
        self.conv2 = nnx.Conv(width, width, (3, 3), use_bias=False, rngs=rngs)
        self.norm2 = nnx.BatchNorm(width, **norm)
        self.dense = nnx.Linear(width, 10, rngs=rngs)

    def __call__(self, x):
        x = jax.nn.relu(self.norm1(self.conv1(x)))
        x = x + jax.nn.relu(self.norm2(self.conv2(x)))
        return self.dense(x.mean(axis=(1, 2)))


NAMES = {"moving_mean": "mean", "moving_variance": "var", "gamma": "scale", "beta": "bias"}


def as_flax(params):
    return {
        layer: {NAMES.get(name, name): value for name, value in leaves.items()}
        for layer, leaves in params.items()
        if layer != "dropout" and "seed_generator_state" not in leaves
    }


def test_moments_are_matched_as_in_flax(model, images):
    """Keras multiplies before it subtracts, Flax the other way around: one network all the same."""
    _, params = functional(model)
    apply, _ = corrq_jax.flax.functional(FlaxNet(nnx.Rngs(0)))
    np.testing.assert_allclose(apply(as_flax(params), images), model(images), rtol=1e-4, atol=1e-5)
    options = {"bits": 2, "example": EXAMPLE, "input_mean": 0.2}
    ours, report = quantize(model, **options)
    theirs, expected = corrq_jax.flax.quantize(apply.module(as_flax(params)), **options)
    assert report.matched.norms == expected.matched.norms == ("conv1/kernel", "conv2/kernel")
    assert report.matched.biases == expected.matched.biases == ("dense/kernel",)
    found, wanted = (dict(flatten(t)[0]) for t in (as_flax(ours.params), theirs.params))
    for path in ("norm1/mean", "norm1/var", "norm2/mean", "norm2/var", "dense/bias"):
        before = dict(flatten(as_flax(params))[0])[path]
        assert relative_error(wanted[path], before) > 0.01
        # The two sum in other orders, in float64, and store float32.
        np.testing.assert_allclose(found[path], wanted[path], rtol=1e-5, atol=1e-6)


def test_dequantize_makes_a_model(model, images):
    qmodel, _ = quantize(model, bits=4)
    decoded = dequantize(qmodel)
    assert decoded is not model
    np.testing.assert_array_equal(decoded(images), qmodel(images))
    assert relative_error(decoded(images), np.asarray(model(images))) > 0.01


def test_a_model_that_keras_cannot_copy(keras):
    class Odd(keras.Model):
        def __init__(self, width):
            super().__init__()
            self.dense = keras.layers.Dense(width)

        def call(self, x):
            return self.dense(x)

    model, x = Odd(3), np.ones((1, 4), np.float32)
    model(x)
    qmodel, _ = quantize(model, bits=4)
    with pytest.raises(
        InputError, match="Keras cannot copy odd: NotImplementedError; make another one"
    ):
        dequantize(qmodel)
    expected = qmodel(x)
    assign(model, qmodel.params)
    np.testing.assert_array_equal(model(x), expected)
    with pytest.raises(InputError, match="missing"):
        assign(model, {})
