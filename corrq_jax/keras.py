"""Keras 3 models on the JAX backend, quantized and called without side effects."""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import jax

from corrq_jax.errors import InputError, require
from corrq_jax.network import QuantizedModel, Tracing, decoded_by_path, quantized_model
from corrq_jax.packed import packed
from corrq_jax.report import Report
from corrq_jax.tensor import is_quantized

__all__ = ["Apply", "QuantizedModel", "assign", "dequantize", "functional", "quantize"]


@dataclasses.dataclass(frozen=True)
class Apply:
    """A Keras model as a pure function ``apply(params, *args) -> outputs``; hashable.

    Parameters are a nested dictionary of all the model's variables by their paths, the statistics
    of normalizations and the state of random generators included; those that are quantized are
    decoded inside: under jit each in its layer, so that only packed codes stay in memory.

    Attributes:
        model: the Keras model.
        shapes: path and shape of each variable, in order.
    """

    model: Any
    shapes: tuple[tuple[str, tuple[int, ...]], ...]

    def variables(self) -> Iterator[tuple[str, Any]]:
        """(path, variable) of all the model's variables."""
        return zip((path for path, _ in self.shapes), self.model.variables, strict=True)

    def __call__(self, params: Any, *args: Any, **kwargs: Any) -> Any:
        """What the model returns for these arguments; its changes of state are dropped.

        It is called as for inference, unless ``training=True`` is among the arguments.

        Raises:
            InputError: a path is missing or unknown, or a shape is another.
        """

        def call(params: Any, *args: Any, **kwargs: Any) -> Any:
            found = decoded_by_path(params, self.shapes)
            value_of = {id(variable): found[path] for path, variable in self.variables()}
            trainable = [value_of[id(variable)] for variable in self.model.trainable_variables]
            others = [value_of[id(variable)] for variable in self.model.non_trainable_variables]
            return self.model.stateless_call(trainable, others, *args, **kwargs)[0]

        return packed(call)(params, *args, **kwargs)


def functional(model: Any) -> tuple[Apply, dict[str, Any]]:
    """Take a Keras model apart into a pure function and its parameters.

    Args:
        model: a `keras.Model` or `keras.Layer`, built, on the JAX backend. It is not changed, and
            the function goes on using it: not its variables' values, but its layers.

    Returns:
        The function, and all variables as a nested dictionary of arrays, by Keras's own paths:
        "conv1/kernel" is ``params["conv1"]["kernel"]``. Where two variables have one path, the
        name of the second's layer gets a number: "dense#2/kernel". The arrays are copies: Keras's
        ``fit`` and ``predict`` donate those of the model, which are gone then.

    Raises:
        InputError: ``model`` is not one of Keras's, is not built, or Keras has another backend.
    """
    apply, params = _taken_apart(model)
    return apply, _own(params)


def _taken_apart(model: Any) -> tuple[Apply, dict[str, Any]]:
    """As `functional`, with the model's own arrays."""
    keras = require("keras", "keras")
    if not isinstance(model, keras.Layer):
        raise InputError(f"functional: a Keras model is needed, not a {type(model).__name__}")
    if keras.backend.backend() != "jax":
        raise InputError(
            f"Keras runs on {keras.backend.backend()}; set the environment variable "
            "KERAS_BACKEND=jax before keras is imported"
        )
    if not model.built:
        raise InputError(f"{model.name} has no variables yet; call it on a batch of inputs first")
    paths = _distinct(variable.path for variable in model.variables)
    shapes = (tuple(variable.shape) for variable in model.variables)
    apply = Apply(model, tuple(zip(paths, shapes, strict=True)))
    params: dict[str, Any] = {}
    for path, variable in apply.variables():
        _put(params, path, variable.value)
    return apply, params


def _own(tree: Any) -> Any:
    """A tree whose arrays are not the model's, which Keras donates; quantized ones never are."""

    def own(leaf: Any) -> Any:
        return leaf.copy() if isinstance(leaf, jax.Array) else leaf

    return jax.tree.map(own, tree, is_leaf=is_quantized)


def _distinct(paths: Iterable[str]) -> list[str]:
    """Paths, those that come again with a number; none leads through another.

    >>> _distinct(["a/kernel", "a/kernel", "b"])
    ['a/kernel', 'a#2/kernel', 'b']
    """
    leaves: dict[str, None] = {}
    inner: set[str] = set()
    for path in paths:
        new, number = path, 1
        while new in leaves or new in inner or not _above(new).isdisjoint(leaves):
            number += 1
            first, slash, rest = path.partition("/")
            new = f"{first}#{number}{slash}{rest}"
        leaves[new] = None
        inner |= _above(new)
    return list(leaves)


def _above(path: str) -> set[str]:
    keys = path.split("/")
    return {"/".join(keys[:n]) for n in range(1, len(keys))}


def _put(tree: dict[str, Any], path: str, value: Any) -> None:
    *parents, name = path.split("/")
    for key in parents:
        tree = tree.setdefault(key, {})
    tree[name] = value


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
    """Quantize a Keras model, which stays as it is.

    With an example of the inputs the network is traced, not run: a target is then shared out by
    each kernel's importance, and the normalizations take up the shift of means and variances that
    quantization brings about (`corrq_jax.moments`). No data is needed for either.

    Args:
        model: a `keras.Model` or `keras.Layer`, built, on the JAX backend.
        bits: as for `corrq_jax.quantize`, like all other options.
        example: an array or `jax.ShapeDtypeStruct` like a batch of inputs, or a tuple for several.
        match_moments: None: if there is an example and a normalization to correct.
        input_mean: of the inputs that the network was trained on, a number or one for each channel.
        input_variance: likewise.
        **options: all others of `corrq_jax.quantize`, such as ``grid`` or ``bits_per_weight``.

    Returns:
        A `QuantizedModel`, which is called like the model, as for inference; and the report.

    Raises:
        InputError: as for `functional` and `corrq_jax.quantize`, or moments are to be matched
            without an example.

    >>> import os
    >>> os.environ["KERAS_BACKEND"] = "jax"  # before keras is imported
    >>> import jax, keras
    >>> inputs = keras.Input((8,))
    >>> model = keras.Model(inputs, keras.layers.Dense(4, name="head")(inputs))
    >>> qmodel, report = quantize(model, bits=3)
    >>> [row.path for row in report]
    ['head/kernel']
    >>> jax.jit(lambda m, x: m(x))(qmodel, jax.numpy.ones((2, 8))).shape
    (2, 4)
    """
    tracing = Tracing(example, match_moments, input_mean, input_variance)
    qmodel, report = quantized_model(_taken_apart(model), bits, tracing, options)
    return dataclasses.replace(qmodel, params=_own(qmodel.params)), report


def assign(model: Any, params: Any) -> None:
    """Give a Keras model the values of a tree of parameters, decoded.

    What Keras itself does, such as ``evaluate`` and ``save``, then goes with the quantized weights.

    Args:
        model: with the variables that the parameters were taken from, or like ones.
        params: from `functional`, from a `QuantizedModel`, or from a file.

    Raises:
        InputError: as for `functional`, or a path is missing or unknown, or a shape is another; no
            variable has changed then.
    """
    apply, _ = _taken_apart(model)
    found = decoded_by_path(params, apply.shapes)
    for path, variable in apply.variables():
        variable.assign(_own(found[path]))


def dequantize(model: QuantizedModel) -> Any:
    """A new Keras model with the decoded weights.

    Raises:
        InputError: Keras cannot copy the model; `assign` can then fill one that you made.

    >>> import os
    >>> os.environ["KERAS_BACKEND"] = "jax"
    >>> import keras
    >>> inputs = keras.Input((8,))
    >>> model = keras.Model(inputs, keras.layers.Dense(4)(inputs))
    >>> decoded = dequantize(quantize(model, bits=3)[0])
    >>> decoded.compute_output_shape((2, 8))
    (2, 4)
    """
    apply = model.apply
    copy = _copy(apply.model)
    found = decoded_by_path(model.params, apply.shapes)
    for (path, _), variable in zip(apply.shapes, copy.variables, strict=True):
        variable.assign(_own(found[path]))
    return copy


def _copy(model: Any) -> Any:
    """A model of the same variables in the same order; layers may have other names."""
    instead = "make another one and fill it by corrq_jax.keras.assign"
    try:
        copy = require("keras", "keras").models.clone_model(model)
    except (NotImplementedError, TypeError, ValueError) as error:
        why = type(error).__name__
        raise InputError(f"Keras cannot copy {model.name}: {why}; {instead}") from error
    if [v.shape for v in copy.variables] != [v.shape for v in model.variables]:
        raise InputError(f"Keras's copy of {model.name} has other variables; {instead}")
    return copy
