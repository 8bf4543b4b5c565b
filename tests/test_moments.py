"""Wiring of networks, expected moments and their correction, against independent computations."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from flax import linen, nnx
from jax import lax
from small_networks import conv, image, normal

import corrq_jax
from corrq_jax import models
from corrq_jax.errors import InputError
from corrq_jax.flax import functional
from corrq_jax.moments import match_moments, trace
from corrq_jax.paths import flatten


def variables_of(model, shape):
    """Variables of a Linen module, all ones: initializing it would compile a lot."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), image(*shape))
    return jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), shapes)


def changed(tree, scale=0.1, seed=1):
    """The tree with noise on what is of rank 2 or more."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: (
            x + scale * x.std() * rng.normal(size=x.shape).astype(x.dtype) if np.ndim(x) > 1 else x
        ),
        tree,
    )


@pytest.fixture(scope="module")
def lite0():
    apply, params = functional(models.load("efficientnet_lite0"))
    return params, trace(apply, params, image(1, 224, 224, 3))


def test_lite0_is_understood_wholly(lite0):
    params, wiring = lite0
    kernels = {path for path, _ in flatten(params)[0] if path.endswith("kernel")}
    assert wiring.unreached == {}
    assert len(wiring.sites) == 50
    assert {site.kernel for site in wiring.sites} == kernels
    for site in wiring.sites:
        if site.kernel == "classifier/kernel":
            assert site.targets == ("classifier/bias",)
        else:
            norm = site.kernel.replace("conv/kernel", "norm")
            assert site.targets == (f"{norm}/mean", f"{norm}/var")


def normalized(params, path):
    """Mean and variance after a BatchNorm, from its parameters."""
    names = ("bias", "scale", "var")
    bias, scale, var = (params[f"{path}/norm/{name}"].astype(np.float64) for name in names)
    return bias, scale**2 * var / (var + 1e-3)


def test_lite0_inputs_have_the_moments_of_their_batch_norms(lite0):
    params, wiring = lite0
    leaves = {path: np.asarray(leaf) for path, leaf in flatten(params)[0]}
    sites = {site.kernel: site for site in wiring.sites}
    site = sites["stage6/block2/depthwise/conv/kernel"]
    mean, variance = normalized(leaves, "stage6/block2/expand")
    mean, variance = oracles.clipped_moments(mean, np.sqrt(variance) + 1e-12, 0, 6)  # some are dead
    # An error of a part of the step of the nodes squared, of a deviation of order one.
    np.testing.assert_allclose(site.mean, mean, atol=1e-3)
    np.testing.assert_allclose(site.variance, variance, rtol=1e-3, atol=2e-3)
    added = [normalized(leaves, f"stage6/block{i}/project") for i in (1, 2, 3, 4)]
    site = sites["stage7/block1/expand/conv/kernel"]
    np.testing.assert_allclose(site.mean, sum(m for m, _ in added), atol=1e-6)
    np.testing.assert_allclose(site.variance, sum(v for _, v in added), rtol=1e-6)


def test_lite0_without_a_change_stays_as_it_is(lite0):
    params, wiring = lite0
    matched, report = match_moments(wiring, params, params)
    assert (len(report.norms), report.biases) == (49, ("classifier/kernel",))
    for (path, a), (_, b) in zip(flatten(params)[0], flatten(matched)[0], strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b, err_msg=path)


# Networks of Flax


class LinenNet(linen.Module):
    """A separable convolution beside a pool, concatenated; a residual; three activations."""

    @linen.compact
    def __call__(self, x):
        def norm(x, name):
            return linen.BatchNorm(use_running_average=True, name=name)(x)

        x = linen.relu(norm(linen.Conv(8, (3, 3), name="stem")(x), "stem_norm"))
        y = linen.Conv(8, (3, 3), feature_group_count=8, use_bias=False, name="depthwise")(x)
        y = linen.gelu(norm(linen.Conv(8, (1, 1), name="pointwise")(y), "norm"))
        x = jnp.concatenate([y, linen.max_pool(x, (3, 3), padding="SAME")], -1)
        y = linen.swish(norm(linen.Conv(16, (1, 1), use_bias=False, name="mix")(x), "mix_norm"))
        x = linen.avg_pool(x + y, (2, 2), (2, 2))
        y = linen.ConvTranspose(6, (3, 3), strides=(2, 2), name="up")(x)
        return linen.Dense(5, name="head")(linen.relu(y).mean((1, 2)))


class NnxNet(nnx.Module):
    """Squeeze and excite, GroupNorm, Dropout and an unbatched reshape."""

    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 8, (3, 3), strides=2, rngs=rngs)
        self.norm = nnx.BatchNorm(8, use_running_average=True, rngs=rngs)
        self.squeeze, self.excite = nnx.Linear(8, 2, rngs=rngs), nnx.Linear(2, 8, rngs=rngs)
        self.group = nnx.GroupNorm(8, num_groups=2, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, deterministic=True, rngs=rngs)
        self.head = nnx.Linear(8 * 64, 5, rngs=rngs)

    def __call__(self, x):
        x = nnx.hard_swish(self.norm(self.conv(x)))
        gate = nnx.sigmoid(self.excite(nnx.relu(self.squeeze(x.mean((1, 2))))))
        x = self.dropout(self.group(x * gate[:, None, None]))
        return self.head(x.reshape(x.shape[0], -1))


def test_a_linen_network():
    model = LinenNet()
    variables = variables_of(model, (1, 8, 8, 3))
    wiring = trace(model.apply, variables, image(1, 8, 8, 3))
    assert wiring.unreached == {}
    targets = {
        s.kernel.split("/")[1]: [t.split("/", 1)[1] for t in s.targets] for s in wiring.sites
    }
    assert targets == {
        "stem": ["stem_norm/mean", "stem_norm/var"],
        "depthwise": [],
        "pointwise": ["norm/mean", "norm/var"],
        "mix": ["mix_norm/mean", "mix_norm/var"],
        "up": ["up/bias"],
        "head": ["head/bias"],
    }
    _, report = match_moments(wiring, variables, variables)
    assert report.unreached == {"params/depthwise/kernel": "no normalization or bias after it"}


def test_an_nnx_network():
    apply, params = functional(NnxNet(nnx.Rngs(0)))
    wiring = trace(apply, params, image(2, 16, 16, 3))
    assert wiring.unreached == {}
    targets = {s.kernel: s.targets for s in wiring.sites}
    assert targets == {
        "conv/kernel": ("norm/mean", "norm/var"),
        "squeeze/kernel": ("squeeze/bias",),
        "excite/kernel": ("excite/bias",),
        "head/kernel": ("head/bias",),
    }


class Block(linen.Module):
    """A transformer's block before its mixing of tokens is understood."""

    @linen.compact
    def __call__(self, x):
        x = linen.Dense(8, name="embed")(x) + self.param("table", linen.initializers.ones, (6, 8))
        x = x + linen.MultiHeadDotProductAttention(2, name="attend")(linen.LayerNorm()(x))
        y = linen.gelu(linen.Dense(16, name="up")(linen.LayerNorm()(x)))
        return x + linen.Dense(8, name="down")(y)


def test_attention_is_not_understood_but_what_is_before_it():
    model = Block()
    variables = variables_of(model, (1, 6, 4))
    wiring = trace(model.apply, variables, image(1, 6, 4))
    reached = {site.kernel: site.targets for site in wiring.sites}
    assert reached == {
        f"params/{name}/kernel": (f"params/{name}/bias",)
        for name in ("embed", "attend/query", "attend/key", "attend/value")
    }
    reasons = wiring.unreached
    assert reasons["params/table"] == "it is used by add, not as a kernel"
    for name in ("attend/out", "up", "down"):
        assert "dot_general of two signals" in reasons[f"params/{name}/kernel"]
    assert reached.keys().isdisjoint(reasons)


def plain_norm(x, p):
    return (x - p["mean"]) / jnp.sqrt(p["var"] + 1e-5) * p["gamma"] + p["beta"]


def statistics(size):
    names = {"mean": normal(size), "gamma": normal(size), "beta": normal(size)}
    return names | {"var": normal(size) ** 2 + 0.1}


def test_a_normalization_makes_known_what_was_not():
    params = {f"k{i}": {"kernel": normal(4, 4), "norm": statistics(4)} for i in range(3)}

    def apply(params, x):
        for name in params:
            x = plain_norm(jnp.sort(x, -1) @ params[name]["kernel"], params[name]["norm"])
        return jax.nn.relu(x) @ params["k0"]["kernel"]

    wiring = trace(apply, params, image(1, 4))
    assert wiring.sites == ()
    reason = "its input is not understood: sort is not followed"
    assert wiring.unreached["k1/kernel"] == reason
    assert wiring.unreached["k0/kernel"] == "k0/kernel is used more than once"
    del params["k0"]
    wiring = trace(lambda p, x: apply(p, x) if "k0" in p else last(p, x), params, image(1, 4))
    [site] = wiring.sites
    norm = params["k1"]["norm"]
    np.testing.assert_allclose(site.mean, norm["beta"], rtol=1e-5, atol=1e-6)
    spread = norm["gamma"] ** 2 * norm["var"] / (norm["var"] + 1e-5)
    np.testing.assert_allclose(site.variance, spread, rtol=1e-5)


def last(params, x):
    return (
        plain_norm(jnp.sort(x, -1) @ params["k1"]["kernel"], params["k1"]["norm"])
        @ (params["k2"]["kernel"])
    )


def two_layers(params, x):
    """A wide layer with BatchNorm and a layer with bias."""
    x = jax.nn.relu(plain_norm(x @ params["first"]["kernel"], params["norm"]))
    return x @ params["second"]["kernel"] + params["second"]["bias"]


def trained_two_layers():
    """Parameters whose running moments are those of Gaussian inputs."""
    kernel = normal(32, 64) / 6 + 0.1
    norm = statistics(64) | {"mean": kernel.sum(0) * 0.5, "var": np.square(kernel).sum(0)}
    second = {"kernel": normal(64, 10) / 8 + 0.1, "bias": normal(10)}
    return {"first": {"kernel": kernel}, "norm": norm, "second": second}


def test_matched_outputs_are_closer_to_the_network():
    params = trained_two_layers()
    x = np.random.default_rng(3).normal(0.5, 1, (20_000, 32)).astype(np.float32)
    wiring = trace(two_layers, params, image(1, 32), input_mean=0.5)
    qparams, _ = corrq_jax.quantize(params, bits=2, select=["*kernel"])
    matched, report = match_moments(wiring, params, qparams)
    assert (report.norms, report.biases) == (("first/kernel",), ("second/kernel",))
    assert corrq_jax.dequantize(matched)["second"]["bias"].dtype == np.float32

    def outputs(tree):
        tree = corrq_jax.dequantize(tree)
        hidden = plain_norm(x @ tree["first"]["kernel"], tree["norm"])
        return np.asarray(hidden, np.float64), np.asarray(two_layers(tree, x), np.float64)

    for exact, plain, corrected in zip(*map(outputs, (params, qparams, matched)), strict=True):

        def error(y, moment, exact=exact):
            return np.abs(moment(y, axis=0) - moment(exact, axis=0)).mean()

        # What is left of the mean is the sampling of x and the shape that a sum is said to have.
        assert error(corrected, np.mean) < 0.15 * error(plain, np.mean)
        assert np.square(corrected - exact).mean() < np.square(plain - exact).mean()
    hidden = [outputs(tree)[0] for tree in (params, qparams, matched)]
    spread = [np.abs(np.log(h.var(0) / hidden[0].var(0))).mean() for h in hidden[1:]]
    assert spread[1] < 0.1 * spread[0]


def test_the_correction_is_the_one_of_the_formula():
    params = trained_two_layers()
    wiring = trace(two_layers, params, image(1, 32), input_mean=0.5)
    other = changed(params)
    matched, _ = match_moments(wiring, params, other)
    shift = 0.5 * (other["first"]["kernel"] - params["first"]["kernel"]).sum(0)
    np.testing.assert_allclose(matched["norm"]["mean"], params["norm"]["mean"] + shift, rtol=1e-4)
    w, w_q = (tree["first"]["kernel"].astype(np.float64) for tree in (params, other))
    gain = (w * w_q).sum(0) / (w * w).sum(0)
    expected = gain**2 * params["norm"]["var"] + np.square(w_q - gain * w).sum(0)
    np.testing.assert_allclose(matched["norm"]["var"], expected, rtol=1e-4)
    again, _ = match_moments(wiring, params, matched)
    jax.tree.map(np.testing.assert_array_equal, again, matched)
    for name in ("gamma", "beta"):
        assert matched["norm"][name] is other["norm"][name]


def test_dead_channels_stay_as_they_are():
    params = trained_two_layers()
    params["first"]["kernel"][:, 0] = 0
    other = jax.tree.map(np.copy, params)
    other["first"]["kernel"][:, :2] = 100
    wiring = trace(two_layers, params, image(1, 32))
    matched, _ = match_moments(wiring, params, other)
    np.testing.assert_array_equal(matched["norm"]["var"][0], params["norm"]["var"][0])
    assert matched["norm"]["var"][1] > 32 * 100**2 * 0.9
    np.testing.assert_allclose(matched["norm"]["var"][2:], params["norm"]["var"][2:], rtol=1e-6)


def test_variances_that_training_measured_count_where_inputs_correlate():
    """Inputs have much in common, which trained kernels cancel and noise does not."""
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(50_000, 32)) + 2 * rng.normal(size=(50_000, 1))).astype(np.float32)
    x /= x.std()  # as the trace assumes: of each input it knows no more than that
    params = trained_two_layers()
    kernel = params["first"]["kernel"]
    kernel -= kernel.mean(0)
    params["norm"]["mean"], params["norm"]["var"] = (x @ kernel).mean(0), (x @ kernel).var(0)
    wiring = trace(two_layers, params, image(1, 32))
    qparams, _ = corrq_jax.quantize(params, bits=1, select=["first/kernel"])
    matched, _ = match_moments(wiring, params, qparams)
    new_kernel = corrq_jax.dequantize(qparams)["first"]["kernel"]
    true = (x @ new_kernel).var(0)
    by_ratio = params["norm"]["var"] * np.square(new_kernel).sum(0) / np.square(kernel).sum(0)
    found, ratio = (np.log(v.sum() / true.sum()) for v in (matched["norm"]["var"], by_ratio))
    # What is common is drawn 64 times only, once for the noise of each channel.
    assert abs(found) < 0.25
    assert ratio < -0.7


def test_a_vgg_like_network_flattens_in_order():
    params = {"conv": {"kernel": normal(3, 3, 3, 4), "bias": normal(4)}}
    params["dense"] = {"kernel": normal(4 * 4 * 4, 5), "bias": normal(5)}

    def apply(params, x):
        x = jax.nn.relu(conv(x, params["conv"]["kernel"]) + params["conv"]["bias"])
        x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        return x.reshape(1, -1) @ params["dense"]["kernel"] + params["dense"]["bias"]

    wiring = trace(apply, params, image(1, 8, 8, 3))
    conv_site, dense = wiring.sites
    assert (conv_site.bias, dense.bias) == ("conv/bias", "dense/bias")
    np.testing.assert_array_equal(dense.mean.reshape(16, 4), np.tile(dense.mean[:4], (16, 1)))
    matched, report = match_moments(wiring, params, params)
    assert report.biases == ("conv/kernel", "dense/kernel")
    jax.tree.map(np.testing.assert_array_equal, matched, params)


def test_what_cannot_be_corrected_is_listed():
    params = {name: normal(4, 4) for name in ("a", "b", "shared", "low", "high", "scan", "idle")}
    params |= {"bias": normal(4), "table": normal(9, 4)}

    def apply(params, x, tokens):
        x = x + params["table"][tokens]  # a gather of unknown rows
        y = jax.nn.relu(x @ params["a"])
        z = jnp.ones((1, 4)) * x[:, :1] * 0
        return y, z @ params["b"]

    wiring = trace(apply, params, (image(1, 4), jax.ShapeDtypeStruct((1,), jnp.int32)))
    assert wiring.sites == ()
    assert wiring.unreached["idle"] == "it meets nothing that depends on the network's input"
    assert "not as a kernel" in wiring.unreached["table"]
    assert "an input of dtype int32" in wiring.unreached["a"]

    def apply(params, x):
        x = jax.nn.relu(x @ params["shared"] + params["bias"]) @ params["shared"]
        x = x @ (params["low"] @ params["high"])
        x = lax.scan(lambda c, _: (c @ params["scan"], None), x, None, length=2)[0]
        return x @ params["a"] + params["bias"]

    wiring = trace(apply, params, image(1, 4))
    assert wiring.sites == ()
    assert wiring.unreached["shared"] == "shared is used more than once"
    assert wiring.unreached["low"] == "several parameters make up one kernel"
    assert wiring.unreached["scan"] == "it is used by scan, not as a kernel"
    assert wiring.unreached["a"] == "its input is not understood: scan is not followed"


def test_values_that_are_not_finite_or_too_many_end_as_reasons():
    params = {"a": normal(3, 4), "b": normal(4, 140_000), "c": normal(4), "bias": normal(140_000)}

    def apply(params, x):
        x = x @ params["a"]
        return (
            x @ params["b"] + params["bias"],
            jnp.log(x) @ params["c"] + 1,
            jnp.log(x) @ params["a"].T,
        )

    wiring = trace(apply, params, image(1, 3))
    [site] = wiring.sites
    assert site.targets == ("bias",)  # more outputs than distributions are kept for
    assert wiring.unreached == {"a": "a is used more than once"}
    wiring = trace(lambda p, x: jnp.log(x) @ p["a"] + p["c"], params, image(1, 3))
    assert wiring.unreached["a"] == "its input is not understood: moments that are not finite"


def test_a_bias_of_two_layers_or_that_is_quantized_is_not_changed():
    params = {"a": normal(4, 4), "b": normal(4, 4), "bias": normal(4)}

    def shared(params, x):
        x = jax.nn.relu(x @ params["a"] + params["bias"])
        return x @ params["b"] + params["bias"]

    wiring = trace(shared, params, image(1, 4))
    assert set(wiring.unreached.values()) == {"bias is used more than once"}

    def apply(params, x):
        return x @ params["a"] @ params["b"] + params["bias"]

    wiring = trace(apply, params, image(1, 4))
    qparams, _ = corrq_jax.quantize(params, bits=1, select=["a", "b", "bias"])
    matched, report = match_moments(wiring, params, qparams)
    assert matched["bias"] is qparams["bias"]
    assert report.unreached == {
        "a": "no normalization or bias after it",
        "b": "bias is quantized",
    }


def test_dtypes_and_kinds_of_arrays_stay():
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), trained_two_layers())
    wiring = trace(two_layers, params, jax.ShapeDtypeStruct((1, 32), jnp.bfloat16))
    matched, report = match_moments(wiring, params, changed(params))
    assert len(report.norms + report.biases) == 2
    for leaf in jax.tree.leaves(matched):
        assert isinstance(leaf, jax.Array)
        assert leaf.dtype == jnp.bfloat16


def test_wrong_arguments_are_refused():
    params = trained_two_layers()
    wiring = trace(two_layers, params, image(1, 32))
    norm = {k: v for k, v in params["norm"].items() if k != "beta"}
    with pytest.raises(InputError, match=r"qparams is not the tree .* norm/beta is missing"):
        match_moments(wiring, params, params | {"norm": norm})
    with pytest.raises(InputError, match=r"first/kernel has shape \(2, 2\) instead of \(32, 64\)"):
        match_moments(wiring, params | {"first": {"kernel": np.ones((2, 2))}}, params)
    with pytest.raises(InputError, match="do not broadcast"):
        trace(two_layers, params, image(1, 32), input_mean=np.zeros(3))
    with pytest.raises(InputError, match="not negative"):
        trace(two_layers, params, image(1, 32), input_variance=-1.0)
    with pytest.raises(InputError, match="outside of jit"):
        jax.jit(lambda p: trace(two_layers, p, image(1, 32)) and 0)(params)
    with pytest.raises(InputError, match="first/kernel: shape"):
        wiring.sites[0].output_moments(np.ones((2, 2)))
