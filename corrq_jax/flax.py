"""Flax networks: NNX modules and Linen variables, quantized and run with decoding inside jit."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from corrq_jax.errors import InputError, require
from corrq_jax.report import Report
from corrq_jax.tree import dequantize as _dequantize_tree
from corrq_jax.tree import quantize as _quantize_tree


@dataclasses.dataclass(frozen=True)
class Apply:
    """An NNX module as a pure function ``apply(params, *args) -> outputs``; hashable.

    Two modules of one architecture give equal functions, so that a jitted evaluation step compiles
    once for all of them. Parameters are a plain nested dictionary; those that are quantized are
    decoded inside, so that under jit only packed codes stay in memory.
    """

    graphdef: Any
    treedef: Any
    leaves: tuple[tuple[Any, ...], ...]

    def module(self, params: Any) -> Any:
        """The NNX module with these parameters, decoded."""
        found = _flat(_dequantize_tree(params), ())
        if found.keys() != set(self.leaves):
            missing = ["/".join(map(str, p)) for p in self.leaves if p not in found]
            extra = ["/".join(map(str, p)) for p in found.keys() - set(self.leaves)]
            raise InputError(
                f"the parameters are not this network's: {missing[:5]} are missing and "
                f"{extra[:5]} are unknown to it"
            )
        state = jax.tree_util.tree_unflatten(self.treedef, [found[p] for p in self.leaves])
        return require("flax.nnx", "flax").merge(self.graphdef, state)

    def __call__(self, params: Any, *args: Any, **kwargs: Any) -> Any:
        """What the module returns for these arguments; its changes of state are dropped."""
        return self.module(params)(*args, **kwargs)


def _flat(node: Any, keys: tuple[Any, ...]) -> dict[tuple[Any, ...], Any]:
    if not isinstance(node, Mapping):
        return {keys: node}
    return {
        path: leaf
        for key, child in node.items()
        for path, leaf in _flat(child, (*keys, key)).items()
    }


def functional(model: Any) -> tuple[Apply, dict[str, Any]]:
    """Take an NNX module apart into a pure function and its parameters.

    Args:
        model: a `flax.nnx.Module`; it is not changed.

    Returns:
        The function, and all of the module's variables as a nested dictionary of arrays.

    Raises:
        InputError: ``model`` is not an NNX module.
    """
    nnx = require("flax.nnx", "flax")
    if not isinstance(model, nnx.Module):
        raise InputError(f"functional: a flax.nnx.Module is needed, not a {type(model).__name__}")
    graphdef, state = nnx.split(model)
    params = nnx.to_pure_dict(state)
    at = {id(leaf): path for path, leaf in _flat(params, ()).items()}
    leaves, treedef = jax.tree_util.tree_flatten(state)
    return Apply(graphdef, treedef, tuple(at[id(leaf)] for leaf in leaves)), params


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True)
class QuantizedModel:
    """An NNX module whose kernels are quantized: a pytree and a callable.

    Attributes:
        apply: the pure function.
        params: its parameters, a nested dictionary with `corrq_jax.QuantizedTensor` leaves.
    """

    apply: Apply
    params: Any

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the module returns; under jit the kernels are decoded inside."""
        return self.apply(self.params, *args, **kwargs)

    def tree_flatten(self) -> tuple[tuple[Any], Apply]:
        """Children and static part, for jax."""
        return (self.params,), self.apply

    @classmethod
    def tree_unflatten(cls, apply: Apply, children: tuple[Any]) -> "QuantizedModel":
        """The inverse of `tree_flatten`."""
        return cls(apply, *children)


def quantize(model: Any, bits: Any = 4, **options: Any) -> tuple[Any, Report]:
    """Quantize an NNX module or Linen variables.

    Args:
        model: a `flax.nnx.Module`; or Linen's ``variables`` (a mapping with the collection
            "params", of which only that one is quantized), or its parameters alone.
        bits: as for `corrq_jax.quantize`, like all other options.
        **options: ``grid``, ``fit``, ``levels``, ``zero``, ``select``, ``config``, ``progress``.

    Returns:
        For a module a `QuantizedModel`, which is called like it; for Linen the same mapping with
        `corrq_jax.QuantizedTensor` leaves, to be passed to `corrq_jax.dequantize` inside the jitted
        step. And the report.

    Raises:
        InputError: as for `corrq_jax.quantize`, or ``model`` is neither.

    >>> import jax, jax.numpy as jnp
    >>> from flax import nnx
    >>> model = nnx.Linear(8, 4, rngs=nnx.Rngs(0))
    >>> qmodel, report = quantize(model, bits=3)
    >>> jax.jit(lambda m, x: m(x))(qmodel, jnp.ones((2, 8))).shape
    (2, 4)
    """
    if isinstance(model, Mapping):
        if "params" not in model:
            return _quantize_tree(model, bits, **options)
        rest = {key: value for key, value in model.items() if key != "params"}
        params, report = _quantize_tree(model["params"], bits, **options)
        kind: Any = type(model)  # a FrozenDict stays one
        return kind({"params": params, **rest}), report
    apply, params = functional(model)
    qparams, report = _quantize_tree(params, bits, **options)
    return QuantizedModel(apply, qparams), report


def dequantize(model: Any) -> Any:
    """The float module of a `QuantizedModel`, or Linen variables with arrays for all leaves.

    >>> from flax import nnx
    >>> qmodel, _ = quantize(nnx.Linear(8, 4, rngs=nnx.Rngs(0)), bits=3)
    >>> type(dequantize(qmodel)).__name__
    'Linear'
    """
    if isinstance(model, QuantizedModel):
        return model.apply.module(model.params)
    return _dequantize_tree(model)
