"""An abstract interpreter of jaxprs: known values are computed, signals follow rules.

What is not understood becomes a signal with a reason, which passes on to all that depends on it.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from corrq_jax.propagation import Rule
from corrq_jax.signals import POINTWISE, Known, NotUnderstood, Signal, Value, bind, pointwise

_CALLS = {
    **dict.fromkeys(("jit", "pjit", "checkpoint", "remat", "remat2"), "jaxpr"),
    **dict.fromkeys(
        ("closed_call", "core_call", "custom_jvp_call", "custom_vjp_call"), "call_jaxpr"
    ),
    "custom_vjp_call_jaxpr": "fun_jaxpr",
}
# Computed without compiling anything.
_KNOWN: dict[str, Callable[..., Any]] = {
    "reshape": lambda x, *, new_sizes, **_: np.reshape(x, new_sizes),
    "squeeze": lambda x, *, dimensions: np.squeeze(x, dimensions),
    "transpose": lambda x, *, permutation: np.transpose(x, permutation),
    "broadcast_in_dim": lambda x, *, shape, broadcast_dimensions, **_: np.broadcast_to(
        np.expand_dims(x, [a for a in range(len(shape)) if a not in broadcast_dimensions]), shape
    ),
    # The default branch of `lax.platform_dependent`, which is the last.
    "platform_index": lambda *, platforms: np.int32(len(platforms) - 1),
}
_KEEPS_ORDER = {"reshape", "squeeze", "broadcast_in_dim", "convert_element_type", "copy"}


class Interpreter:
    """Runs jaxprs on `Known` values and `Signal`s.

    Attributes:
        rules: from a primitive's name to the rule for equations with a signal among their inputs.
        uses: for each parameter the primitives where it, or what was computed from it alone, met a
            signal.
        observe: called with each equation that has a signal among its inputs, and with its inputs
            and outputs.
    """

    def __init__(self, rules: Mapping[str, Rule], observe: Callable[..., None] | None = None):
        self.rules = rules
        self.observe = observe
        self.uses: defaultdict[str, list[str]] = defaultdict(list)

    def run(self, jaxpr: Any, consts: Sequence[Any], inputs: Sequence[Value]) -> list[Value]:
        """Outputs of a jaxpr for these inputs; never raises `NotUnderstood`."""
        known = [value if isinstance(value, Known | Signal) else Known(value) for value in consts]
        env = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*known, *inputs), strict=True))

        def read(var: Any) -> Value:
            return Known(np.asarray(var.val)) if hasattr(var, "val") else env[var]

        with np.errstate(all="ignore"):
            for eqn in jaxpr.eqns:
                outputs = self._equation(eqn, [read(var) for var in eqn.invars])
                env.update(zip(eqn.outvars, outputs, strict=True))
        return [read(var) for var in jaxpr.outvars]

    def _equation(self, eqn: Any, inputs: list[Value]) -> Sequence[Value]:
        name = eqn.primitive.name
        if _CALLS.get(name) in eqn.params:
            return self._call(eqn.params[_CALLS[name]], inputs)
        if name == "cond" and isinstance(inputs[0], Known):
            branches = eqn.params["branches"]
            return self._call(
                branches[int(np.clip(inputs[0].value, 0, len(branches) - 1))], inputs[1:]
            )
        if all(isinstance(value, Known) for value in inputs):
            return _known(eqn, inputs)
        for value in inputs:
            for path in value.leaves if isinstance(value, Known) else ():
                self.uses[path].append(name)
        outputs = follow(self.rules.get(name, _unfollowed), eqn, inputs)
        if self.observe is not None:
            self.observe(eqn, inputs, outputs)
        return outputs

    def _call(self, jaxpr: Any, inputs: Sequence[Value]) -> list[Value]:
        """A closed jaxpr, or one without constants."""
        return self.run(getattr(jaxpr, "jaxpr", jaxpr), getattr(jaxpr, "consts", ()), inputs)


def follow(rule: Rule, eqn: Any, inputs: Sequence[Value]) -> list[Signal]:
    """Outputs by a rule; signals of which nothing is known, with the reason, if it raises."""
    try:
        outputs = rule(eqn, *inputs)
    except NotUnderstood as error:
        reason = str(error)
    except Exception as error:
        # A form of the primitive that the rule does not foresee: what it then meets (a parameter
        # that is not there, shapes that do not fit) may be any error, and says nothing of the
        # network but that it is not followed here.
        reason = f"{eqn.primitive.name} is not followed here: {error!r}"
    else:
        return outputs if isinstance(outputs, list) else [outputs]
    return [Signal(None, reason=reason) for _ in eqn.outvars]


def _unfollowed(eqn: Any, *inputs: Value) -> Signal:
    reasons = [value.reason for value in inputs if isinstance(value, Signal) and value.reason]
    raise NotUnderstood(reasons[0] if reasons else f"{eqn.primitive.name} is not followed")


def _known(eqn: Any, inputs: Sequence[Any]) -> list[Value]:
    """What is computed from parameters and constants only."""
    try:
        values = _evaluate(eqn, [value.value for value in inputs])
    except Exception as error:
        # Whatever a primitive of someone else raises, by code of theirs; it is reported.
        reason = f"{eqn.primitive.name} could not be computed: {error}"
        return [Signal(None, reason=reason) for _ in eqn.outvars]
    leaves = frozenset().union(*(value.leaves for value in inputs))
    raw = inputs[0].raw if eqn.primitive.name in _KEEPS_ORDER else None

    def rebuild(index: int, parameters: Mapping[str, Any]) -> Any:
        return _evaluate(eqn, [value.rebuilt(parameters) for value in inputs])[index]

    return [Known(value, leaves, raw, partial(rebuild, i)) for i, value in enumerate(values)]


def _evaluate(eqn: Any, values: Sequence[Any]) -> list[Any]:
    name = eqn.primitive.name
    if name in _KNOWN:
        return [_KNOWN[name](*values, **eqn.params)]
    if name in POINTWISE:
        return [pointwise(eqn)(*values)]
    return bind(eqn, values)
