"""Fills a network with arrays from elsewhere: all of them into all of its leaves, or one error."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from corrq_jax.errors import InputError

Path = tuple[str, ...]
ModuleT = TypeVar("ModuleT", bound=nnx.Module)


def unchanged(array: np.ndarray) -> np.ndarray:
    """For arrays that have Flax's layout already."""
    return array


def vector_length(array: Any, default: int = 1000) -> int:
    """The length of a vector; `default` for anything else, which is reported with the rest."""
    shape = np.shape(array) if array is not None else ()
    return shape[0] if len(shape) == 1 and shape[0] else default


class Source(NamedTuple):
    """Where a leaf's array comes from.

    Attributes:
        name: what users know it by, for messages.
        array: the array; None if it is missing.
        to_flax: brings it into Flax's layout; raises a ValueError where the shape does not allow.
    """

    name: str
    array: np.ndarray | None
    to_flax: Callable[[np.ndarray], np.ndarray] = unchanged


class OneKey:
    """Stands in for `nnx.Rngs` where only the shapes of a network are wanted: always the same key.

    Flax counts the keys it hands out, and within a trace looks at the sharding of each count. JAX
    answers by an error whose message it gathers from the whole trace so far: of a large network's
    shapes that is nine tenths of the time.
    """

    def __init__(self) -> None:
        self._key = jax.random.key(0)

    def params(self) -> jax.Array:
        """The key of a parameter."""
        return self._key


def fill(
    title: str,
    build: Callable[[], ModuleT],
    sources: Mapping[Path, Source],
    problems: Iterable[str] = (),
) -> ModuleT:
    """Builds a network whose every parameter and running average comes from `sources`.

    Args:
        title: what the arrays should be the weights of, for messages.
        build: makes the network; only its shapes are computed, no random weights.
        sources: for each path in the network, such as `("stem", "conv", "kernel")`, its array:
            float16, bfloat16 or float32.
        problems: what is known to be wrong already, such as arrays of no leaf; reported with the
            rest.

    Returns:
        The network, in float32.

    Raises:
        InputError: leaves and sources are not the same, or shapes or dtypes are wrong; the message
            lists every problem.
    """
    graph, state = nnx.split(nnx.eval_shape(build))
    wanted = _leaves(state)
    filled: dict[Path, jax.Array] = {}
    found = []
    for path in sorted(wanted.keys() | sources.keys()):
        if path not in sources:
            found.append(f"no array corresponds to {'.'.join(path)}")
            continue
        if path not in wanted:
            found.append(f"unknown: {sources[path].name}")
            continue
        problem, array = _convert(sources[path], wanted[path])
        if problem:
            found.append(problem)
        else:
            filled[path] = array
    found += problems
    if found:
        raise InputError(
            f"these are not the weights of {title}: {len(found)} problems. Give the weights "
            "of that network, whole and unchanged.\n  " + "\n  ".join(found)
        )
    nnx.replace_by_pure_dict(state, nnx.traversals.unflatten_mapping(filled))
    _check_filled(state, wanted)
    return nnx.merge(graph, state)


def fill_own(
    title: str, build: Callable[[int], ModuleT], arrays: Mapping[str, np.ndarray]
) -> ModuleT:
    """Builds a network from arrays under its own paths, such as "stem/conv/kernel".

    Args:
        title: the network's name, for messages.
        build: makes the network with a number of classes, which are those of the classifier.
        arrays: all that the network has, and no other.

    Raises:
        InputError: as `fill`.
    """
    classes = vector_length(arrays.get("classifier/bias"))
    sources = {tuple(name.split("/")): Source(name, array) for name, array in arrays.items()}
    return fill(title, lambda: build(classes), sources)


def _leaves(state: nnx.State) -> dict[Path, Any]:
    return {tuple(map(str, path)): leaf.get_value() for path, leaf in nnx.to_flat_state(state)}


def _convert(source: Source, leaf: jax.ShapeDtypeStruct) -> tuple[str, Any]:
    """What is wrong with an array, or nothing and the array for the leaf."""
    name, array = source.name, source.array
    if array is None:
        return f"missing: {name}", None
    if not (jnp.issubdtype(array.dtype, jnp.floating) and array.dtype.itemsize <= 4):
        return f"dtype of {name}: {array.dtype}; float16, bfloat16 or float32 is needed", None
    try:
        converted = source.to_flax(array)
    except ValueError:
        return f"shape of {name}: {array.shape} cannot be brought to {leaf.shape}", None
    if converted.shape != leaf.shape:
        made = converted.shape
        return f"shape of {name}: {array.shape} makes {made}, but {leaf.shape} is needed", None
    return "", jnp.asarray(np.ascontiguousarray(converted), jnp.float32)


def _check_filled(state: nnx.State, wanted: Mapping[Path, jax.ShapeDtypeStruct]) -> None:
    """Replacing by paths neither complains of a leaf left out nor of a shape: check each one."""
    for path, value in _leaves(state).items():
        want = wanted[path]
        if not isinstance(value, jax.Array) or (value.shape, value.dtype) != (
            want.shape,
            want.dtype,
        ):
            raise AssertionError(f"{'.'.join(path)} was not filled: {value}")
