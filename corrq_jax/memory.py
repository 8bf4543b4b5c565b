"""Memory that was freed, given back to the system."""

import ctypes
import functools
from collections.abc import Callable


@functools.cache
def _malloc_trim() -> Callable[[int], int] | None:
    """`malloc_trim` of glibc; None where the C library is another."""
    try:
        return ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):  # TypeError: Windows has no name for "itself"
        return None


def give_back() -> None:
    """Give freed memory back to the system, where the C library can (glibc).

    A compiler frees about 100 MB when it is done, in pieces, which glibc keeps. They would count
    beside everything that is allocated afterwards. Takes about a millisecond.
    """
    trim = _malloc_trim()
    if trim is not None:
        trim(0)
