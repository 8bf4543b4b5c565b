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
