"""Codes: assignment to cells, and packing to b bits."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corrq_jax.core import coding
from corrq_jax.core.density import BIN_EDGES, BIN_POINTS, BINS, key, snap

RNG = np.random.default_rng(0)
by_search = jax.jit(coding.assign_by_search)
by_table = jax.jit(coding.assign_by_table)
lookup_table = jax.jit(coding.lookup_table)


def random_codes(size, bits):
    return RNG.integers(0, 2**bits, size=size).astype(np.uint8)


@pytest.mark.parametrize("bits", range(1, 9))
# Fewer than what a pattern of bytes holds, as many, and more, with and without a rest.
@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 100_003])
def test_pack_is_numpys_bit_stream_and_unpack_its_inverse(bits, size):
    codes = random_codes(size, bits)
    packed = coding.pack(codes, bits)
    assert packed.dtype == jnp.uint8
    assert packed.size == coding.packed_size(size, bits) == -(-size * bits // 8)
    np.testing.assert_array_equal(packed, oracles.pack(codes, bits))
    unpacked = coding.unpack(packed, size, bits)
    assert unpacked.dtype == jnp.uint8
    np.testing.assert_array_equal(unpacked, codes)


@given(bits=st.integers(1, 8), size=st.integers(0, 70), data=st.data())
@settings(max_examples=60, deadline=None)
def test_pack_and_unpack_any_codes(bits, size, data):
    codes = data.draw(st.lists(st.integers(0, 2**bits - 1), min_size=size, max_size=size))
    codes = np.array(codes, np.uint8)
    # Padded to one shape a bit width: every size goes through, few compile.
    padded = np.pad(codes, (0, 72 - size))
    packed = np.asarray(coding.pack(padded, bits))
    np.testing.assert_array_equal(packed, oracles.pack(padded, bits))
    kept = packed[: coding.packed_size(size, bits)]
    again = coding.unpack(np.pad(kept, (0, packed.size - kept.size)), 72, bits)
    np.testing.assert_array_equal(np.asarray(again)[:size], codes)


@pytest.mark.parametrize(
    ("bits", "codes", "expected"),
    [
        (1, [1, 0, 0, 0, 0, 0, 0, 1, 1], [0b10000001, 0b1]),
        (2, [1, 2, 3, 0], [0b00111001]),
        (3, [1, 2, 3], [0b11010001, 0b0]),
        (3, [0, 1, 2, 3, 4, 5, 6, 7], [0b10001000, 0b11000110, 0b11111010]),
        (4, [1, 2, 3], [0x21, 0x3]),
        (5, [31, 0, 1], [0b00011111, 0b00000100]),
        (8, [7, 255], [7, 255]),
    ],
)
def test_literal_bytes(bits, codes, expected):
    assert coding.pack(jnp.array(codes, jnp.uint8), bits).tolist() == expected


def test_three_bits_take_three_eighths_of_a_byte():
    assert coding.packed_size(8_000_000, 3) == 3_000_000
    assert [coding.packed_size(n, 3) for n in range(4)] == [0, 1, 1, 2]


@pytest.mark.parametrize("bits", [3, 8])
def test_pack_and_unpack_vmap(bits):
    codes = random_codes((4, 33), bits)
    packed = jax.vmap(lambda c: coding.pack(c, bits))(codes)
    np.testing.assert_array_equal(packed, [oracles.pack(c, bits) for c in codes])
    np.testing.assert_array_equal(jax.vmap(lambda p: coding.unpack(p, 33, bits))(packed), codes)


def spread_boundaries(count):
    """Boundaries of which no two share a bin."""
    points = BIN_POINTS[np.abs(BIN_POINTS) < 30_000]
    return np.sort(RNG.choice(np.unique(points), count, replace=False)) * np.float32(1 + 2e-5)


def weights_for(boundaries):
    """Random weights, the boundaries themselves, and their neighbours in float32 and float16."""
    wide = RNG.normal(size=4000) * 10.0 ** RNG.uniform(-6, 4, size=4000)
    around = [np.nextafter(boundaries, s, dtype=np.float32) for s in (-np.inf, np.inf)]
    halves = boundaries.astype(np.float16).astype(np.float32)
    x = np.concatenate([wide, boundaries, *around, halves, [0.0, -0.0, 32767, -32767]])
    return RNG.permutation(np.clip(x, -32767, 32767).astype(np.float32))


@pytest.mark.parametrize("count", [1, 254, 255])
def test_table_and_search_agree_with_numpy(count):
    boundaries = np.asarray(snap(jnp.asarray(spread_boundaries(count))))
    x = weights_for(boundaries)[:5000]
    expected = np.searchsorted(boundaries, x, side="left")
    table, exact = lookup_table(boundaries)
    assert exact
    codes = by_table(x, table)
    assert codes.dtype == by_search(x, boundaries).dtype == jnp.uint8
    np.testing.assert_array_equal(codes, expected)
    np.testing.assert_array_equal(by_search(x, boundaries), expected)


def test_a_weight_at_a_boundary_lies_below_it():
    boundaries = np.asarray(snap(jnp.array([-1.5, 0.0, 0.1, 1000.3], jnp.float32)))
    table, exact = lookup_table(boundaries)
    assert exact
    above = np.nextafter(boundaries, np.inf, dtype=np.float32)
    for assign in (by_search, lambda x, b: by_table(x, table)):
        np.testing.assert_array_equal(assign(boundaries, boundaries), [0, 1, 2, 3])
        np.testing.assert_array_equal(assign(above, boundaries), [1, 2, 3, 4])


def test_equal_boundaries_leave_a_cell_empty():
    boundaries = np.array([1, 1, 2], np.float32)
    np.testing.assert_array_equal(by_search(np.float32([1, 1.5, 2.5]), boundaries), [0, 2, 3])


def test_boundaries_within_a_bin_are_noticed():
    edges = snap(jnp.array([1.0, 1.0, 2.0], jnp.float32))
    assert lookup_table(edges)[1]
    assert not lookup_table(edges.at[2].add(1e-4))[1]


def test_edges_of_all_bins_are_the_last_float32_of_theirs():
    inside = slice(2048, BINS - 2048)  # without the unused patterns of infinity and NaN
    edges, index = BIN_EDGES[inside], np.arange(BINS)[inside]
    below_zero = index != BINS // 2 - 1  # no comparison separates -0 from 0
    np.testing.assert_array_equal(np.asarray(key(edges))[below_zero], index[below_zero])
    above = np.nextafter(edges, np.float32(np.inf))[below_zero]
    np.testing.assert_array_equal(key(above), index[below_zero] + 1)


def test_jit_is_eager_and_vmap_is_a_loop():
    boundaries = np.stack([snap(jnp.asarray(spread_boundaries(15))) for _ in range(3)])
    x = np.stack([weights_for(b)[:500] for b in boundaries])
    tables, _ = jax.jit(jax.vmap(coding.lookup_table))(boundaries)
    by_vmap = jax.jit(jax.vmap(coding.assign_by_table))(x, tables)
    search_by_vmap = jax.jit(jax.vmap(coding.assign_by_search))(x, boundaries)
    for i in range(3):
        xi, b = jnp.asarray(x[i]), jnp.asarray(boundaries[i])
        table, _ = coding.lookup_table(b)
        eager = coding.assign_by_table(xi, table)
        np.testing.assert_array_equal(tables[i], table)
        np.testing.assert_array_equal(by_table(xi, table), eager)
        np.testing.assert_array_equal(by_vmap[i], eager)
        np.testing.assert_array_equal(search_by_vmap[i], eager)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_decode_looks_levels_up(dtype):
    levels = jnp.array([-1, 0.5, 2], dtype)
    found = coding.decode(jnp.array([[2, 0], [1, 1]], jnp.uint8), levels)
    assert found.dtype == levels.dtype
    assert found.tolist() == [[2, -1], [0.5, 0.5]]
