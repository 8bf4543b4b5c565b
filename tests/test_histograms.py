"""Histograms and cells of single tensors, beside what NumPy says of all weights at once."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import corrq_jax as corrq
from corrq_jax import histograms
from corrq_jax.histograms import BINS, entropy_of_codes, histogram, level_table

RNG = np.random.default_rng(0)


def quantized(w, **options):
    return corrq.quantize({"w": w}, **options)[0]["w"]


def test_the_histogram_is_numpys():
    w = RNG.normal(size=(30, 40)).astype(np.float32)
    found = histogram(w)
    assert (found.low, found.high, found.size) == (w.min(), w.max(), 1200)
    np.testing.assert_array_equal(found.counts, np.histogram(np.float64(w), BINS)[0])


def test_outliers_are_outside_of_the_bins():
    w = np.append(RNG.normal(size=50_000), [80.0, -90.0])
    found = histogram(w)
    assert (found.minimum, found.maximum) == (-90, 80)
    assert 3 < found.high < 4
    inside = (w >= found.low) & (w <= found.high)
    assert sum(found.counts) == inside.sum()
    assert 0.998 < inside.mean() < 0.9995


def test_large_tensors_are_read_in_pieces(monkeypatch):
    w = RNG.normal(size=5000).astype(np.float32)
    tensor = quantized(w.reshape(50, 100), bits=4)
    whole = histogram(w), level_table(w, tensor)
    monkeypatch.setattr(histograms, "_PIECE", 701)
    assert (histogram(w), level_table(w, tensor)) == whole


@given(
    hnp.arrays(
        np.float32,
        st.integers(1, 400),
        elements=st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False),
    )
)
def test_any_finite_weights_have_a_histogram(w):
    found = histogram(w)
    assert found.low < found.high
    assert found.minimum == w.min()
    assert found.maximum == w.max()
    assert sum(found.counts) <= w.size == found.size


@pytest.mark.parametrize("grid", ["optimal", "linear", "exponential"])
def test_cells_cut_the_weights_as_the_codes_do(grid):
    w = RNG.laplace(size=(60, 50)).astype(np.float32)
    tensor = quantized(w, bits=4, grid=grid)
    found = level_table(w, tensor)
    assert found is not None
    assert found.histogram is None
    levels, boundaries = np.array(found.levels), np.array(found.boundaries)
    assert len(boundaries) == len(levels) - 1
    for low, cut, high in zip(levels, boundaries, levels[1:], strict=False):
        assert low < cut < high
    # Six digits: a weight beside a boundary may fall on the other side.
    decoded = levels[np.searchsorted(boundaries, w.astype(np.float64).ravel())]
    expected = np.asarray(tensor.dequantize()).ravel()
    close = np.isclose(decoded, expected, rtol=1e-5, atol=1e-7)
    assert close.mean() > 0.999


def test_cells_of_scaled_weights_are_in_units_of_scales():
    scales = np.geomspace(0.01, 1, 40)
    w = (RNG.normal(size=(500, 40)) * scales).astype(np.float32)
    tensor = quantized(w, bits=3, granularity="channel")
    found = level_table(w, tensor)
    assert found is not None
    own = found.histogram
    assert own is not None
    units = w / np.float64(tensor.scales).reshape(1, 40)
    assert (own.minimum, own.maximum, own.size) == (units.min(), units.max(), w.size)
    np.testing.assert_allclose(found.levels, tensor.levels, rtol=1e-5)
    cut = np.searchsorted(found.boundaries, units.ravel())
    # Scales are fitted anew to the codes, so that cells overlap by a few weights.
    assert (cut == tensor.unpacked()).mean() > 0.98


def test_weights_without_a_scale_have_no_cell():
    w = RNG.normal(size=(500, 4)).astype(np.float32)
    w[:, 2] = 0
    tensor = quantized(w, bits=3, granularity="channel")
    found = level_table(w, tensor)
    assert found is not None
    assert found.histogram is not None
    assert found.histogram.size == 1500


def test_more_levels_than_can_be_drawn(monkeypatch):
    tensor = quantized(w := RNG.normal(size=(60, 50)).astype(np.float32), bits=4)
    monkeypatch.setattr(histograms, "MOST_LEVELS", 16)
    found = level_table(w, tensor)
    assert found is not None
    assert len(found.levels) == 16
    monkeypatch.setattr(histograms, "MOST_LEVELS", 15)
    assert level_table(w, tensor) is None


def test_the_entropy_of_codes():
    w = np.repeat(np.float32([-1, 0, 2, 5]), [4, 2, 1, 1]).reshape(2, 4)
    tensor = quantized(w, bits=4)
    assert entropy_of_codes(tensor) == pytest.approx(1.75)  # 1/2 + 2/4 + 2 * 3/8
    counts = [len(list(group)) for _, group in itertools.groupby(np.sort(tensor.unpacked()))]
    assert counts == [4, 2, 1, 1]


def test_the_entropy_of_codes_along_a_long_history():
    """These have no symbols: it is that of the codes."""
    w = np.random.default_rng(0).standard_t(4, (120, 90)).astype(np.float32)
    tensor = corrq.quantize({"kernel": w}, bits=2, coding="trellis")[0]["kernel"]
    assert tensor.spread == 3
    shares = np.bincount(tensor.unpacked()) / w.size
    assert entropy_of_codes(tensor) == pytest.approx(-(shares * np.log2(shares)).sum())
