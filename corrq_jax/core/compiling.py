"""How the searches are compiled: in less memory than XLA's default takes.

A search is a few hundred small operations on 65,536 points. XLA's newer emitter for the CPU takes
130 MB to compile one, the older one 30 MB, in less time, and the program is as fast. While a
network lies beside it in memory, that counts.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

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


def each(function: Callable[..., Any], count: Any, *batch: Any) -> Any:
    """What a function gives for the first ``count`` of a batch; the rest of the result is anything.

    A CPU takes one at a time: what a search looks up then stays in cache, which is twice as fast,
    and a lone tensor pays for itself only. On an accelerator, where each small step of a loop is a
    kernel of its own, all go together.

    Args:
        function: a pure function of arrays.
        count: integer, which may be traced.
        *batch: its arguments, each with a first axis.
    """
    if jax.default_backend() != "cpu":
        return jax.vmap(function)(*batch)
    first = jax.eval_shape(function, *jax.tree.map(lambda a: a[0], batch))
    size = len(jax.tree.leaves(batch)[0])
    empty = jax.tree.map(lambda a: jnp.zeros((size, *a.shape), a.dtype), first)

    def body(i: jax.Array, found: Any) -> Any:
        one = function(*jax.tree.map(lambda a: a[i], batch))
        return jax.tree.map(lambda all_, new: all_.at[i].set(new), found, one)

    return jax.lax.fori_loop(0, jnp.int32(count), body, empty)
