"""What `match_moments` corrects, what it leaves alone, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from small_networks import changed, conv, image, normal, plain_norm, statistics

import corrq_jax
from corrq_jax.errors import InputError
from corrq_jax.moments import match_moments, trace


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


def divided_first(x, p, mean=True, again=False):
    """A normalization as Keras's: one factor, then one shift."""
    factor = lax.rsqrt(p["var"] + 1e-5) * p["gamma"]
    shift = p["beta"] - p["mean"] * factor if mean else p["beta"] - factor
    return x * factor + shift + (x * p["var"] if again else 0)


@pytest.mark.parametrize("last", [{}, {"mean": False}, {"again": True}])
def test_a_normalization_may_divide_first(last):
    params = trained_two_layers()

    def apply(norm, params, x):
        x = jax.nn.relu(norm(x @ params["first"]["kernel"], params["norm"]))
        return x @ params["second"]["kernel"] + params["second"]["bias"]

    norms = (plain_norm, lambda x, p: divided_first(x, p, **last))
    plain, divided = (
        trace(lambda p, x, norm=norm: apply(norm, p, x), params, image(1, 32), input_mean=0.5)
        for norm in norms
    )
    if last:  # it is no normalization, or its variance has another use
        assert not any(site.norm_mean for site in divided.sites)
        return
    other = changed(params)
    (wanted, report), (found, same) = (match_moments(w, params, other) for w in (plain, divided))
    assert report == same
    # The sums are the same but for the order, in float64; the results are float32.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, wanted)
    for site, expected in zip(divided.sites, plain.sites, strict=True):
        # Factor and shift are float32, and what relu leaves of a channel may be little.
        np.testing.assert_allclose(site.mean, expected.mean, rtol=1e-4, atol=1e-8)
        np.testing.assert_allclose(site.variance, expected.variance, rtol=1e-4, atol=1e-8)
