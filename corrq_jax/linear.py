"""Convolutions and products as linear maps of means and variances."""

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, NamedTuple

import numpy as np

from corrq_jax.signals import NotUnderstood


class Linear(NamedTuple):
    """A linear operation on a signal.

    Attributes:
        inputs: axes of the signal that the weights run over, with their lengths.
        features: axes of the output that the weights run over, with their lengths.
        apply: from weights and means, or squared weights and variances, to those of the output.
    """

    inputs: dict[int, int]
    features: dict[int, int]
    apply: Callable[[np.ndarray, np.ndarray], np.ndarray]

    def moments(
        self, weights: Any, mean: np.ndarray, variance: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Mean and variance of the output; inputs count as independent."""
        weights = np.asarray(weights, np.float64)
        return self.apply(weights, mean), self.apply(np.square(weights), variance)


def convolution(eqn: Any, side: int) -> Linear:
    """A tap counts by the fraction of output positions where it meets a sample of the image.

    Elsewhere it lies in the padding or between the samples of a transposed convolution.
    """
    images, taps, outputs = eqn.params["dimension_numbers"]
    if side != 0 or eqn.params["batch_group_count"] != 1:
        raise NotUnderstood("a convolution by a signal, or in groups of the batch")
    coverage = reduce(
        np.multiply.outer, [_inside(eqn, d) for d in range(len(taps) - 2)], np.float64(1)
    )
    space = tuple(range(2, len(taps)))
    groups = eqn.params["feature_group_count"]
    inputs = _lengths(eqn.invars[0], [images[1]])
    features = _lengths(eqn.outvars[0], [outputs[1]])
    shape = [features.get(axis, 1) for axis in range(len(outputs))]

    def apply(weights: np.ndarray, moments: np.ndarray) -> np.ndarray:
        weights = (weights.transpose(taps) * coverage).sum(axis=space)
        moments = along(moments, inputs).reshape(groups, -1)
        grouped = weights.reshape(groups, -1, moments.shape[1])
        return np.einsum("goi,gi->go", grouped, moments).reshape(shape)

    return Linear(inputs, features, apply)


def _inside(eqn: Any, axis: int) -> np.ndarray:
    """float64[taps]: how often each tap along an axis of space meets a sample of the image."""
    dimensions = eqn.params["dimension_numbers"]
    size, taps, count = (
        var.aval.shape[spec[2 + axis]]
        for var, spec in zip((*eqn.invars, *eqn.outvars), dimensions, strict=True)
    )
    dilation = eqn.params["lhs_dilation"][axis]
    start = np.arange(count)[:, None] * eqn.params["window_strides"][axis]
    at = start + np.arange(taps) * eqn.params["rhs_dilation"][axis] - eqn.params["padding"][axis][0]
    return ((at >= 0) & (at <= (size - 1) * dilation) & (at % dilation == 0)).mean(axis=0)


def product(eqn: Any, side: int) -> Linear:
    """A `dot_general`, as an Einstein sum; axes without channels stay of length 1."""
    contract, batch = eqn.params["dimension_numbers"]
    ranks = [var.aval.ndim for var in eqn.invars]
    labels = [list(range(ranks[0])), list(range(ranks[0], sum(ranks)))]
    for left, right in zip((*contract[0], *batch[0]), (*contract[1], *batch[1]), strict=True):
        labels[1][right] = left
    summed = {*contract[0], *batch[0]}
    free = [label for part in labels for label in part if label not in summed]
    out = [*batch[0], *free]
    inputs = _lengths(eqn.invars[side], sorted((*batch[side], *contract[side])))
    shared = [axis for axis, label in enumerate(out) if label in labels[1 - side]]

    def apply(weights: np.ndarray, moments: np.ndarray) -> np.ndarray:
        shape: list[int] = [*moments.shape]
        for axis, length in inputs.items():
            shape[axis] = length
        moments = np.broadcast_to(moments, shape)
        return np.einsum(moments, labels[side], weights, labels[1 - side], out, optimize=True)

    return Linear(inputs, _lengths(eqn.outvars[0], shared), apply)


def _lengths(var: Any, axes: Sequence[int]) -> dict[int, int]:
    return {axis: var.aval.shape[axis] for axis in axes}


def along(array: np.ndarray, lengths: dict[int, int]) -> np.ndarray:
    """Values along some axes, to their lengths; means over the others."""
    others = tuple(axis for axis in range(array.ndim) if axis not in lengths)
    return np.broadcast_to(array.mean(axis=others), tuple(lengths.values()))
