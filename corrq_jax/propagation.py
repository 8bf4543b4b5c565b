"""How distributions move through a traced computation: a rule for each primitive.

`RULES` has one for each primitive that rearranges, adds or selects, and one for all pointwise ones;
a rule raises `NotUnderstood` for what it cannot follow. Independence is the approximation behind
them: signals that are not functions of the same Gaussian count as independent, and so do the places
that are added up or compared. Places in the window of an average pooling are the exception: they
count as equal.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from corrq_jax.signals import (
    POINTWISE,
    STANDARD,
    WEIGHTS,
    Known,
    NotUnderstood,
    Signal,
    Value,
    average,
    check_size,
    gaussian,
    largest,
    pointwise,
)

Rule = Callable[..., Signal | list[Signal]]  # (equation, *inputs)


def nodewise(eqn: Any, *inputs: Value) -> Signal:
    """A pointwise operation on the values at the nodes."""
    signals = [value for value in inputs if isinstance(value, Signal)]
    arrays = _operands(eqn, inputs)
    check_size(np.broadcast_shapes(*(np.shape(array) for array in arrays)))
    base = signals[0].base
    first = [isinstance(value, Signal) and value.base == base for value in inputs]
    if sum(first) == len(signals):
        values = np.asarray(pointwise(eqn)(*arrays))
        return Signal(values.astype(np.float64) if values.dtype.kind == "f" else values, base)
    if len({signal.base for signal in signals}) > 2:
        raise NotUnderstood(f"{eqn.primitive.name} of more than two independent signals")
    return Signal(_of_independent(pointwise(eqn), arrays, first))


def _of_independent(
    function: Callable[..., Any], arrays: Sequence[Any], first: Sequence[bool]
) -> np.ndarray:
    """A Gaussian with the moments of a function of two independent signals.

    Every node of the first signal meets all nodes of the second, so that sums and products have
    the moments that theory gives.
    """
    mean, square = np.zeros(()), np.zeros(())
    for i, weight in enumerate(WEIGHTS):
        at = [array[i : i + 1] if one else array for array, one in zip(arrays, first, strict=True)]
        values = np.asarray(function(*at), np.float64)
        mean = mean + weight * average(values)
        square = square + weight * average(np.square(values))
    return gaussian(mean, np.maximum(square - np.square(mean), 0))


def _operands(eqn: Any, inputs: Sequence[Value]) -> list[Any]:
    """Arrays with the axis of nodes first, which broadcast against each other."""
    rank = eqn.outvars[0].aval.ndim
    long, channels = set(), set()  # axes along which signals have positions, and distributions
    for value, var in zip(inputs, eqn.invars, strict=True):
        if isinstance(value, Signal):
            long |= {axis for axis, size in enumerate(var.aval.shape) if size > 1}
            channels |= {axis for axis, size in enumerate(value.nodes.shape[1:]) if size > 1}
    operands = []
    for value in inputs:
        if isinstance(value, Known):
            array = _typical(eqn, np.asarray(value.value), sorted(long - channels))[None]
        else:
            array = value.nodes
        operands.append(array.reshape(len(array), *[1] * (rank + 1 - array.ndim), *array.shape[1:]))
    return operands


def _typical(eqn: Any, array: np.ndarray, axes: Sequence[int]) -> np.ndarray:
    """One value for all positions: of terms the mean, of factors the median, which skips borders.

    Raises:
        NotUnderstood: it differs from position to position and is neither.
    """
    axes = tuple(axis for axis in axes if axis < array.ndim and array.shape[axis] > 1)
    if not axes:
        return array
    lowest = array.min(axis=axes, keepdims=True)
    if np.array_equal(lowest, array.max(axis=axes, keepdims=True)):
        return lowest
    match eqn.primitive.name:
        case "add" | "sub":
            return array.mean(axis=axes, keepdims=True, dtype=np.float64)
        case "mul" | "div":
            return np.median(array.astype(np.float64), axis=axes, keepdims=True)
    raise NotUnderstood(f"{eqn.primitive.name} with values that differ between positions")


# Rearrangements -----------------------------------------------------------------------------------


def _moved(eqn: Any, signal: Signal, nodes: np.ndarray, part: int = 0) -> Signal:
    """Equal rearrangements of one signal keep a common base; different ones are independent."""
    return Signal(nodes, (signal.base, eqn.primitive.name, str(eqn.params), part))


def _reshape(eqn: Any, signal: Signal) -> Signal:
    """Axes that are merged or split become as long as they are, if one of them had channels."""
    nodes = signal.nodes
    if eqn.primitive.name == "reshape" and eqn.params["dimensions"] is not None:
        raise NotUnderstood("reshape in another order of axes")
    old, new = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    full, result = [len(nodes)], [len(nodes)]
    for before, after in _groups(old, new):
        channels = any(size > 1 for size in nodes.shape[1:][before])
        full += old[before] if channels else [1] * len(old[before])
        result += new[after] if channels else [1] * len(new[after])
    check_size(full)
    return _moved(eqn, signal, np.broadcast_to(nodes, full).reshape(result))


def _groups(old: Sequence[int], new: Sequence[int]) -> Iterator[tuple[slice, slice]]:
    """Smallest runs of axes of two shapes that hold the same elements.

    >>> list(_groups((2, 3, 4), (6, 4)))
    [(slice(0, 2, None), slice(0, 1, None)), (slice(2, 3, None), slice(1, 2, None))]
    """
    if 0 in old:
        raise NotUnderstood("an empty array")
    i = j = 0
    while i < len(old) or j < len(new):
        before, after = slice(i, min(i + 1, len(old))), slice(j, min(j + 1, len(new)))
        while (a := math.prod(old[before])) != (b := math.prod(new[after])):
            before = slice(i, before.stop + (a < b))
            after = slice(j, after.stop + (a > b))
        yield before, after
        i, j = before.stop, after.stop


def _broadcast_in_dim(eqn: Any, signal: Signal) -> Signal:
    shape = [1] * len(eqn.params["shape"])
    for size, axis in zip(signal.nodes.shape[1:], eqn.params["broadcast_dimensions"], strict=True):
        shape[axis] = size
    return _moved(eqn, signal, signal.nodes.reshape(len(signal.nodes), *shape))


def _transpose(eqn: Any, signal: Signal) -> Signal:
    axes = [axis + 1 for axis in eqn.params["permutation"]]
    return _moved(eqn, signal, signal.nodes.transpose(0, *axes))


def _slice(eqn: Any, signal: Signal) -> Signal:
    starts, stops = eqn.params["start_indices"], eqn.params["limit_indices"]
    strides = eqn.params["strides"] or [1] * len(starts)
    cut = [slice(*bounds) for bounds in zip(starts, stops, strides, strict=True)]
    return _moved(eqn, signal, _cut(signal.nodes, cut))


def _split(eqn: Any, signal: Signal) -> list[Signal]:
    axis, ends = eqn.params["axis"], np.cumsum(eqn.params["sizes"])
    parts = []
    for part, (end, size) in enumerate(zip(ends, eqn.params["sizes"], strict=True)):
        cut = [slice(None)] * axis + [slice(end - size, end)]
        parts.append(_moved(eqn, signal, _cut(signal.nodes, cut), part))
    return parts


def _cut(nodes: np.ndarray, cut: Sequence[slice]) -> np.ndarray:
    """Slices along axes of channels; positions are all alike."""
    sizes = nodes.shape[1:]
    kept = [one if size > 1 else slice(None) for one, size in zip(cut, sizes, strict=False)]
    return nodes[(slice(None), *kept)]


def _rev(eqn: Any, signal: Signal) -> Signal:
    return _moved(
        eqn, signal, np.flip(signal.nodes, tuple(d + 1 for d in eqn.params["dimensions"]))
    )


def _tile(eqn: Any, signal: Signal) -> Signal:
    sizes = signal.nodes.shape[1:]
    reps = [rep if size > 1 else 1 for rep, size in zip(eqn.params["reps"], sizes, strict=True)]
    return _moved(eqn, signal, np.tile(signal.nodes, (1, *reps)))


def _pad(eqn: Any, signal: Signal, filling: Value) -> Signal:
    """Padding in space is left out; padded channels are the constant."""
    config, nodes = eqn.params["padding_config"], signal.nodes
    widths = [
        (int(low), int(high), int(inner)) if size > 1 else (0, 0, 0)
        for (low, high, inner), size in zip(config, nodes.shape[1:], strict=True)
    ]
    if not isinstance(filling, Known) or any(inner or min(w) < 0 for *w, inner in widths):
        raise NotUnderstood("padding between channels, or by a signal")
    pairs = [(0, 0), *((low, high) for low, high, _ in widths)]
    return _moved(eqn, signal, np.pad(nodes, pairs, constant_values=float(filling.value)))


def _concatenate(eqn: Any, *inputs: Value) -> Signal:
    """Channels side by side; each keeps its distribution."""
    axis, arrays = eqn.params["dimension"], _operands(eqn, inputs)
    if all(array.shape[axis + 1] == 1 for array in arrays):
        raise NotUnderstood("concatenate of positions in place of channels")
    common = np.broadcast_shapes(*(array.take([0], axis + 1).shape for array in arrays))
    full = [(*common[: axis + 1], var.aval.shape[axis], *common[axis + 2 :]) for var in eqn.invars]
    check_size([*common, sum(shape[axis + 1] for shape in full)])
    parts = [np.broadcast_to(array, shape) for array, shape in zip(arrays, full, strict=True)]
    return Signal(np.concatenate(parts, axis=axis + 1))


# Sums and maxima ----------------------------------------------------------------------------------


def _reduce_sum(eqn: Any, signal: Signal) -> Signal:
    """Over places a Gaussian, as if they were independent; over channels a constant, the mean.

    Sums of several functions of one signal, such as of x and of its square, rise and fall together
    or against each other, as the functions themselves do. Channels are many, and what depends on
    the sum's variance, as 1 / sqrt(x) does, is left with its mean.
    """
    mean, variance = signal.moments()
    axes, shape = tuple(eqn.params["axes"]), eqn.invars[0].aval.shape
    over_channels = any(mean.shape[axis] > 1 for axis in axes)
    count = math.prod(shape[axis] for axis in axes if mean.shape[axis] == 1)
    total = count * mean.sum(axis=axes)
    spread = np.zeros_like(total) if over_channels else count * variance.sum(axis=axes)
    slope = np.tensordot(WEIGHTS * STANDARD, signal.nodes, 1).sum(axis=axes)
    rising = gaussian(total, spread)
    return _moved(eqn, signal, np.where(slope < 0, 2 * total - rising, rising))


def _reduce_extreme(eqn: Any, signal: Signal) -> Signal:
    """The extreme of as many independent draws as there are places."""
    axes, shape = eqn.params["axes"], eqn.invars[0].aval.shape
    _check_within_channels(eqn, signal, axes)
    count = math.prod(shape[axis] for axis in axes)
    sign = -1 if eqn.primitive.name == "reduce_min" else 1
    nodes = sign * largest(sign * signal.nodes, count)
    return Signal(nodes.squeeze(tuple(axis + 1 for axis in axes)))


def _window_sum(eqn: Any, signal: Signal) -> Signal:
    """The window's size times one of its values: neighbours count as equal, borders as inside."""
    window = eqn.params["window_dimensions"]
    _check_within_channels(eqn, signal, [a for a, size in enumerate(window) if size > 1])
    return _moved(eqn, signal, signal.nodes * math.prod(window))


def _window_extreme(eqn: Any, signal: Signal) -> Signal:
    window = eqn.params["window_dimensions"]
    _check_within_channels(eqn, signal, [a for a, size in enumerate(window) if size > 1])
    sign = -1 if eqn.primitive.name == "reduce_window_min" else 1
    return Signal(sign * largest(sign * signal.nodes, math.prod(window)))


def _check_within_channels(eqn: Any, signal: Signal, axes: Sequence[int]) -> None:
    if any(signal.nodes.shape[axis + 1] > 1 for axis in axes):
        raise NotUnderstood(f"{eqn.primitive.name} across channels")


MOVES: dict[str, Rule] = {
    **dict.fromkeys(("reshape", "squeeze", "expand_dims"), _reshape),
    "broadcast_in_dim": _broadcast_in_dim,
    "transpose": _transpose,
    "slice": _slice,
    "split": _split,
    "rev": _rev,
    "tile": _tile,
    "pad": _pad,
    "concatenate": _concatenate,
}
"""Rules that change where values lie, not the values."""

RULES: dict[str, Rule] = {
    **MOVES,
    **dict.fromkeys(POINTWISE, nodewise),
    "reduce_sum": _reduce_sum,
    **dict.fromkeys(("reduce_max", "reduce_min"), _reduce_extreme),
    "reduce_window_sum": _window_sum,
    **dict.fromkeys(("reduce_window_max", "reduce_window_min"), _window_extreme),
}
