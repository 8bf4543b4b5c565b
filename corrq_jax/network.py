"""What every framework's adapter shares: a network as a function of its parameters, quantized.

An adapter takes a model apart into ``apply(params, *inputs) -> outputs`` and a tree of parameters;
`quantize_network` quantizes the tree, and `QuantizedModel` holds the two together again;
`quantized_model` does both.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax

from corrq_jax import stacks
from corrq_jax.errors import InputError
from corrq_jax.moments import Wiring, trace
from corrq_jax.moments import match_moments as _match_moments
from corrq_jax.paths import flatten
from corrq_jax.report import Report
from corrq_jax.tree import dequantize, quantize


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True)
class QuantizedModel:
    """A model whose kernels are quantized: a pytree and a callable.

    Attributes:
        apply: the pure function, called as ``apply(params, *inputs)``; hashable.
        params: its parameters, a tree with `corrq_jax.QuantizedTensor` leaves.
    """

    apply: Any
    params: Any

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the model returns; under jit each kernel is decoded in its layer."""
        return self.apply(self.params, *args, **kwargs)

    def tree_flatten(self) -> tuple[tuple[Any], Any]:
        """Children and static part, for jax."""
        return (self.params,), self.apply

    @classmethod
    def tree_unflatten(cls, apply: Any, children: tuple[Any]) -> "QuantizedModel":
        """The inverse of `tree_flatten`."""
        return cls(apply, *children)


class Tracing(NamedTuple):
    """What a network is traced with, and what for.

    Attributes:
        example: like a batch of inputs, for `corrq_jax.moments.trace`; None: there is no trace.
        match_moments: None: if there is an example and a normalization to correct.
        input_mean: for `corrq_jax.moments.trace`.
        input_variance: likewise.
    """

    example: Any
    match_moments: bool | None
    input_mean: Any
    input_variance: Any


def quantized_model(
    parts: tuple[Any, Any], bits: Any, tracing: Tracing, options: Mapping[str, Any]
) -> tuple[QuantizedModel, Report]:
    """A model that was taken apart into a function and parameters, quantized.

    Args:
        parts: the pure function, hashable, and its parameters.
        bits: as for `quantize_network`, like all others.
        tracing: likewise.
        options: likewise.
    """
    apply, params = parts
    qparams, report = quantize_network(apply, params, bits, tracing, options)
    return QuantizedModel(apply, qparams), report


def quantize_network(
    apply: Callable[..., Any] | None,
    params: Any,
    bits: Any,
    tracing: Tracing,
    options: Mapping[str, Any],
    collection: str | None = None,
) -> tuple[Any, Report]:
    """Quantize the parameters of a network, with what its trace tells if there is an example.

    Args:
        apply: the network; needed with an example only.
        params: its parameters.
        bits: as for `corrq_jax.quantize`.
        tracing: the example, if there is one.
        options: of `corrq_jax.quantize`; with ``stacked``, of `corrq_jax.stacks.quantize`.
        collection: the key of the parameters that are quantized; all if None.

    Raises:
        InputError: as for `corrq_jax.quantize`, or moments are to be matched without an example.
    """
    example, match_moments, input_mean, input_variance = tracing
    if match_moments and example is None:
        raise InputError("match_moments=True needs an example of the inputs: give example=")
    wiring = None
    if example is not None:
        assert apply is not None
        wiring = trace(apply, params, example, input_mean, input_variance)
        options = {"importance": wiring.importance, **options}
    qparams, report = _quantize_collection(params, bits, dict(options), collection)
    if wiring is not None and _wants_matching(match_moments, wiring):
        qparams, matched = _match_moments(wiring, params, qparams)
        report = dataclasses.replace(report, matched=matched)
    return qparams, report


def _wants_matching(asked: bool | None, wiring: Wiring) -> bool:
    """By default where training left the moments behind; for biases they are only predicted."""
    return any(site.norm_mean for site in wiring.sites) if asked is None else asked


def _quantize_collection(
    params: Any, bits: Any, options: dict[str, Any], collection: str | None
) -> tuple[Any, Report]:
    """Quantize a tree, or what is under one of its keys."""
    if collection is None:
        stacked = options.pop("stacked", None)
        if stacked is None:
            return quantize(params, bits, **options)
        return stacks.quantize(params, bits, stacked=stacked, **options)
    rest = {key: value for key, value in params.items() if key != collection}
    inner = _restricted(options, f"{collection}/")
    quantized, report = _quantize_collection(params[collection], bits, inner, None)
    kind: Any = type(params)  # a FrozenDict stays one
    return kind({collection: quantized, **rest}), report


def _restricted(options: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Options with the importance of kernels below a prefix only, without it in their paths."""
    if not options.get("importance"):
        return options
    inner = {
        path.removeprefix(prefix): value
        for path, value in options["importance"].items()
        if path.startswith(prefix)
    }
    return {**options, "importance": inner}


def decoded_by_path(
    params: Any, shapes: Iterable[tuple[str, tuple[int, ...]]]
) -> dict[str, jax.Array]:
    """The decoded parameters by path.

    Args:
        params: a tree, some of whose leaves may be quantized.
        shapes: (path, shape) of all parameters of the network.

    Raises:
        InputError: a path is missing or unknown, or a shape is another; by name, not by order.
    """
    found, expected = dict(flatten(dequantize(params))[0]), dict(shapes)
    _check(found, expected)
    return found


def _check(found: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> None:
    wrong = {
        "missing": [path for path in shapes if path not in found],
        "unknown to it": [path for path in found if path not in shapes],
        "of another shape": [
            f"{path} {shape_of(found[path])} instead of {shape}"
            for path, shape in shapes.items()
            if path in found and shape_of(found[path]) != shape
        ],
    }
    if any(wrong.values()):
        what = "; ".join(f"{_some(paths)} {why}" for why, paths in wrong.items() if paths)
        raise InputError(f"the parameters are not this network's: {what}")


def shape_of(leaf: Any) -> tuple[int, ...]:
    """Shape of an array; () of what is none."""
    return tuple(getattr(leaf, "shape", ()))


def _some(paths: list[str], most: int = 5) -> str:
    return ", ".join(paths[:most]) + (", ..." if len(paths) > most else "")
