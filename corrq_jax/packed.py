"""Quantized networks run with packed weights: each kernel is decoded where it is used.

Decoding a whole tree inside jit leaves the compiler free to decode all of it first, and on a CPU
XLA does: the float network is in memory after all. Here the function is traced with float kernels,
and its equations are then evaluated one by one. What follows from parameters alone is put off until
an equation needs it beside data, which is what follows from the inputs. There the codes are tied to
these data: a kernel cannot be decoded before its layer's input is there, and only this layer needs
it.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from corrq_jax.paths import flatten
from corrq_jax.tensor import QuantizedTensor, is_quantized
from corrq_jax.tree import dequantize


def packed(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of parameters that takes quantized ones and decodes each where it is used.

    The outputs are those of ``function(corrq_jax.dequantize(params), ...)``. Under jit, beside the
    packed codes, only the kernel of the layer under way is in memory; a kernel that is used twice
    is decoded twice. Outside of jit all are decoded first.

    Args:
        function: of a tree of parameters and whatever else, such as `flax.linen.Module.apply`. It
            has to return arrays, or a tree of them.

    Returns:
        The function of a tree with `QuantizedTensor` leaves, to be called inside jit.

    >>> import jax.numpy as jnp, numpy as np, corrq_jax as corrq
    >>> w = np.random.default_rng(0).normal(size=(64, 32)).astype(np.float32)
    >>> qparams, _ = corrq.quantize({"kernel": w}, bits=4)
    >>> step = jax.jit(corrq.packed(lambda params, x: x @ params["kernel"]))
    >>> step(qparams, jnp.ones((2, 64))).shape
    (2, 32)
    """

    @functools.wraps(function)
    def run(params: Any, *args: Any, **kwargs: Any) -> Any:
        entries, treedef = flatten(params)
        leaves = [leaf for _, leaf in entries]
        if not any(map(is_quantized, leaves)):
            return function(params, *args, **kwargs)
        traced = any(isinstance(x, Tracer) for x in jax.tree.leaves((params, args, kwargs)))
        if not traced:
            return function(dequantize(params), *args, **kwargs)
        return _late(function, leaves, treedef, (args, kwargs))

    return run


def _late(function: Callable[..., Any], params: list[Any], treedef: Any, inputs: Any) -> Any:
    """Trace, then evaluate. Inputs that are not arrays are static."""
    leaves, structure = jax.tree.flatten(inputs)
    arrays = {i: leaf for i, leaf in enumerate(leaves) if isinstance(leaf, jax.Array)}

    def flat(params: list[Any], arrays: dict[int, Any]) -> Any:
        args, kwargs = jax.tree.unflatten(
            structure, [arrays.get(i, leaf) for i, leaf in enumerate(leaves)]
        )
        return function(jax.tree.unflatten(treedef, params), *args, **kwargs)

    shapes = [jax.eval_shape(dequantize, leaf) for leaf in params]
    closed, out = jax.make_jaxpr(flat, return_shape=True)(shapes, arrays)
    values = [*map(_leaf, params), *arrays.values()]
    found = _run(closed.jaxpr, closed.consts, values)
    return jax.tree.unflatten(jax.tree.structure(out), _beside(found))


@dataclasses.dataclass(frozen=True, eq=False)
class _Late:
    """A value that follows from parameters and constants alone, computed where it is needed.

    Attributes:
        kernels: the quantized tensors that it follows from, by identity.
        compute: its value; the argument has what was computed for the layer under way, decoded
            kernels among it.
    """

    kernels: dict[int, QuantizedTensor]
    compute: Callable[[dict[Any, Any]], Any]


def _leaf(value: Any) -> _Late:
    """A parameter or a constant."""
    if is_quantized(value):
        return _Late({id(value): value}, lambda layer: layer[id(value)])
    return _Late({}, lambda layer: value)


def _run(jaxpr: Any, consts: Sequence[Any], values: Sequence[Any]) -> list[Any]:
    """Outputs of a jaxpr; each value is `_Late`, or an array that follows from the inputs."""
    env = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*map(_leaf, consts), *values), strict=True))

    def read(var: Any) -> Any:
        return _leaf(var.val) if hasattr(var, "val") else env[var]

    for eqn in jaxpr.eqns:
        env.update(zip(eqn.outvars, _equation(eqn, list(map(read, eqn.invars))), strict=True))
    return list(map(read, jaxpr.outvars))


def _equation(eqn: Any, inputs: list[Any]) -> Sequence[Any]:
    late = [isinstance(value, _Late) for value in inputs]
    if all(late) and not eqn.effects:
        return _put_off(eqn, inputs)
    if eqn.primitive.name in ("jit", "pjit") and any(late):
        closed = eqn.params["jaxpr"]
        return _run(closed.jaxpr, closed.consts, inputs)
    return _bind(eqn, _beside(inputs))


def _put_off(eqn: Any, inputs: list[_Late]) -> list[_Late]:
    kernels = {key: value for one in inputs for key, value in one.kernels.items()}
    lasting: dict[Any, Any] = {}  # what follows from no kernel is computed once
    key = object()

    def outputs(layer: dict[Any, Any]) -> Sequence[Any]:
        known = layer if kernels else lasting
        if key not in known:
            known[key] = _bind(eqn, [value.compute(layer) for value in inputs])
        return known[key]

    def output(i: int) -> _Late:
        return _Late(kernels, lambda layer: outputs(layer)[i])

    return [output(i) for i in range(len(eqn.outvars))]


def _beside(values: Sequence[Any]) -> list[Any]:
    """Arrays for all values, kernels being decoded when the data among the values are there."""
    kernels: dict[int, QuantizedTensor] = {}
    for value in values:
        kernels |= value.kernels if isinstance(value, _Late) else {}
    data = [value for value in values if not isinstance(value, _Late)]
    layer: dict[Any, Any] = {}
    if kernels:
        codes, data = _after([kernel.codes for kernel in kernels.values()], data)
        for (key, kernel), after in zip(kernels.items(), codes, strict=True):
            layer[key] = dataclasses.replace(kernel, codes=after).dequantize()
    rest = iter(data)
    return [v.compute(layer) if isinstance(v, _Late) else next(rest) for v in values]


def _after(codes: Sequence[Any], data: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any]]:
    """The same codes and data, where no code can be read before the data are there."""
    return jax.lax.platform_dependent(
        codes, data, cpu=_after_by_value, default=lambda *both: jax.lax.optimization_barrier(both)
    )


def _after_by_value(codes: Sequence[Any], data: Sequence[Any]) -> Any:
    """On a CPU, XLA drops barriers before it orders the work: codes are computed from data."""
    for x in data:
        if x.size and not jnp.issubdtype(x.dtype, jax.dtypes.extended):
            one = jax.lax.stop_gradient(jnp.real(x).reshape(-1)[0]).astype(jnp.int32)
            return [_unchanged(each, one) for each in codes], data
    return codes, data


@jax.custom_batching.custom_vmap
def _unchanged(codes: jax.Array, one: jax.Array) -> jax.Array:
    """The codes, of which the compiler does not know it: ``one | 1`` is never 0."""
    return codes ^ ((one | 1) == 0).astype(codes.dtype)


@_unchanged.def_vmap
def _unchanged_in_batch(size: int, batched: list[bool], codes: jax.Array, one: jax.Array) -> Any:
    """Any one of a batch of data will do: codes that are not batched stay so."""
    if not batched[0]:
        return _unchanged(codes, one[0]), False
    return jax.vmap(_unchanged.fun, (0, 0 if batched[1] else None))(codes, one), True


def _bind(eqn: Any, values: Sequence[Any]) -> Sequence[Any]:
    found = eqn.primitive.get_bind_params(eqn.params)
    functions, params = found if isinstance(found, tuple) else ((), found)  # up to jax 0.10
    with eqn.ctx.manager:
        outputs = eqn.primitive.bind(*functions, *values, **params)
    return outputs if eqn.primitive.multiple_results else [outputs]
