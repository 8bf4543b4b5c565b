"""Weights and their density, in a batch of which it is the first, as searches take it."""

import jax
import jax.numpy as jnp
import numpy as np

from corrq_jax.core import density
from corrq_jax.menu import BATCH


def batched(w):
    """The batch, and float64 weights in normalized units."""
    w = jnp.asarray(w, jnp.float32)
    found, norm = density.density(w)
    return repeated(found), np.asarray(norm.apply(w), np.float64)


def repeated(tree):
    """Each array so often along a first axis."""
    return jax.tree.map(lambda a: jnp.stack([jnp.asarray(a)] * BATCH), tree)


def noise(x, levels, index):
    """The share of the variance that levels leave of weights."""
    return ((x - levels[np.asarray(index)]) ** 2).mean() / x.var()
