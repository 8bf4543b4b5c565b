"""Values of an abstract interpretation: known arrays, and distributions at quadrature nodes.

What a parameter or a constant determines is `Known`. What depends on the network's input is a
`Signal`: a distribution for each channel, kept as its values at fixed nodes of a standard Gaussian,
so that a pointwise operation of any kind is applied to the values as it stands.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

NODES = 129
LARGEST = 2**24  # values of one signal, 128 MiB; only flattened ones come near it


class NotUnderstood(Exception):  # noqa: N818
    """Raised by a rule: the result is a signal of which nothing is known, with this reason."""


@dataclasses.dataclass(frozen=True, eq=False)
class Known:
    """A value that does not depend on the network's input.

    Attributes:
        value: the array.
        leaves: paths of the parameters that it was computed from.
        raw: path of the parameter whose values it holds, in their order, maybe repeated; or None.
        rebuild: the same computation with other parameters, from path to array.
    """

    value: Any
    leaves: frozenset[str] = frozenset()
    raw: str | None = None
    rebuild: Callable[[Mapping[str, Any]], Any] | None = None

    def rebuilt(self, parameters: Mapping[str, Any]) -> Any:
        """The value with these in place of the parameters of the same paths."""
        touched = self.rebuild is not None and not self.leaves.isdisjoint(parameters)
        return self.rebuild(parameters) if self.rebuild and touched else self.value


def parameter(path: str, value: Any) -> Known:
    """The parameter at a path."""
    return Known(value, frozenset([path]), path, lambda new: new.get(path, value))


@dataclasses.dataclass(frozen=True, eq=False)
class Signal:
    """Distributions of what depends on the network's input.

    Attributes:
        values: float64 (or bool, integer)[NODES, *axes] at the nodes; an axis is 1 where the
            distribution does not depend on it (batch and space), otherwise as long as the
            variable's. None if nothing is known.
        base: signals of equal base are functions of the same Gaussian; others are independent.
        origin: a note of who made it, for the caller's own rules; no rule here passes it on.
        reason: why nothing is known.
    """

    values: np.ndarray | None
    base: Any = dataclasses.field(default_factory=object)
    origin: Any = None
    reason: str = ""

    @property
    def nodes(self) -> np.ndarray:
        """The values.

        Raises:
            NotUnderstood: nothing is known, so that neither is what is made of it.
        """
        if self.values is None:
            raise NotUnderstood(self.reason)
        return self.values

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and variance, float64[*axes].

        Raises:
            NotUnderstood: nothing is known, or they are not finite.
        """
        nodes = self.nodes.astype(np.float64)
        mean = average(nodes)
        variance = average(np.square(nodes - mean))
        if not (np.isfinite(mean).all() and np.isfinite(variance).all()):
            raise NotUnderstood("moments that are not finite")
        return mean, variance


Value = Known | Signal


def _quadrature() -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights for a standard Gaussian: the trapezoidal rule, far into the tails.

    For smooth functions its error vanishes faster than any power of the step; at a kink it is of
    the order of the step squared.
    """
    nodes = np.linspace(-6, 6, NODES)
    weights = np.exp(-np.square(nodes) / 2)
    return nodes, weights / weights.sum()


STANDARD, WEIGHTS = _quadrature()


def average(values: np.ndarray) -> np.ndarray:
    """Expected values float64[*axes], from values[NODES or 1, *axes]."""
    return values[0].astype(np.float64) if len(values) == 1 else np.tensordot(WEIGHTS, values, 1)


def gaussian(mean: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """Values at the nodes of Gaussians with moments float64[*axes]."""
    mean, deviation = np.broadcast_arrays(mean, np.sqrt(variance))
    check_size((NODES, *mean.shape))
    return mean + deviation * STANDARD.reshape(-1, *[1] * mean.ndim)


def check_size(shape: Sequence[int]) -> None:
    """Raises `NotUnderstood` if a signal's values of this shape would take too much memory."""
    if math.prod(shape) > LARGEST:
        raise NotUnderstood("a distribution for each of too many positions")


def largest(nodes: np.ndarray, count: int) -> np.ndarray:
    """Values of the largest of ``count`` independent draws of each channel.

    If u is uniform and F the quantile function, the largest of n draws is F(u ** (1 / n)).

    >>> same = largest(STANDARD, 1)
    >>> bool(np.allclose(same, STANDARD))
    True
    """
    columns = nodes.reshape(len(nodes), -1).astype(np.float64)
    order = np.argsort(columns, axis=0, kind="stable")
    below = np.cumsum(WEIGHTS[order], axis=0) - WEIGHTS[order] / 2
    wanted = (np.cumsum(WEIGHTS) - WEIGHTS / 2) ** (1 / count)
    ordered = np.take_along_axis(columns, order, axis=0)
    found = [np.interp(wanted, *column) for column in zip(below.T, ordered.T, strict=True)]
    return np.stack(found, axis=1).reshape(nodes.shape)


def _select(which: Any, *cases: Any) -> Any:
    return np.choose(np.asarray(which, np.intp), np.broadcast_arrays(*cases))


def _convert(x: Any, *, new_dtype: Any, **_: Any) -> Any:
    """Rounding of distributions to another float type is left out; values change type."""
    wide = np.asarray(x).dtype == np.float64 and jnp.issubdtype(new_dtype, jnp.inexact)
    return x if wide else np.asarray(x).astype(new_dtype)


def _divide(x: Any, y: Any) -> Any:
    """Integers are divided as jax does, towards zero."""
    whole = np.result_type(x, y).kind in "iu"
    return np.trunc(x / y).astype(np.result_type(x, y)) if whole else x / y


def _same(x: Any) -> Any:
    return x


_NUMPY: dict[str, Callable[..., Any]] = {
    **{"add": np.add, "add_any": np.add, "sub": np.subtract, "mul": np.multiply},
    **{"div": _divide, "max": np.maximum, "min": np.minimum, "pow": np.power},
    **{"neg": np.negative, "abs": np.abs, "sign": np.sign, "square": np.square},
    **{"exp": np.exp, "exp2": np.exp2, "log": np.log, "log1p": np.log1p, "expm1": np.expm1},
    **{"sqrt": np.sqrt, "cbrt": np.cbrt, "tanh": np.tanh, "sin": np.sin, "cos": np.cos},
    **{"floor": np.floor, "ceil": np.ceil, "is_finite": np.isfinite},
    **{"eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal},
    **{"gt": np.greater, "ge": np.greater_equal},
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "logistic": lambda x: 1 / (1 + np.exp(-x)),
    "clamp": lambda low, x, high: np.minimum(np.maximum(x, low), high),
    "select_n": _select,
    **dict.fromkeys(("copy", "stop_gradient", "reduce_precision", "name"), _same),
    "sharding_constraint": _same,
}
_NUMPY_WITH_PARAMS: dict[str, Callable[..., Any]] = {
    "integer_pow": lambda x, *, y: np.power(x, y),
    "convert_element_type": _convert,
}
# Computed by jax itself, in its own precision.
_BOUND = {
    *("erf", "erfc", "erf_inv", "lgamma", "digamma", "tan", "asin", "acos", "atan", "atan2"),
    *("sinh", "cosh", "asinh", "acosh", "atanh", "round", "rem", "nextafter"),
    *("and", "or", "xor", "not"),
}
POINTWISE = _BOUND | _NUMPY.keys() | _NUMPY_WITH_PARAMS.keys()


def pointwise(eqn: Any) -> Callable[..., Any]:
    """The equation as a function of numpy arrays that are broadcast."""
    name = eqn.primitive.name
    if name in _NUMPY:
        return _NUMPY[name]
    if name in _NUMPY_WITH_PARAMS:
        return partial(_NUMPY_WITH_PARAMS[name], **eqn.params)
    return lambda *arrays: bind(eqn, np.broadcast_arrays(*arrays))[0]


def bind(eqn: Any, values: Iterable[Any]) -> list[Any]:
    """The equation's outputs for these arrays, computed by jax."""
    typed = [
        jnp.asarray(value, var.aval.dtype) for value, var in zip(values, eqn.invars, strict=True)
    ]
    found = eqn.primitive.bind(*typed, **eqn.params)
    return [as_numpy(one) for one in (found if eqn.primitive.multiple_results else [found])]


def as_numpy(array: Any) -> Any:
    """The array in numpy, but for random keys, which only jax has."""
    is_key = hasattr(array, "dtype") and jnp.issubdtype(array.dtype, jax.dtypes.extended)
    return array if is_key else np.asarray(array)
