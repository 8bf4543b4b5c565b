"""Searches are compiled in little memory, where the compiler can."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from corrq_jax.core import compiling
from corrq_jax.core.compiling import each, jit_search


@pytest.fixture
def fresh_options():
    compiling._options.cache_clear()
    yield
    compiling._options.cache_clear()


def test_the_compiler_knows_the_option(fresh_options):
    expected = compiling._LEAN if jax.default_backend() == "cpu" else {}
    assert compiling._options() == expected


def test_a_compiler_without_the_option_gets_none(fresh_options, monkeypatch):
    monkeypatch.setattr(compiling, "_LEAN", {"xla_cpu_no_such_option": False})
    assert compiling._options() == {}
    assert jit_search(lambda x: x + 1)(1) == 2


def test_compiles_once_for_each_static_argument():
    calls = []

    def power(x, n):
        calls.append(n)
        return x**n

    search = jit_search(power, static_argnames="n")
    x = jnp.arange(4.0)
    for n in (2, 3, 2, 3):
        np.testing.assert_array_equal(search(x, n=n), np.arange(4.0) ** n)
    assert calls == [2, 3]
    assert search.jitted._cache_size() == 2


def test_asks_no_backend_before_the_first_call(fresh_options):
    jit_search(lambda x: x)
    assert compiling._options.cache_info().currsize == 0


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_each_of_the_first_of_a_batch(backend, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    traced = []

    def function(a, b):
        traced.append(1)
        return {"sum": a.sum() + b, "more": a[:2] * 2}

    found = jax.jit(lambda count, *batch: each(function, count, *batch))
    a, b = np.arange(12.0, dtype=np.float32).reshape(4, 3), np.arange(4, dtype=np.float32)
    for count in (1, 3, 4):
        some = found(count, a, b)
        np.testing.assert_array_equal(some["sum"][:count], (a.sum(1) + b)[:count])
        np.testing.assert_array_equal(some["more"][:count], (a[:, :2] * 2)[:count])
        assert len(traced) == (2 if backend == "cpu" else 1), "no count compiles anew"
