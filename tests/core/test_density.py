"""The density: exact integer counts by float16 key, in normalized units."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

import corrq_jax as corrq
from corrq_jax import encoding
from corrq_jax import leaf as leaves
from corrq_jax.core import density as core
from corrq_jax.core.fit import fit_batch

RNG = np.random.default_rng(0)
LARGE = core.SORTED_SIZE + 1
accumulate = jax.jit(core.accumulate)
density = jax.jit(core.density)


def norm_of(w):
    w = np.asarray(w, np.float32)
    return core.normalization(w.min(), w.max())


def counts_of(*chunks, norm):
    counts = core.empty_counts()
    for chunk in chunks:
        counts = accumulate(counts, chunk, np.int32(chunk.size), norm)
    return np.asarray(counts)


def as_histogram(counts):
    """{float16 bit pattern: count} of a binned density."""
    index = np.flatnonzero(counts)
    points = core.BIN_POINTS[index].astype(np.float16)
    return dict(zip(points.view(np.uint16).tolist(), counts[index].tolist(), strict=True))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_counts_are_a_histogram_of_float16_keys(dtype):
    w = jnp.asarray(RNG.standard_t(3, size=LARGE), dtype)
    found, norm = density(w)
    x = np.asarray(w, np.float32) * np.float32(norm.scale)
    assert found.counts.dtype == jnp.int32
    assert float(norm.center) == 0
    assert as_histogram(np.asarray(found.counts)) == oracles.histogram(x)


def test_points_are_every_float16_and_ascend():
    assert (np.diff(core.BIN_POINTS) >= 0).all()
    finite = np.unique(core.BIN_POINTS)
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
    np.testing.assert_array_equal(finite, np.unique(every[np.isfinite(every)]))


def test_key_is_the_index_of_its_point():
    inside = np.arange(1024, core.BINS - 1024)  # outside are the patterns of NaN and infinity
    np.testing.assert_array_equal(core.key(jnp.asarray(core.BIN_POINTS[inside])), inside)


def test_key_is_monotone():
    x = np.sort(RNG.normal(size=20_000) * 10.0 ** RNG.integers(-6, 5, size=20_000))
    assert (np.diff(np.asarray(core.key(jnp.asarray(x, jnp.float32)))) >= 0).all()


def test_merging_counts_is_concatenating_weights_in_any_order():
    w = RNG.normal(size=3000).astype(np.float32)
    norm = norm_of(w)
    parts = w.reshape(3, 1000)
    whole = counts_of(w, norm=norm)
    np.testing.assert_array_equal(whole, sum(counts_of(p, norm=norm) for p in parts))
    np.testing.assert_array_equal(whole, counts_of(*parts[::-1], norm=norm))
    np.testing.assert_array_equal(whole, counts_of(w[RNG.permutation(w.size)], norm=norm))


def test_equal_weights_are_counted_past_what_float32_can():
    chunk = np.full(core.CHUNK, 0.3, np.float32)
    norm = norm_of([-1, 1])
    counts = core.empty_counts()
    for _ in range(20):
        counts = accumulate(counts, chunk, np.int32(chunk.size), norm)
    counts = accumulate(counts, chunk, np.int32(1), norm)
    assert int(counts.max()) == int(counts.sum()) == 20 * core.CHUNK + 1 > 2**24


@pytest.mark.parametrize("valid", [1, 7, 10])
def test_padding_is_not_counted(valid):
    w = RNG.normal(size=10).astype(np.float32)
    norm = norm_of(w)
    padded = np.pad(w[:valid], (0, 10 - valid), mode="edge")
    counts = accumulate(core.empty_counts(), padded, np.int32(valid), norm)
    np.testing.assert_array_equal(counts, counts_of(w[:valid], norm=norm))


def test_last_piece_of_a_tensor_of_several_chunks():
    w = np.concatenate([np.full(core.CHUNK, -1, np.float32), np.full(5, 2, np.float32)])
    found, _ = density(w)
    assert sorted(np.asarray(found.counts[found.counts > 0]).tolist()) == [5, core.CHUNK]


@pytest.mark.parametrize("size", [1, 2, 100, core.SORTED_SIZE])
def test_small_tensors_keep_each_distinct_weight(size):
    w = RNG.integers(-50, 50, size=size).astype(np.float32)
    found, norm = density(w)
    occupied = np.asarray(found.counts) > 0
    points = np.asarray(found.points)
    x = np.asarray(norm.apply(jnp.asarray(w)))
    values, counts = np.unique(x, return_counts=True)
    assert found.counts.dtype == jnp.int32
    assert (np.diff(points) >= 0).all()
    np.testing.assert_array_equal(points[occupied], values)
    np.testing.assert_array_equal(np.asarray(found.counts)[occupied], counts)


@pytest.mark.parametrize(
    ("lo", "hi"),
    [(-1, 1), (0, 1e30), (-1e30, 1), (-3e-30, 1e-31), (1, 1), (100, 101), (-3, -2), (0, 0)],
)
def test_normalization_is_exact_and_fills_float16(lo, hi):
    lo, hi = np.float32(lo), np.float32(hi)
    norm = core.normalization(lo, hi)
    mantissa, _ = np.frexp(float(norm.scale))
    assert mantissa == 0.5, "the scale is a power of two"
    w = np.linspace(lo, hi, 1001, dtype=np.float32)
    x = np.asarray(norm.apply(jnp.asarray(w)), np.float64)
    expected = (w.astype(np.float64) - float(norm.center)) * float(norm.scale)
    np.testing.assert_array_equal(x, expected)
    largest = np.abs(x).max()
    assert (2**14 <= largest < 2**15) or lo == hi


@pytest.mark.parametrize("center", [1e3, -1e3, 1e-20, -1e20])
def test_a_narrow_range_away_from_zero_is_centered(center):
    """Uncentered, float16 would leave a range of 1e-4 of its distance from zero one or two bins."""
    w = (center * (1 + 1e-4 * np.linspace(0, 1, 4000))).astype(np.float32)
    norm = norm_of(w)
    assert float(norm.center) != 0
    x = np.asarray(norm.apply(jnp.asarray(w)), np.float64)
    np.testing.assert_array_equal(
        x, (w.astype(np.float64) - float(norm.center)) * float(norm.scale)
    )
    keys = np.unique(np.asarray(core.key(jnp.asarray(x, jnp.float32))))
    assert keys.size > 0.3 * np.unique(w).size


def test_zero_is_in_place_unless_all_weights_are_on_one_side():
    for lo, hi in [(-1, 3), (0, 5), (1, 3.5), (-7, -2)]:
        assert float(core.normalization(np.float32(lo), np.float32(hi)).center) == 0


@pytest.mark.parametrize("shape", [(131, 257), (9, 31)])
def test_whole_tensor_and_its_pieces_agree(shape):
    w = RNG.normal(size=shape).astype(np.float32)
    whole, norm = density(w)
    pieces, norm_of_pieces = leaves.measure(leaves.read("w", w))
    assert norm == norm_of_pieces
    np.testing.assert_array_equal(whole.counts, pieces.counts)
    np.testing.assert_array_equal(whole.points, pieces.points)


def test_one_compilation_serves_all_shapes():
    jitted = {
        "normalization": leaves._normalization,
        "accumulate": leaves._accumulate,
        "from_sorted": leaves._from_sorted.jitted,
        "lookup_table": encoding._lookup_table.jitted,
        "codes_by_table": encoding._codes_by_table,
        "codes_by_search": encoding._codes_by_search,
        "fit_batch": fit_batch.jitted,
    }

    def tree(*shapes):
        return {str(i): RNG.normal(size=s).astype(np.float32) for i, s in enumerate(shapes)}

    corrq.quantize(tree((8, 8), (150, 150)), bits=4)
    before = {name: f._cache_size() for name, f in jitted.items()}
    many = [(3, 3, 4, n) for n in range(2, 12)]
    corrq.quantize(tree((300, 200), (7, 9), (2, 20_000), (5, 1100, 1000), *many), bits=4)
    assert {name: f._cache_size() for name, f in jitted.items()} == before


def test_snapped_boundaries_cut_no_bin():
    boundaries = jnp.asarray(np.sort(np.random.default_rng(5).normal(size=200) * 1000), jnp.float32)
    snapped = core.snap(boundaries)
    np.testing.assert_array_equal(core.snap(snapped), snapped)
    np.testing.assert_array_equal(core.bins_below(snapped), core.bins_below(boundaries))
    # Half of float16's spacing either way, which is at most 2**-10 of a number.
    np.testing.assert_allclose(snapped, boundaries, rtol=2**-10.9)
