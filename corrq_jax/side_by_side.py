"""Work that is begun before the results of what came before are taken: launches, and calls.

What one thread launches on a CPU XLA runs one after the other, and such a loop, as codes along a
trellis take, keeps one core busy: 196 ns a weight so, and 108 by calls of two threads on two cores.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import jax

T = TypeVar("T")
IN_FLIGHT = 2
"""Pieces are copied when they are handed over; so many at a time keep a device busy."""
MOST = 8
"""Threads at most: each has a piece of a tensor, and what its codes take, in memory."""


def ahead(launched: Iterator[T], steps: int = IN_FLIGHT) -> Iterator[T]:
    """What an iterator launches, a few steps behind it.

    >>> list(ahead(iter("abcd")))
    ['a', 'b', 'c', 'd']
    """
    waiting: deque[T] = deque()
    for part in launched:
        waiting.append(part)
        if len(waiting) > steps:
            yield waiting.popleft()
    yield from waiting


def side_by_side(calls: Iterator[Callable[[], T]]) -> Iterator[T]:
    """The results of calls in their order, of which as many run at a time as there are cores.

    The first runs before the others, which find compiled what it has compiled. Where jax's default
    is an accelerator, which is one for all, they run one after the other.

    Args:
        calls: each is taken when a thread is free for it, so that few arguments are held.

    Yields:
        What each returned.

    >>> list(side_by_side(iter([lambda: 1, lambda: 2, lambda: 3])))
    [1, 2, 3]
    """
    threads = min(_cores(), MOST) if jax.default_backend() == "cpu" else 1
    if first := next(calls, None):
        yield first()
    if threads == 1:
        yield from (call() for call in calls)
        return
    config: Any = jax.config  # what it says of these two is a thread's own
    x64, device = config.jax_enable_x64, config.jax_default_device

    def as_here(call: Callable[[], T]) -> T:
        with jax.enable_x64(x64), jax.default_device(device):
            return call()

    with ThreadPoolExecutor(threads, "corrq") as pool:
        running = (pool.submit(as_here, call) for call in calls)
        yield from (future.result() for future in ahead(running, threads - 1))


def _cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
