"""Where an array lies: its axes, and the axes of the mesh that they are shared out over."""

import math
from typing import Any

import jax
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec

from corrq_jax.core.shards import axes_of


def sharding_of(array: Any) -> NamedSharding | None:
    """The sharding of an array that lies on the devices of a mesh; None for all others.

    Within `jax.jit` it is known where the type tells it: on a mesh of explicit axes.
    """
    if isinstance(array, Tracer):
        sharding: Any = jax.typeof(array).sharding
        return sharding if names_in(sharding.spec) else None
    if not isinstance(array, jax.Array):
        return None
    sharding = array.sharding
    return sharding if isinstance(sharding, NamedSharding) and sharding.num_devices > 1 else None


def names_in(spec: PartitionSpec) -> set[str]:
    """The axes of a mesh that a sharding uses."""
    return {name for names in axes_of(spec, len(spec)) for name in names}


def blocks_of(sharding: NamedSharding, rank: int) -> tuple[int, ...] | None:
    """How many shards lie along each axis of an array; None if it is whole on every device.

    >>> mesh = jax.make_mesh((1, 1), ("x", "y"))
    >>> blocks_of(NamedSharding(mesh, PartitionSpec("x")), 2)
    (1, 1)
    """
    axes = axes_of(sharding.spec, rank)
    counts = tuple(math.prod(sharding.mesh.shape[name] for name in names) for names in axes)
    return counts if any(axes) else None
