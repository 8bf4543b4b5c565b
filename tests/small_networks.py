"""Pieces of small networks for tests."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def image(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def conv(x, kernel, *, strides=(1, 1), padding="SAME", spec=("NHWC", "HWIO", "NHWC"), **options):
    return lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=spec, precision="highest", **options
    )


def changed(tree, scale=0.1, seed=1):
    """The tree with noise on what is of rank 2 or more."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: (
            x + scale * x.std() * rng.normal(size=x.shape).astype(x.dtype) if np.ndim(x) > 1 else x
        ),
        tree,
    )


def plain_norm(x, p):
    return (x - p["mean"]) / jnp.sqrt(p["var"] + 1e-5) * p["gamma"] + p["beta"]


def statistics(size):
    names = {"mean": normal(size), "gamma": normal(size), "beta": normal(size)}
    return names | {"var": normal(size) ** 2 + 0.1}
