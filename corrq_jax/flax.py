"""Flax networks: NNX modules and Linen variables, quantized and run with decoding inside jit."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from corrq_jax.errors import InputError, require
from corrq_jax.paths import flatten
from corrq_jax.report import Report
from corrq_jax.tree import dequantize as _dequantize_tree
from corrq_jax.tree import quantize as _quantize_tree


class _Leaf(NamedTuple):
    """What has to be known of a variable to put it back; hashable."""

    path: str
    shape: tuple[int, ...]
    key: Any  # the generator if it is a random key, whose plain data is then the parameter

    def restored(self, leaf: Any) -> Any:
        return leaf if self.key is None else jax.random.wrap_key_data(leaf, impl=self.key)


@dataclasses.dataclass(frozen=True)
class Apply:
    """An NNX module as a pure function ``apply(params, *args) -> outputs``; hashable.

    Two modules of one architecture give equal functions, so that a jitted evaluation step compiles
    once for all of them. Parameters are a plain nested dictionary; those that are quantized are
    decoded inside, so that under jit only packed codes stay in memory.
    """

    graphdef: Any
    treedef: Any
    leaves: tuple[_Leaf, ...]  # in the treedef's order

    def module(self, params: Any) -> Any:
        """The NNX module with these parameters, decoded.

        Raises:
            InputError: a path is missing or unknown, or a shape is another; by name, not by order.
        """
        found = dict(flatten(_dequantize_tree(params))[0])
        self._check(found)
        leaves = [leaf.restored(found[leaf.path]) for leaf in self.leaves]
        state = jax.tree_util.tree_unflatten(self.treedef, leaves)
        return require("flax.nnx", "flax").merge(self.graphdef, state)

    def _check(self, found: dict[str, Any]) -> None:
        shapes = {leaf.path: leaf.shape for leaf in self.leaves}
        wrong = {
            "missing": [path for path in shapes if path not in found],
            "unknown to it": [path for path in found if path not in shapes],
            "of another shape": [
                f"{path} {_shape(found[path])} instead of {shape}"
                for path, shape in shapes.items()
                if path in found and _shape(found[path]) != shape
            ],
        }
        if any(wrong.values()):
            what = "; ".join(f"{_some(paths)} {why}" for why, paths in wrong.items() if paths)
            raise InputError(f"the parameters are not this network's: {what}")

    def __call__(self, params: Any, *args: Any, **kwargs: Any) -> Any:
        """What the module returns for these arguments; its changes of state are dropped."""
        return self.module(params)(*args, **kwargs)


def _shape(leaf: Any) -> tuple[int, ...]:
    return tuple(getattr(leaf, "shape", ()))


def _some(paths: list[str], most: int = 5) -> str:
    return ", ".join(paths[:most]) + (", ..." if len(paths) > most else "")


def functional(model: Any) -> tuple[Apply, dict[str, Any]]:
    """Take an NNX module apart into a pure function and its parameters.

    Args:
        model: a `flax.nnx.Module`; it is not changed.

    Returns:
        The function, and all of the module's variables as a nested dictionary of plain arrays;
        random keys, of Dropout for instance, are there as their uint32 data.

    Raises:
        InputError: ``model`` is not an NNX module.
    """
    nnx = require("flax.nnx", "flax")
    if not isinstance(model, nnx.Module):
        raise InputError(f"functional: a flax.nnx.Module is needed, not a {type(model).__name__}")
    graphdef, state = nnx.split(model)
    leaves, treedef = jax.tree_util.tree_flatten(state)
    generators = [jax.random.key_impl(leaf) if _is_key(leaf) else None for leaf in leaves]
    plain = [jax.random.key_data(leaf) if _is_key(leaf) else leaf for leaf in leaves]
    numbered = jax.tree_util.tree_unflatten(treedef, range(len(leaves)))
    order = nnx.to_pure_dict(numbered)
    path_of = {i: path for path, i in flatten(order)[0]}
    known = [_Leaf(path_of[i], _shape(plain[i]), generators[i]) for i in range(len(leaves))]
    return Apply(graphdef, treedef, tuple(known)), jax.tree.map(plain.__getitem__, order)


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)


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
