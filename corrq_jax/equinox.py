"""Equinox modules, quantized and run with decoding inside jit.

Equinox modules are pytrees, so that `corrq_jax.quantize` takes them as they are; the result has
`corrq_jax.QuantizedTensor` in place of weights, and ``corrq_jax.dequantize(model)(x)`` runs it
under ``equinox.filter_jit``. What is here makes of them what the other adapters make: a pytree of
arrays alone, which is called like the module and passes through `jax.jit`; and it traces examples.
"""

import dataclasses
from typing import Any

import jax

from corrq_jax.errors import InputError, require
from corrq_jax.network import (
    QuantizedModel,
    Tracing,
    decoded_by_path,
    quantized_model,
    shape_of,
)
from corrq_jax.packed import packed
from corrq_jax.paths import flatten
from corrq_jax.report import Report

__all__ = ["Apply", "QuantizedModel", "dequantize", "functional", "quantize"]


@dataclasses.dataclass(frozen=True)
class Apply:
    """An Equinox module as a pure function ``apply(params, *args) -> outputs``; hashable.

    Parameters are the module with its arrays alone, as ``equinox.filter(module, is_array)`` makes
    it, or a nested dictionary of the same paths, as from a file. Two modules of one architecture
    give equal functions.

    Attributes:
        treedef: the structure of the arrays.
        shapes: path and shape of each array, in order.
        rest: what is not an array; None in place of arrays.
        all_leaves: the structure of the rest.
    """

    treedef: Any
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    rest: tuple[Any, ...]
    all_leaves: Any

    def module(self, params: Any) -> Any:
        """The module with these parameters, decoded.

        Raises:
            InputError: a path is missing or unknown, or a shape is another; by name, not by order.
        """
        found = decoded_by_path(params, self.shapes)
        arrays = [found[path] for path, _ in self.shapes]
        return require("equinox", "equinox").combine(
            jax.tree_util.tree_unflatten(self.treedef, arrays),
            jax.tree_util.tree_unflatten(self.all_leaves, self.rest),
        )

    def __call__(self, params: Any, *args: Any, **kwargs: Any) -> Any:
        """What the module returns; under jit each kernel is decoded in its layer."""

        def call(params: Any, *args: Any, **kwargs: Any) -> Any:
            return self.module(params)(*args, **kwargs)

        return packed(call)(params, *args, **kwargs)


def functional(model: Any) -> tuple[Apply, Any]:
    """Take an Equinox module apart into a pure function and its parameters.

    Args:
        model: an ``equinox.Module``; it is not changed.

    Raises:
        InputError: ``model`` is not an Equinox module.
    """
    eqx = require("equinox", "equinox")
    if not isinstance(model, eqx.Module):
        raise InputError(f"functional: an equinox.Module is needed, not a {type(model).__name__}")
    params, static = eqx.partition(model, eqx.is_array)
    entries, treedef = flatten(params)
    shapes = tuple((path, shape_of(leaf)) for path, leaf in entries)
    rest, all_leaves = jax.tree_util.tree_flatten(static, is_leaf=lambda leaf: leaf is None)
    return Apply(treedef, shapes, tuple(rest), all_leaves), params


def quantize(
    model: Any,
    bits: Any = None,
    *,
    example: Any = None,
    match_moments: bool | None = None,
    input_mean: Any = 0.0,
    input_variance: Any = 1.0,
    **options: Any,
) -> tuple[QuantizedModel, Report]:
    """Quantize an Equinox module.

    With an example of the inputs it is traced, not run: a target is then shared out by each
    kernel's importance, and biases take up the shift of means if that is asked for. The running
    statistics of Equinox's BatchNorm are kept outside of the module, and are not corrected.

    Args:
        model: an ``equinox.Module``, as for inference (``equinox.nn.inference_mode``).
        bits: as for `corrq_jax.quantize`, like all other options.
        example: an array or `jax.ShapeDtypeStruct` like the module's input, which in Equinox is
            usually one without an axis of a batch; or a tuple for several.
        match_moments: None: if there is an example and a normalization to correct.
        input_mean: of the inputs that the network was trained on, a number or one for each channel.
        input_variance: likewise.
        **options: all others of `corrq_jax.quantize`, and ``stacked`` of `corrq_jax.stacks`.

    Returns:
        A `QuantizedModel`, which is called like the module; and the report.

    Raises:
        InputError: as for `functional` and `corrq_jax.quantize`, or moments are to be matched
            without an example.

    >>> import equinox as eqx
    >>> model = eqx.nn.MLP(8, 4, width_size=16, depth=2, key=jax.random.key(0))
    >>> qmodel, report = quantize(model, bits=4)
    >>> [row.path for row in report]
    ['layers/0/weight', 'layers/1/weight', 'layers/2/weight']
    >>> jax.jit(lambda m, x: jax.vmap(m)(x))(qmodel, jax.numpy.ones((2, 8))).shape
    (2, 4)
    """
    tracing = Tracing(example, match_moments, input_mean, input_variance)
    return quantized_model(functional(model), bits, tracing, options)


def dequantize(model: QuantizedModel) -> Any:
    """The Equinox module with the decoded weights.

    >>> import equinox as eqx
    >>> qmodel, _ = quantize(eqx.nn.Linear(8, 4, key=jax.random.key(0)), bits=3)
    >>> dequantize(qmodel).weight.shape
    (4, 8)
    """
    return model.apply.module(model.params)
