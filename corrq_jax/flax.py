"""Flax networks: NNX modules and Linen variables, quantized and run with decoding inside jit."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from corrq_jax.errors import InputError, require
from corrq_jax.network import (
    QuantizedModel,
    Tracing,
    decoded_by_path,
    quantize_network,
    quantized_model,
    shape_of,
)
from corrq_jax.packed import packed
from corrq_jax.paths import flatten
from corrq_jax.report import Report
from corrq_jax.tree import dequantize as _dequantize_tree

__all__ = ["Apply", "QuantizedModel", "dequantize", "functional", "quantize"]


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

    Attributes:
        graphdef: the module without its variables.
        treedef: the structure of its state.
        leaves: what has to be known of each variable, in the structure's order.
    """

    graphdef: Any
    treedef: Any
    leaves: tuple[_Leaf, ...]  # in the treedef's order

    def module(self, params: Any) -> Any:
        """The NNX module with these parameters, decoded.

        Raises:
            InputError: a path is missing or unknown, or a shape is another; by name, not by order.
        """
        shapes = ((leaf.path, leaf.shape) for leaf in self.leaves)
        found = decoded_by_path(params, shapes)
        leaves = [leaf.restored(found[leaf.path]) for leaf in self.leaves]
        state = jax.tree_util.tree_unflatten(self.treedef, leaves)
        return require("flax.nnx", "flax").merge(self.graphdef, state)

    def __call__(self, params: Any, *args: Any, **kwargs: Any) -> Any:
        """What the module returns for these arguments; its changes of state are dropped."""

        def call(params: Any, *args: Any, **kwargs: Any) -> Any:
            return self.module(params)(*args, **kwargs)

        return packed(call)(params, *args, **kwargs)


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
    known = [_Leaf(path_of[i], shape_of(plain[i]), generators[i]) for i in range(len(leaves))]
    return Apply(graphdef, treedef, tuple(known)), jax.tree.map(plain.__getitem__, order)


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def quantize(
    model: Any,
    bits: Any = None,
    *,
    example: Any = None,
    apply: Callable[..., Any] | None = None,
    match_moments: bool | None = None,
    input_mean: Any = 0.0,
    input_variance: Any = 1.0,
    **options: Any,
) -> tuple[Any, Report]:
    """Quantize an NNX module or Linen variables.

    With an example of the inputs the network is traced, not run: a target is then shared out by
    each kernel's importance, and the normalizations take up the shift of means and variances that
    quantization brings about (`corrq_jax.moments`). No data is needed for either.

    Args:
        model: a `flax.nnx.Module`; or Linen's ``variables`` (a mapping with the collection
            "params", of which only that one is quantized), or its parameters alone.
        bits: as for `corrq_jax.quantize`, like all other options.
        example: an array or `jax.ShapeDtypeStruct` like a batch of inputs, or a tuple for several.
        apply: with Linen and ``example``: the function of variables and inputs, ``model.apply``.
        match_moments: None: if there is an example and a normalization to correct.
        input_mean: of the inputs that the network was trained on, a number or one for each channel.
        input_variance: likewise.
        **options: ``grid``, ``fit``, ``levels``, ``zero``, ``select``, ``coding``, ``granularity``,
            ``axes``, ``bits_per_weight``, ``max_bytes``, ``mean_correlation``, ``min_correlation``,
            ``importance``, ``config``, ``progress``; and ``stacked``, path patterns of scanned
            layers, each of which then gets levels of its own (`corrq_jax.stacks`).

    Returns:
        For a module a `QuantizedModel`, which is called like it; for Linen the same mapping with
        `corrq_jax.QuantizedTensor` leaves, to be passed to `corrq_jax.dequantize` inside the jitted
        step. And the report, whose ``matched`` says what was corrected.

    Raises:
        InputError: as for `corrq_jax.quantize`, or ``model`` is neither, or moments are to be
            matched without an example.

    >>> import jax, jax.numpy as jnp
    >>> from flax import nnx
    >>> model = nnx.Linear(8, 4, rngs=nnx.Rngs(0))
    >>> qmodel, report = quantize(model, bits=3)
    >>> jax.jit(lambda m, x: m(x))(qmodel, jnp.ones((2, 8))).shape
    (2, 4)
    """
    is_linen = isinstance(model, Mapping)
    if is_linen and example is not None and apply is None:
        raise InputError("an example with Linen variables needs apply=, such as model.apply")
    tracing = Tracing(example, match_moments, input_mean, input_variance)
    if not is_linen:
        return quantized_model(functional(model), bits, tracing, options)
    collection = "params" if "params" in model else None
    return quantize_network(apply, model, bits, tracing, options, collection)


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
