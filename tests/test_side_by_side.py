"""Calls side by side: their results in order, as many at a time as there are cores."""

import os
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from corrq_jax import leaf as leaves
from corrq_jax import side_by_side as module
from corrq_jax import trellis_leaf
from corrq_jax.core.density import CHUNK
from corrq_jax.side_by_side import side_by_side


@pytest.fixture(params=[1, 2, 5])
def cores(request, monkeypatch):
    monkeypatch.setattr(module, "_cores", lambda: request.param)
    return request.param


def test_results_come_in_order_and_few_calls_are_taken_ahead(cores):
    taken, running, most = [], [], []

    def call(i):
        running.append(i)
        most.append(len(running))
        time.sleep(0.01 * (i % 3))
        running.remove(i)
        return i * i

    def calls():
        for i in range(20):
            taken.append(i)
            yield lambda i=i: call(i)

    for done, result in enumerate(side_by_side(calls())):
        assert result == done**2
        assert len(taken) <= done + cores + 1
    assert done == 19
    assert max(most) <= cores


def test_the_first_is_done_before_others_begin(cores):
    begun = []

    def call(i):
        begun.append((i, threading.current_thread() is threading.main_thread()))

    calls = side_by_side(iter([lambda i=i: call(i) for i in range(4)]))
    next(calls)
    assert begun == [(0, True)]
    list(calls)
    assert [i for i, _ in sorted(begun)] == [0, 1, 2, 3]
    assert all(in_main == (cores == 1) for i, in_main in begun if i)


def test_none_and_one(cores):
    assert list(side_by_side(iter([]))) == []
    assert list(side_by_side(iter([lambda: "one"]))) == ["one"]


def test_an_error_is_raised_in_its_place(cores):
    def fail():
        raise ValueError("the third")

    results = side_by_side(iter([lambda: 1, lambda: 2, fail, lambda: 4]))
    assert [next(results), next(results)] == [1, 2]
    with pytest.raises(ValueError, match="the third"):
        list(results)


def test_threads_have_the_settings_of_the_caller(cores):
    device = jax.devices()[-1]
    with jax.enable_x64(True), jax.default_device(device):
        found = list(side_by_side(iter([lambda: jnp.zeros(2, np.float64)] * 4)))
    assert {str(array.dtype) for array in found} == {"float64"}
    assert {d for array in found for d in array.devices()} == {device}


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="cores cannot be left out here")
def test_cores_are_those_that_may_be_used(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 3, 4})
    assert module._cores() == 3


def test_a_tensor_of_several_pieces_is_the_same_by_any_number_of_threads(monkeypatch):
    w = np.random.default_rng(0).laplace(size=2 * CHUNK + 1234).astype(np.float32)
    leaf = leaves.read("w", w)
    _, norm = leaves.measure(leaf)
    levels = np.linspace(-0.9, 0.9, 8)
    found = []
    for cores in (1, 3):
        monkeypatch.setattr(module, "_cores", lambda cores=cores: cores)
        found.append(trellis_leaf.encode(leaf, norm, levels, None, 2))
    (one, noise), (three, again) = found
    assert noise == again
    jax.tree.map(np.testing.assert_array_equal, one, three)
