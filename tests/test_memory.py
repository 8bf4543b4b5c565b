"""Memory that was freed goes back to the system."""

import pathlib

import numpy as np
import pytest

from corrq_jax import memory


def resident():
    """Bytes of memory that the process holds now."""
    status = pathlib.Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmRSS:")[1].split()[0])


@pytest.mark.skipif(memory._malloc_trim() is None, reason="the C library has no malloc_trim")
def test_freed_pieces_go_back():
    # Of a size that glibc keeps after free, and every other one in use.
    pieces = [np.ones(8_000) for _ in range(2_000)]
    del pieces[::2]
    before = resident()
    memory.give_back()
    # 64 MB were freed; half of it may lie in pages that are still in use.
    assert before - resident() > 32e6
    assert all(piece[-1] == 1 for piece in pieces)


def test_without_such_a_function_nothing_happens(monkeypatch):
    monkeypatch.setattr(memory, "_malloc_trim", lambda: None)
    memory.give_back()
