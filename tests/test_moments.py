"""Wiring of networks, expected moments and their correction, against independent computations."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from flax import linen, nnx
from small_networks import image, normal, plain_norm, statistics

from corrq_jax import models
from corrq_jax.flax import functional
from corrq_jax.moments import match_moments, trace
from corrq_jax.paths import flatten


def variables_of(model, shape):
    """Variables of a Linen module, all ones: initializing it would compile a lot."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), image(*shape))
    return jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), shapes)


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


def last(params, x):
    return (
        plain_norm(jnp.sort(x, -1) @ params["k1"]["kernel"], params["k1"]["norm"])
        @ (params["k2"]["kernel"])
    )


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
