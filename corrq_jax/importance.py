"""How much each kernel's noise counts at the output: its share of the signal that arrives there.

Noise that a quantized kernel adds keeps its ratio to the signal through all that follows in a
chain: the next kernel and the next activation change both alike. Where two signals are added, the
ratio falls by the part of the variance that came along the noisy one. The share of a kernel is what
is left of the ratio at the output: 1 in a chain, small in one of many residual branches.
"""

from collections.abc import Sequence
from functools import reduce
from typing import Any

import numpy as np

from corrq_jax.linear import convolution, product
from corrq_jax.propagation import MOVES, RULES
from corrq_jax.signals import POINTWISE, Known, NotUnderstood, Signal, Value

_LINEAR = {"conv_general_dilated": convolution, "dot_general": product}


class Shares:
    """Follows signals through an interpretation, as an observer of its equations.

    Attributes:
        of: for each signal float64[kernels, *axes], the share of each kernel's noise in the ratio
            of noise to signal; an axis is 1 where it does not depend on it.
    """

    def __init__(self) -> None:
        self.of: dict[Signal, np.ndarray] = {}
        self.kernels: int = 0

    def observe(self, eqn: Any, inputs: Sequence[Value], outputs: Sequence[Value]) -> None:
        """Called after each equation that has a signal among its inputs."""
        signals = [value for value in inputs if isinstance(value, Signal)]
        known = [output for output in outputs if isinstance(output, Signal)]
        if eqn.primitive.name in _LINEAR:
            self.kernels += 1
        try:
            found = self._follow(eqn, inputs, signals, known)
        except (NotUnderstood, ValueError, LookupError, TypeError, AttributeError):
            found = [self._average(signals) for _ in known]
        self.of.update(zip(known, found, strict=True))

    def at_output(self, outputs: Sequence[Value]) -> np.ndarray:
        """float64[kernels]: the shares at the network's outputs, averaged over them."""
        return self._average([value for value in outputs if isinstance(value, Signal)]).ravel()

    def _shares(self, signal: Signal) -> np.ndarray:
        """Shares of all kernels so far."""
        found = self.of.get(signal, np.zeros((0, *[1] * np.ndim(self._axes(signal)))))
        missing = max(self.kernels, 1) - len(found)
        return np.concatenate([found, np.zeros((missing, *found.shape[1:]))])

    @staticmethod
    def _axes(signal: Signal) -> np.ndarray:
        return np.zeros(1) if signal.values is None else signal.values[0]

    def _average(self, signals: Sequence[Signal]) -> np.ndarray:
        """float64[kernels, 1]: what is said of signals whose way is not understood."""
        if not signals:
            return np.zeros((max(self.kernels, 1), 1))
        every = [self._shares(s) for s in signals]
        return np.mean([s.reshape(len(s), -1).mean(axis=1) for s in every], axis=0)[:, None]

    def _follow(
        self, eqn: Any, inputs: Sequence[Value], signals: list[Signal], outputs: list[Signal]
    ) -> list[np.ndarray]:
        name = eqn.primitive.name
        if name in _LINEAR:
            return [self._through_kernel(eqn, inputs)]
        if name in MOVES:
            return self._moved(eqn, inputs)
        if name in POINTWISE:
            return [self._together(eqn, inputs, signals)]
        if name.startswith("reduce_window"):
            return [self._shares(signals[0])]
        axes = tuple(axis + 1 for axis in eqn.params["axes"])
        return [self._shares(signals[0]).mean(axis=axes) for _ in outputs]

    def _through_kernel(self, eqn: Any, inputs: Sequence[Value]) -> np.ndarray:
        """Inputs count by the variance that they bring; the kernel's own noise starts with 1."""
        side = 0 if isinstance(inputs[0], Signal) else 1
        signal, kernel = inputs[side], inputs[1 - side]
        if not (isinstance(signal, Signal) and isinstance(kernel, Known)):
            raise NotUnderstood("a product of two signals")
        linear = _LINEAR[eqn.primitive.name](eqn, side)
        squared = np.square(np.asarray(kernel.value, np.float64))
        _, variance = signal.moments()
        whole = linear.apply(squared, variance)
        shares = self._shares(signal)[: self.kernels - 1]
        parts = [
            np.divide(part, whole, out=np.zeros_like(whole), where=whole > 0)
            for part in (linear.apply(squared, variance * share) for share in shares)
        ]
        return np.stack([*parts, np.ones_like(whole)])

    def _moved(self, eqn: Any, inputs: Sequence[Value]) -> list[np.ndarray]:
        """Shares move as the values do."""
        rows = max(self.kernels, 1)
        moving = [
            Signal(self._full(value))
            if isinstance(value, Signal)
            else Known(np.zeros_like(np.asarray(value.value, np.float64)))
            for value in inputs
        ]
        found = RULES[eqn.primitive.name](eqn, *moving)
        found = found if isinstance(found, list) else [found]
        return [np.broadcast_to(one.nodes, (rows, *one.nodes.shape[1:])) for one in found]

    def _full(self, signal: Signal) -> np.ndarray:
        """Shares along all axes that the signal's values have."""
        shares = self._shares(signal)
        shape = signal.nodes.shape[1:]
        if shares.ndim != 1 + len(shape):
            shares = shares.reshape(len(shares), -1).mean(axis=1)
            shares = shares.reshape(-1, *[1] * len(shape))
        return np.broadcast_to(shares, (len(shares), *shape))

    def _together(self, eqn: Any, inputs: Sequence[Value], signals: list[Signal]) -> np.ndarray:
        """Signals count by the variance that each brings; functions of one signal count alike."""
        rank = eqn.outvars[0].aval.ndim
        shares = [_to_rank(self._full(signal), rank) for signal in signals]
        if len({signal.base for signal in signals}) == 1:
            return np.mean(np.broadcast_arrays(*shares), axis=0)
        moments = [signal.moments() for signal in signals]
        brought = [_to_rank(variance[None], rank)[0] for _, variance in moments]
        if eqn.primitive.name == "mul" and len(signals) == 2:
            means = [_to_rank(mean[None], rank)[0] for mean, _ in moments]
            brought = [brought[0] * means[1] ** 2, brought[1] * means[0] ** 2]
        total = np.maximum(sum(brought), 1e-300)
        parts = [share * part / total for share, part in zip(shares, brought, strict=True)]
        return reduce(np.add, parts)


def _to_rank(array: np.ndarray, rank: int) -> np.ndarray:
    """Axes of length 1 after the first, up to a rank without it."""
    return array.reshape(len(array), *[1] * (rank + 1 - array.ndim), *array.shape[1:])
