"""Decoding each kernel in its layer: equal outputs, and memory for one decoded kernel at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import corrq_jax as corrq
from corrq_jax.tensor import is_quantized

WIDTH, LAYERS, BATCH = 128, 6, 4
KERNEL = 4 * WIDTH * WIDTH
"""Bytes of one decoded kernel."""
ACTIVATIONS = 3 * 4 * BATCH * WIDTH
"""Bytes of a layer's input and output, and of one more that XLA may keep."""


def net(params, x):
    for layer in params["layers"]:
        x = jnp.tanh(x @ layer["kernel"] + layer["bias"])
    return x


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(0)
    kernels = rng.normal(size=(LAYERS, WIDTH, WIDTH)).astype(np.float32) / WIDTH**0.5
    biases = rng.normal(size=(LAYERS, WIDTH)).astype(np.float32)
    return {"layers": [{"kernel": w, "bias": b} for w, b in zip(kernels, biases, strict=True)]}


@pytest.fixture(scope="module")
def qparams(params):
    return corrq.quantize(params, bits=4)[0]


@pytest.fixture(scope="module")
def x():
    return jnp.asarray(np.random.default_rng(1).normal(size=(BATCH, WIDTH)), jnp.float32)


def decoded(function):
    """What `packed` has to equal."""
    return lambda params, *args, **kwargs: function(corrq.dequantize(params), *args, **kwargs)


def scratch(function, *args):
    """Bytes that the compiled function needs beside its arguments and outputs."""
    return jax.jit(function).lower(*args).compile().memory_analysis().temp_size_in_bytes


def same(function, params, *args):
    """Bit for bit: both decode and compute by the same operations."""
    found = jax.jit(corrq.packed(function))(params, *args)
    jax.tree.map(np.testing.assert_array_equal, found, jax.jit(decoded(function))(params, *args))
    return found


class TestMemory:
    def test_one_kernel_is_decoded_at_a_time(self, qparams, x):
        assert scratch(corrq.packed(net), qparams, x) <= KERNEL + ACTIVATIONS

    def test_what_lives_between_layers_is_packed(self, params, x):
        float_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
        before = {id(a) for a in jax.live_arrays()}
        qparams, _ = corrq.quantize(params, bits=3)
        qparams = jax.device_put(qparams)
        jax.block_until_ready(jax.jit(corrq.packed(net))(qparams, x))
        live = sum(a.nbytes for a in jax.live_arrays() if id(a) not in before)
        assert live <= (3 / 32 + 0.05) * float_bytes

    def test_kernels_that_are_constants_stay_packed(self, qparams, x):
        def step(x):
            return corrq.packed(net)(qparams, x)

        compiled = jax.jit(step).lower(x).compile()
        assert compiled.memory_analysis().temp_size_in_bytes <= KERNEL + ACTIVATIONS
        assert f"f32[{WIDTH},{WIDTH}]" not in "".join(
            line for line in compiled.as_text().splitlines() if " constant(" in line
        )

    def test_a_batch_by_vmap_decodes_once(self, qparams, x):
        each = jax.vmap(corrq.packed(net), (None, 0))
        assert scratch(each, qparams, x) <= KERNEL + ACTIVATIONS

    def test_a_derived_kernel_is_derived_in_its_layer(self, qparams, x):
        def normalized(params, x):
            for layer in params["layers"]:
                w = layer["kernel"]
                x = x @ (w / jnp.linalg.norm(w, axis=0)).astype(x.dtype)
            return x

        same(normalized, qparams, x)
        assert scratch(corrq.packed(normalized), qparams, x) <= 2 * KERNEL + ACTIVATIONS


class TestOutputs:
    def test_equal_those_of_the_decoded_network(self, qparams, x):
        same(net, qparams, x)
        np.testing.assert_array_equal(corrq.packed(net)(qparams, x), decoded(net)(qparams, x))

    def test_with_nothing_quantized(self, params, x):
        found = jax.jit(corrq.packed(net))(params, x)
        np.testing.assert_array_equal(found, jax.jit(net)(params, x))

    def test_of_a_kernel_used_twice_and_of_jitted_parts(self, qparams, x):
        def tied(params, x):
            w = params["layers"][0]["kernel"]
            product = jax.jit(lambda x, w: jnp.tanh(x @ w))
            return product(product(x, w), w) @ w.T

        same(tied, qparams, x)

    def test_of_branches_and_loops(self, qparams, x):
        def loops(params, x):
            w, v = (layer["kernel"] for layer in params["layers"][:2])
            x = jax.lax.fori_loop(0, 3, lambda _, x: jnp.tanh(x @ w), x)
            return jax.lax.cond(x[0, 0] > 0, lambda: x @ w, lambda: x @ v)

        same(loops, qparams, x)

    def test_that_are_a_tree_and_follow_from_parameters_alone(self, qparams, x):
        def report(params, x, *, name, scale=2.0):
            assert name == "static"
            w = params["layers"][0]["kernel"]
            return {"x": x, "norm": scale * jnp.linalg.norm(w), "both": (w, w @ x.T), "none": None}

        found = same(lambda p, x: report(p, x, name="static"), qparams, x)
        assert found["none"] is None
        keyword = jax.jit(lambda p, x: corrq.packed(report)(p, x=x, name="static"))(qparams, x)
        jax.tree.map(np.testing.assert_array_equal, keyword, found)

    def test_of_random_keys_and_integers(self, qparams, x):
        def drop(params, key, index):
            w = params["layers"][0]["kernel"]
            return w[index] * jax.random.bernoulli(key, 0.5, (WIDTH,))

        same(drop, qparams, jax.random.key(0), jnp.arange(5))

    def test_of_stacked_networks(self, params, x):
        other = jax.tree.map(lambda a: a[::-1].copy(), params)
        trees = [corrq.quantize(tree, bits=4)[0] for tree in (params, other)]
        stack = jax.tree.map(lambda *a: jnp.stack(a), *trees)
        found = jax.jit(jax.vmap(corrq.packed(net), (0, None)))(stack, x)
        for one, tree in zip(found, trees, strict=True):
            # A batched product sums in another order.
            np.testing.assert_allclose(one, decoded(net)(tree, x), rtol=0, atol=1e-5)

    def test_gradients_of_inputs(self, qparams, x):
        def slope(function):
            return jax.jit(jax.grad(lambda x: function(qparams, x).sum()))(x)

        found, expected = slope(corrq.packed(net)), slope(decoded(net))
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)  # another order of sums

    def test_of_infinite_inputs(self, qparams):
        """The data that kernels wait for do not touch them."""
        for value in (np.nan, np.inf, -np.inf, -1.0, 3e38):
            x = jnp.full((BATCH, WIDTH), value)
            same(lambda params, x: (x, jnp.where(x == x, 0, 0) @ params["layers"][0]["kernel"]),
                 qparams, x)  # fmt: skip


def test_the_function_is_traced_once(qparams, x):
    traces = []

    def counted(params, x):
        traces.append(not any(map(is_quantized, jax.tree.leaves(params, is_leaf=is_quantized))))
        return net(params, x)

    step = jax.jit(corrq.packed(counted))
    for tree in (qparams, jax.tree.map(jnp.copy, qparams)):
        step(tree, x)
    assert traces == [True]
