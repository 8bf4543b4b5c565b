"""How the searches are compiled: in less memory than XLA's default takes.

A search is a few hundred small operations on 65,536 points. XLA's newer emitter for the CPU takes
130 MB to compile one, the older one 30 MB, in less time, and the program is as fast. While a
network lies beside it in memory, that counts.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax

_LEAN = {"xla_cpu_use_fusion_emitters": False}


@functools.cache
def _options() -> dict[str, Any]:
    """The options, where the compiler is the CPU's and knows them."""
    if jax.default_backend() != "cpu":
        return {}
    try:
        jax.jit(lambda: 0, compiler_options=_LEAN).lower().compile()
    except jax.errors.JaxRuntimeError:
        return {}
    return _LEAN


class jit_search:  # noqa: N801 (used like jax.jit)
    """`jax.jit` for a function that no other jitted function calls.

    JAX refuses options of the compiler within a trace, so that the function itself stays as it is
    for such callers. The backend is asked at the first call, not at import.

    Args:
        function: a pure function of arrays.
        **arguments: of `jax.jit`.

    >>> double = jit_search(lambda x: 2 * x)
    >>> int(double(21))
    42
    """

    def __init__(self, function: Callable[..., Any], **arguments: Any) -> None:
        functools.update_wrapper(self, function)
        self._function, self._arguments = function, arguments

    @functools.cached_property
    def jitted(self) -> Any:
        """The function of `jax.jit`."""
        return jax.jit(self._function, compiler_options=_options(), **self._arguments)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the function returns."""
        return self.jitted(*args, **kwargs)
