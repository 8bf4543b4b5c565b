"""The trellis of long histories: its code, the best path along it, and what that leaves."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from one_density import batched, noise, repeated

import corrq_jax as corrq
from corrq_jax.core import congruential, interleave, ladder, trellis, trellis_fit

encode = jax.jit(congruential.encode)
indices = jax.jit(congruential.level_indices)


def padded(levels):
    return np.pad(np.asarray(levels, np.float32), (0, 256 - len(levels)), constant_values=np.inf)


def slow_indices(codes, spread):
    """One weight after another, a number whose eight bits are the history, the newest highest."""
    found, history = [], 0
    for i, code in enumerate(codes):
        if i % 1024 == 0:
            history = 0
        found.append((code << spread) + (157 * history % 256 >> (8 - spread)))
        history = (code % 2) * 128 + history // 2
    return found


@pytest.mark.parametrize("spread", [2, 3, 4])
def test_indices_are_those_of_a_shift_register(spread):
    codes = np.random.default_rng(0).integers(0, 256 >> spread, 2500).astype(np.uint8)
    np.testing.assert_array_equal(indices(codes, spread), slow_indices(codes.tolist(), spread))


@settings(max_examples=30)  # a piece is padded to a million codes
@given(st.integers(2, 4), st.integers(0, 2100), st.integers(0, 2**32 - 1))
def test_the_trellis_of_a_tensor_follows_from_its_levels(spread, size, seed):
    bits = 8 - spread
    codes = np.random.default_rng(seed).integers(0, 1 << bits, size).astype(np.uint8)
    assert trellis.spread_of(bits, 256) == spread
    found = trellis.indices_of_piece(codes, spread)
    visited = [turn * interleave.last_order(size).stride % size for turn in range(size)]
    np.testing.assert_array_equal(found[visited], slow_indices(codes[visited].tolist(), spread))


def test_blocks_are_visited_one_after_another():
    """Two whole blocks and a rest under jit, and in pieces on the host."""
    size = 2 * interleave.BLOCK + 12345
    codes = np.random.default_rng(1).integers(0, 16, size).astype(np.uint8)
    found = np.asarray(jax.jit(trellis.level_indices, static_argnums=1)(codes, 4))
    for start in range(0, size, interleave.BLOCK):
        piece = slice(start, start + interleave.BLOCK)
        np.testing.assert_array_equal(found[piece], trellis.indices_of_piece(codes[piece], 4))


@settings(max_examples=30)
@given(st.integers(1, interleave.BLOCK))
def test_every_weight_is_visited_once_at_its_turn(size):
    order = interleave.order_of(size)
    visited = np.arange(size) * order.stride % size
    assert np.bincount(visited, minlength=size).max() == 1
    np.testing.assert_array_equal(visited * order.inverse % size, np.arange(size))


@pytest.mark.parametrize("size", [1, 1000, interleave.BLOCK - 1, interleave.BLOCK + 7])
def test_arrays_are_put_in_that_order_and_back(size):
    x = np.arange(size)
    found = np.asarray(interleave.in_turn(jnp.asarray(x)))
    for start in range(0, size, interleave.BLOCK):
        order = interleave.order_of(min(interleave.BLOCK, size - start))
        visited = start + np.arange(order.size) * order.stride % order.size
        np.testing.assert_array_equal(found[start : start + order.size], visited)
    np.testing.assert_array_equal(interleave.in_place(found), x)


def test_runs_of_large_weights_cost_no_more_than_as_many_apart():
    """As the taps of a depthwise kernel: one of 25 has weights five times as large."""
    rng = np.random.default_rng(6)
    w = rng.laplace(size=(25, 600)) * np.where(np.arange(25) == 12, 5, 1)[:, None]
    apart = rng.permutation(w.reshape(-1)).reshape(w.shape)
    together, mixed = (
        corrq.quantize({"kernel": a.astype(np.float32)}, bits=3, coding="trellis")[1].rows[0].noise
        for a in (w, apart)
    )
    assert together < 1.05 * mixed  # 1.33 times, if visited as they lie


@pytest.mark.parametrize(("bits", "spread", "count"), [(1, 2, 9), (1, 4, 9), (2, 3, 4)])
def test_no_other_codes_have_a_smaller_error(bits, spread, count):
    rng = np.random.default_rng(bits)
    levels = np.sort(rng.normal(size=2 ** (bits + spread))).astype(np.float32)
    x = rng.normal(size=(5, count)).astype(np.float32)
    codes = np.asarray(encode(x, padded(levels), bits, spread))
    assert codes.max() < 2**bits

    def error(row, some):
        return ((row - levels[slow_indices(some, spread)]) ** 2).sum()

    for row, found in zip(x, codes.tolist(), strict=True):
        least = min(error(row, some) for some in itertools.product(range(2**bits), repeat=count))
        assert error(row, found) <= least * (1 + 1e-5)  # sums of floats in another order


def test_segments_do_not_know_each_other():
    x = np.random.default_rng(2).normal(size=(67, 1024)).astype(np.float32)  # two blocks of lanes
    levels = padded(np.linspace(-3, 3, 32))
    together = np.asarray(encode(x, levels, 2, 3))
    for i in (0, 63, 64, 66):
        np.testing.assert_array_equal(together[i], encode(x[i : i + 1], levels, 2, 3)[0])
    np.testing.assert_array_equal(together[:60], encode(x, levels, 2, 3, 60)[:60])
    at = np.asarray(indices(together.reshape(-1), 3)).reshape(x.shape)
    np.testing.assert_array_equal(at[5], indices(together[5], 3))


@pytest.mark.parametrize(
    ("draw", "bits", "most"),
    [
        # Noise was .65, .52, .43, .34, .38 and .23 of that of the best levels (with 32 states and
        # twice as many levels .70, .68, .61, .59, .66 and .49); a few percent are left for luck.
        (partial(np.random.Generator.normal, size=1 << 16), 2, 0.68),
        (partial(np.random.Generator.normal, size=1 << 16), 4, 0.55),
        (partial(np.random.Generator.laplace, size=1 << 16), 2, 0.46),
        (partial(np.random.Generator.laplace, size=1 << 16), 4, 0.36),
        (partial(np.random.Generator.standard_t, df=4, size=1 << 16), 2, 0.42),
        (partial(np.random.Generator.standard_t, df=4, size=1 << 16), 4, 0.27),
    ],
)
def test_it_leaves_much_less_noise_than_the_best_levels(draw, bits, most):
    batch, x = batched(draw(np.random.default_rng(3)))
    rungs = ladder.ladders_by_width(batch, 1)
    levels = 2 ** (bits + 4)
    far = padded(rungs.values[0, bits + 1][: levels // 4])[:64]
    fitted = trellis_fit.fit_batch_by_share(batch, repeated(far), bits, repeated(np.int32(4)), 1)
    values = np.asarray(fitted.levels[0])
    assert (np.diff(values[:levels]) >= 0).all()
    assert np.isinf(values[levels:]).all()
    codes = encode(x.astype(np.float32).reshape(-1, 1024), values, bits, 4)
    error = noise(x, values, indices(codes.reshape(-1), 4))
    assert error <= most * float(rungs.noise[0, bits - 1])
    # Shannon's bound, which is known exactly of Gaussian weights.
    if draw.func is np.random.Generator.normal:
        assert error > 4.0**-bits
    # Levels are fitted to a sample, in which there are more far weights than in the tensor.
    assert 0.93 * error < float(fitted.noise[0]) < 1.15 * error


def test_one_compilation_serves_every_width():
    encode(np.zeros((3, 64), np.float32), padded(np.linspace(-1, 1, 16)), 2, 2)
    before = encode._cache_size()
    encode(np.zeros((3, 64), np.float32), padded(np.linspace(-1, 1, 256)), 4, 4)
    assert encode._cache_size() == before
