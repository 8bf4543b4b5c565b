"""Output moments of single kernels: all that a convolution or a product can be.

Constant inputs show the mean exactly, and so, with squared weights, does the variance of
independent inputs.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from small_networks import conv, image, normal

from corrq_jax.moments import trace

LINEAR = {
    "same": (conv, (2, 7, 6, 4), (3, 3, 4, 5), {}),
    "strided": (conv, (1, 7, 6, 4), (5, 3, 4, 5), {"strides": (2, 3)}),
    "valid": (conv, (1, 7, 6, 4), (3, 3, 4, 5), {"padding": "VALID"}),
    "dilated": (conv, (1, 9, 9, 4), (3, 3, 4, 5), {"rhs_dilation": (2, 3)}),
    "grouped": (conv, (1, 5, 5, 4), (3, 3, 2, 6), {"feature_group_count": 2}),
    "depthwise": (conv, (1, 5, 5, 4), (3, 3, 1, 4), {"feature_group_count": 4}),
    "two a channel": (conv, (1, 5, 5, 4), (3, 3, 1, 8), {"feature_group_count": 4}),
    "transposed": (
        conv,
        (1, 5, 6, 4),
        (3, 3, 4, 5),
        {"lhs_dilation": (2, 2), "padding": ((1, 1), (0, 2))},
    ),
    "uneven": (conv, (1, 5, 6, 4), (3, 4, 4, 5), {"padding": ((2, 0), (1, 3))}),
    "one axis": (
        lambda x, k: conv(x, k, strides=(1,), spec=("NWC", "WIO", "NWC")),
        *((1, 9, 4), (3, 4, 5), {}),
    ),
    "dense": (jnp.matmul, (3, 4), (4, 5), {}),
    "kernel first": (lambda x, k: jnp.einsum("oi,bi->bo", k, x), (3, 4), (5, 4), {}),
    "heads": (lambda x, k: jnp.einsum("bti,ihd->bthd", x, k), (2, 3, 4), (4, 2, 5), {}),
    "a kernel a head": (lambda x, k: jnp.einsum("bhi,hio->bho", x, k), (2, 3, 4), (3, 4, 5), {}),
}


@pytest.mark.parametrize("name", LINEAR)
def test_output_moments_of_one_kernel(name):
    function, shape, kernel_shape, options = LINEAR[name]
    mean, variance = np.array([1.0, -2, 0.5, 3]), np.array([1.0, 4, 0.25, 2])
    kernel, other = normal(*kernel_shape), normal(*kernel_shape)

    def apply(params, x):
        return function(x, params["kernel"], **options)

    def constant(moments, weights):
        x = np.broadcast_to(moments, shape).astype(np.float32)
        y = np.asarray(function(x, weights, **options), np.float64)
        places = [a for a in range(y.ndim - 1) if not (name in PER_HEAD and a == y.ndim - 2)]
        return y.mean(tuple(places)).ravel()

    with jax.default_matmul_precision("highest"):
        wiring = trace(apply, {"kernel": kernel}, image(*shape), mean, variance)
        [site] = wiring.sites
        assert site.kernel == "kernel"
        assert wiring.unreached == {}
        for weights in (kernel, other):
            found = site.output_moments(weights)
            # float32 sums of up to 100 products of order one
            np.testing.assert_allclose(found[0], constant(mean, weights), atol=2e-4)
            np.testing.assert_allclose(found[1], constant(variance, weights**2), rtol=1e-4)


PER_HEAD = {"heads", "a kernel a head"}


def test_channels_may_be_first():
    def apply(params, x):
        return conv(x, params["kernel"], spec=("NCHW", "OIHW", "NCHW"), padding="VALID")

    mean = np.array([1.0, -2, 0.5])
    kernel = normal(5, 3, 3, 3)
    wiring = trace(apply, {"kernel": kernel}, image(1, 3, 8, 8), mean.reshape(3, 1, 1))
    np.testing.assert_allclose(wiring.sites[0].mean, mean, atol=1e-9)
    found = wiring.sites[0].output_moments(kernel)[0]
    np.testing.assert_allclose(found, np.einsum("oihw,i->o", kernel, mean), rtol=1e-5)


@pytest.mark.parametrize(
    "weights",
    [
        lambda k: k.astype(jnp.bfloat16).astype(jnp.float32),
        lambda k: (k - k.mean(0)) / k.std(0),
        lambda k: k.reshape(2, 2, 5).reshape(4, 5) * 2,
        lambda k: k[:, ::-1],
        lambda k: lax.platform_dependent(k, cpu=jnp.zeros_like, default=lambda x: x),
    ],
)
def test_kernels_may_be_computed_from_the_parameter(weights):
    kernel, other = normal(4, 5), normal(4, 5)
    wiring = trace(lambda p, x: x @ weights(p["k"]), {"k": kernel}, image(1, 4), 2.0)
    if len(jax.make_jaxpr(weights)(kernel).eqns) == 2:  # platform_index and cond: the default
        expected = 2 * other.sum(0)
    else:
        expected = 2 * np.asarray(weights(other)).sum(0)
    # Rounding to bfloat16 is not undone: 3 digits.
    np.testing.assert_allclose(wiring.sites[0].output_moments(other)[0], expected, atol=0.05)


# EfficientNet-Lite0
