"""A network's wiring, read from its traced computation: kernels, and what corrects their shift.

A kernel is what a convolution or a product multiplies a signal by, if it was made of exactly one
parameter of rank 2 or more. Normalizations are recognized by their running statistics' names.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from corrq_jax.errors import InputError
from corrq_jax.importance import Shares
from corrq_jax.interpreter import Interpreter, follow
from corrq_jax.linear import Linear, along, convolution, product
from corrq_jax.paths import flatten
from corrq_jax.propagation import RULES, Rule, nodewise
from corrq_jax.signals import Known, NotUnderstood, Signal, Value, as_numpy, gaussian, parameter
from corrq_jax.tree import dequantize

_LEAST_SHARE = 1e-4  # a kernel that hardly arrives still has to have some precision
MEANS = frozenset({"mean", "running_mean", "moving_mean"})
VARIANCES = frozenset({"var", "variance", "running_var", "moving_var", "moving_variance"})


@dataclasses.dataclass(frozen=True, eq=False)
class Site:
    """A kernel whose input is understood, and where a shift of its output can be corrected.

    Attributes:
        kernel: path of the kernel in the parameter tree.
        shape: its shape.
        mean: float64[inputs], the expected mean of each input channel.
        variance: float64[inputs], the expected variance of each.
        moments: what `output_moments` calls.
        norm_mean: path of the running mean of the normalization that follows, or None.
        norm_variance: path of its running variance, or None.
        bias: path of the bias that is added to the output, or None.
    """

    kernel: str
    shape: tuple[int, ...]
    mean: np.ndarray
    variance: np.ndarray
    moments: Callable[[Any], tuple[np.ndarray, np.ndarray]] = dataclasses.field(repr=False)
    norm_mean: str | None = None
    norm_variance: str | None = None
    bias: str | None = None

    def output_moments(self, kernel: Any) -> tuple[np.ndarray, np.ndarray]:
        """Expected mean and variance, float64[outputs], of the output with another kernel.

        Raises:
            InputError: the kernel has another shape than this site's.
        """
        if np.shape(kernel) != self.shape:
            raise InputError(f"{self.kernel}: shape {np.shape(kernel)} instead of {self.shape}")
        return self.moments(kernel)

    @property
    def targets(self) -> tuple[str, ...]:
        """Paths of the parameters that take up a correction."""
        if self.norm_mean is not None and self.norm_variance is not None:
            return self.norm_mean, self.norm_variance
        return () if self.bias is None else (self.bias,)


@dataclasses.dataclass(frozen=True, eq=False)
class Wiring:
    """What `trace` found.

    Attributes:
        shapes: the shape of each parameter.
        sites: in the order of the computation.
        unreached: for each other parameter of rank 2 or more, but biases, why it is no site.
        shares: for each kernel whose input is understood, its share of the signal at the output
            (`corrq_jax.importance`).
    """

    shapes: Mapping[str, tuple[int, ...]] = dataclasses.field(repr=False)
    sites: tuple[Site, ...]
    unreached: Mapping[str, str]
    shares: Mapping[str, float] = dataclasses.field(repr=False, default_factory=dict)

    @property
    def importance(self) -> dict[str, float]:
        """Weights of the kernels' noise for a budget of bits, from their shares."""
        return {path: max(share, _LEAST_SHARE) for path, share in self.shares.items()}


def trace(
    apply: Callable[..., Any],
    params: Any,
    example: Any,
    input_mean: Any = 0.0,
    input_variance: Any = 1.0,
) -> Wiring:
    """Reads a network's wiring and the expected moments of every kernel's input.

    The network is traced, not run.

    Args:
        apply: the network as a pure function, called as ``apply(params, example)``.
        params: its trained parameters, any pytree.
        example: an array or `jax.ShapeDtypeStruct` like a batch of inputs; a tuple of them, or of
            trees of them, for several arguments. Its size counts where a convolution pads.
        input_mean: expected mean of the inputs, broadcast against them: a number, or a value for
            each channel of a last axis.
        input_variance: likewise.

    Returns:
        The `Wiring`.

    Raises:
        InputError: inside jit there are no values to follow; or the moments do not fit the inputs.

    >>> import jax, numpy as np
    >>> def apply(params, x):
    ...     x = jax.nn.relu(x @ params["first"]["kernel"] + params["first"]["bias"])
    ...     return x @ params["second"]["kernel"]
    >>> first = {"kernel": np.eye(3, dtype=np.float32), "bias": np.zeros(3, np.float32)}
    >>> params = {"first": first, "second": {"kernel": np.ones((3, 2), np.float32)}}
    >>> wiring = trace(apply, params, jax.ShapeDtypeStruct((1, 3), np.float32))
    >>> [(site.kernel, site.bias) for site in wiring.sites]
    [('first/kernel', 'first/bias'), ('second/kernel', None)]
    >>> wiring.sites[1].mean.round(3)  # of a rectified Gaussian: 1 / sqrt(2 pi)
    array([0.399, 0.399, 0.399])
    """
    params = dequantize(params)
    entries, _ = flatten(params)
    if any(isinstance(leaf, Tracer) for _, leaf in entries):
        raise InputError("trace needs the parameters' values; call it outside of jit")
    arguments = example if isinstance(example, tuple) else (example,)
    closed = jax.make_jaxpr(apply)(params, *arguments)
    inputs = [_input(aval, input_mean, input_variance) for aval in closed.in_avals[len(entries) :]]
    recorder = _Recorder({path: as_numpy(leaf) for path, leaf in entries})
    known = [parameter(path, leaf) for path, leaf in recorder.parameters.items()]
    shares = Shares()
    interpreter = Interpreter(recorder.rules(), shares.observe)
    outputs = interpreter.run(closed.jaxpr, closed.consts, [*known, *inputs])
    found = recorder.shares(shares.at_output(outputs))
    return dataclasses.replace(recorder.wiring(interpreter.uses), shares=found)


def _input(aval: Any, mean: Any, variance: Any) -> Signal:
    """The signal of one input; the last axis and those of the given moments have channels."""
    if not jnp.issubdtype(aval.dtype, jnp.floating) or aval.ndim == 0:
        return Signal(None, reason=f"an input of dtype {aval.dtype} and rank {aval.ndim}")
    mean, variance = (np.asarray(moment, np.float64) for moment in (mean, variance))
    if not (np.isfinite(mean).all() and np.isfinite(variance).all() and (variance >= 0).all()):
        raise InputError("input_mean and input_variance must be finite, and variances not negative")
    shape = (*[1] * (aval.ndim - 1), aval.shape[-1])
    try:
        shape = np.broadcast_shapes(mean.shape, variance.shape, shape)
        np.broadcast_to(np.empty(shape), aval.shape)
    except ValueError as error:
        raise InputError(
            f"input_mean {mean.shape} and input_variance {variance.shape} do not broadcast against "
            f"an input of shape {aval.shape}; give a number or a value for each channel"
        ) from error
    return _gaussian(np.broadcast_to(mean, shape), np.broadcast_to(variance, shape))


def _gaussian(mean: np.ndarray, variance: np.ndarray) -> Signal:
    try:
        return Signal(gaussian(mean, variance))
    except NotUnderstood as error:
        return Signal(None, reason=str(error))


# Recording ----------------------------------------------------------------------------------------


class _Output(NamedTuple):
    """The origin of a signal that is still a kernel's output, up to a shift by parameters.

    Attributes:
        site: index of the site, or None if the kernel is none.
        features: axes of the output's channels, with their lengths.
        mean: path of a normalization's running mean that was subtracted, or is about to be.
        variance: path of its running variance, if the signal was divided by its root first.
    """

    site: int | None
    features: dict[int, int]
    mean: str | None = None
    variance: str | None = None


class _Recorder:
    """Rules that find sites while signals pass."""

    def __init__(self, parameters: Mapping[str, Any]):
        self.parameters = parameters
        self.sites: list[Site] = []
        self.multiplied: list[str | None] = []  # the kernel of each product, in order
        self.reasons: dict[str, str] = {}
        self.divided: set[str] = set()  # variances that one normalization uses twice

    def rules(self) -> dict[str, Rule]:
        """The rules of propagation, with those for kernels, normalizations and biases."""
        keeping = ("convert_element_type", "reshape", "squeeze", "broadcast_in_dim")
        return {
            **RULES,
            "conv_general_dilated": partial(self._multiply, convolution),
            "dot_general": partial(self._multiply, product),
            **dict.fromkeys(("add", "sub"), self._shift),
            **dict.fromkeys(("mul", "div"), self._scale),
            **{name: partial(self._keep, RULES[name]) for name in keeping},
        }

    def _multiply(self, kind: Callable[[Any, int], Linear], eqn: Any, *inputs: Value) -> Signal:
        """A signal times a kernel: a Gaussian, and a site if the kernel is one parameter."""
        self.multiplied.append(None)
        signal, known = _signal_and_known(inputs)
        if known is None:
            raise NotUnderstood(f"{eqn.primitive.name} of two signals")
        linear = kind(eqn, 0 if signal is inputs[0] else 1)
        kernels = [path for path in known.leaves if np.ndim(self.parameters[path]) > 1]
        try:
            mean, variance = signal.moments()
        except NotUnderstood as error:
            reason = f"its input is not understood: {error}"
            self.reasons.update(dict.fromkeys(kernels, reason))
            return Signal(None, origin=_Output(None, linear.features), reason=str(error))
        site = None
        if len(kernels) == 1:
            site = len(self.sites)
            self.multiplied[-1] = kernels[0]
            self.sites.append(self._site(kernels[0], known, linear, mean, variance))
        elif kernels:
            self.reasons.update(dict.fromkeys(kernels, "several parameters make up one kernel"))
        result = _gaussian(*linear.moments(known.value, mean, variance))
        return dataclasses.replace(result, origin=_Output(site, linear.features))

    def _site(
        self, path: str, known: Known, linear: Linear, mean: np.ndarray, variance: np.ndarray
    ) -> Site:
        def moments(kernel: Any) -> tuple[np.ndarray, np.ndarray]:
            weights = known.rebuilt({path: np.asarray(kernel)})
            shift, spread = linear.moments(weights, mean, variance)
            return along(shift, linear.features).ravel(), along(spread, linear.features).ravel()

        shape = np.shape(self.parameters[path])
        means, variances = (along(part, linear.inputs).ravel() for part in (mean, variance))
        return Site(path, shape, means, variances, moments)

    def _keep(self, rule: Rule, eqn: Any, signal: Signal) -> Signal:
        """A kernel's output is one still in another type, or with axes changed before its last."""
        [moved] = follow(rule, eqn, [signal])
        output, before, after = signal.origin, eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
        if output is None or before == after:
            return dataclasses.replace(moved, origin=output)
        if [*output.features] != [len(before) - 1] or before[-1:] != after[-1:]:
            return moved
        features = {len(after) - 1: after[-1]}
        return dataclasses.replace(moved, origin=output._replace(features=features))

    def _shift(self, eqn: Any, *inputs: Value) -> Signal:
        """An addition: of a bias, or of the mean of a normalization, whose deviation may follow.

        Or it ends a normalization that divided first, as Keras's do: x / s + (shift - mean / s).
        """
        [shifted] = follow(nodewise, eqn, inputs)
        signal, known = _signal_and_known(inputs)
        output = signal.origin
        if output is not None and output.variance is not None:
            if known is not None and {output.mean, output.variance} <= known.leaves:
                self._complete(output, output.mean, output.variance)
                self.divided.add(output.variance)
            return shifted
        path = self._parameter_for(signal.origin, known)
        if path is None or signal.origin.mean is not None:
            return shifted
        is_mean, is_sum = _name(path) in MEANS, eqn.primitive.name == "add"
        if is_sum and not is_mean:
            self._complete(signal.origin, bias=path)
            return dataclasses.replace(shifted, origin=signal.origin)
        if is_mean and not is_sum and inputs[1] is known:
            return dataclasses.replace(shifted, origin=signal.origin._replace(mean=path))
        return shifted

    def _scale(self, eqn: Any, *inputs: Value) -> Signal:
        """A factor: if it is a normalization's, training says what the moments before it were."""
        signal, known = _signal_and_known(inputs)
        output, found = signal.origin, self._statistics_for(signal.origin, known)
        if found is None or not (eqn.primitive.name == "mul" or inputs[1] is known):
            return follow(nodewise, eqn, inputs)[0]
        shape = [output.features.get(axis, 1) for axis in range(eqn.outvars[0].aval.ndim)]
        mean, variance = (np.asarray(self.parameters[path], np.float64) for path in found)
        is_centered = output.mean is not None
        center = np.zeros(shape) if is_centered else mean.reshape(shape)
        normal = Signal(gaussian(center, np.maximum(variance, 0).reshape(shape)))
        [scaled] = follow(nodewise, eqn, [normal if value is signal else value for value in inputs])
        if is_centered:
            self._complete(output, *found)
            return scaled
        divided = output._replace(mean=found[0], variance=found[1])
        return dataclasses.replace(scaled, origin=divided)

    def _parameter_for(self, output: _Output | None, known: Known | None) -> str | None:
        """Path of the parameter that is this operand, a value for each channel of the output."""
        if output is None or not output.features or known is None or known.raw is None:
            return None
        value = np.asarray(known.value)
        if value.ndim <= max(output.features):
            return None
        one = tuple(slice(None) if a in output.features else slice(1) for a in range(value.ndim))
        size = math.prod(output.features.values())
        is_whole = value[one].size == size == np.size(self.parameters[known.raw])
        return known.raw if is_whole else None

    def _statistics_for(
        self, output: _Output | None, known: Known | None
    ) -> tuple[str, str] | None:
        """Paths of a normalization's running mean and variance, if this operand has the latter.

        The mean is that which was subtracted, or, before any was, the one beside the variance.
        """
        if output is None or known is None or output.variance is not None:
            return None
        for variance in sorted(known.leaves):
            parent, name = _parent(variance), _name(variance)
            size = np.size(self.parameters[variance])
            if name not in VARIANCES or size != math.prod(output.features.values()):
                continue
            for mean in [output.mean] if output.mean else sorted(self.parameters):
                beside = _parent(mean) == parent and _name(mean) in MEANS
                if beside and np.size(self.parameters[mean]) == size:
                    return mean, variance
        return None

    def _complete(
        self,
        output: _Output,
        norm_mean: str | None = None,
        norm_variance: str | None = None,
        bias: str | None = None,
    ) -> None:
        """Notes what corrects a site; what was found first stays."""
        if output.site is not None:
            site = self.sites[output.site]
            paths = {"norm_mean": norm_mean, "norm_variance": norm_variance, "bias": bias}
            new = {name: p for name, p in paths.items() if p and getattr(site, name) is None}
            self.sites[output.site] = dataclasses.replace(site, **new)

    def shares(self, at_output: np.ndarray) -> dict[str, float]:
        """Shares by kernel; those of one that is used several times add up."""
        found: dict[str, float] = {}
        for path, share in zip(self.multiplied, at_output, strict=False):
            if path is not None:
                found[path] = found.get(path, 0.0) + float(share)
        return found

    def wiring(self, uses: Mapping[str, Sequence[str]]) -> Wiring:
        """What was found, less the sites whose kernel or correction is used elsewhere too."""
        sites, reasons = [], dict(self.reasons)
        for site in self.sites:
            own = (site.kernel, *site.targets)
            shared = [p for p in own if len(uses[p]) > 1 + (p in self.divided)]
            if shared:
                reasons[site.kernel] = f"{shared[0]} is used more than once"
            else:
                sites.append(site)
        covered = {path for site in sites for path in (site.kernel, site.bias)}
        unreached = {
            path: reasons.get(path) or _unused(uses.get(path, ()))
            for path, leaf in self.parameters.items()
            if np.ndim(leaf) > 1 and path not in covered
        }
        shapes = {path: np.shape(leaf) for path, leaf in self.parameters.items()}
        return Wiring(shapes, tuple(sites), unreached)


def _signal_and_known(inputs: Sequence[Value]) -> tuple[Signal, Known | None]:
    """The first signal, and the other operand if it is known."""
    signal = next(value for value in inputs if isinstance(value, Signal))
    known = [value for value in inputs if isinstance(value, Known)]
    return signal, known[0] if known else None


def _name(path: str) -> str:
    return path.rpartition("/")[2]


def _parent(path: str) -> str:
    return path.rpartition("/")[0]


def _unused(uses: Sequence[str]) -> str:
    if not uses:
        return "it meets nothing that depends on the network's input"
    return f"it is used by {', '.join(sorted(set(uses)))}, not as a kernel"
