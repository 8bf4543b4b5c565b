"""Confidence intervals against scipy, their definitions, and what they promise: coverage."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from corrq_jax.errors import InputError
from corrq_jax.evaluation import change_interval, metrics_from_logits, share_interval


@given(st.data(), st.integers(1, 10_000))
def test_a_share_as_scipy_has_it(data, count):
    right = data.draw(st.integers(0, count))
    expected = stats.binomtest(right, count).proportion_ci(0.95, method="wilson")
    # Both are a few float64 operations on numbers up to 1.
    assert share_interval(right, count) == pytest.approx((expected.low, expected.high), abs=1e-12)


def change_by_definition(lost, gained, count):
    """Mean and deviation of the pictures' changes, half a picture added to each of four cells."""
    changes, weights = [-1, 0, 1], [lost + 0.5, count - lost - gained + 1, gained + 0.5]
    mean = np.average(changes, weights=weights)
    error = math.sqrt(np.average((changes - mean) ** 2, weights=weights) / (count + 2))
    low, high = stats.norm.interval(0.95, mean, error)
    return max(low, -1), min(high, 1)


@given(st.data(), st.integers(1, 10_000))
def test_a_change_by_its_definition(data, count):
    lost = data.draw(st.integers(0, count))
    gained = data.draw(st.integers(0, count - lost))
    expected = change_by_definition(lost, gained, count)
    assert change_interval(lost, gained, count) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("lost", "gained"), [(0.02, 0.01), (0.1, 0.1), (0.3, 0.05)])
def test_a_change_is_covered(lost, gained):
    """The share of samples whose interval holds the truth, exactly, over all tables of a sample."""
    count, covered = 60, 0.0
    table = stats.multinomial(count, [lost, gained, 1 - lost - gained])
    pairs = [(b, c) for b in range(count + 1) for c in range(count + 1 - b)]
    chances = table.pmf([(b, c, count - b - c) for b, c in pairs])
    for pair, chance in zip(pairs, chances, strict=True):
        low, high = change_interval(*pair, count)
        covered += chance * (low <= gained - lost <= high)
    # Counts are whole, so that no interval covers exactly 95 %; with rare changes it covers more.
    assert 0.94 < covered <= 1


def test_bad_counts():
    for right, count in ((3, 2), (-1, 2), (0, 0)):
        with pytest.raises(InputError, match="at least 1"):
            share_interval(right, count)
    for lost, gained, count in ((2, 2, 3), (-1, 0, 3), (0, 0, 0)):
        with pytest.raises(InputError, match="at least 1"):
            change_interval(lost, gained, count)


def test_lost_and_gained():
    rng = np.random.default_rng(0)
    before, after = rng.normal(size=(2, 50, 4)).astype(np.float32)
    labels = rng.integers(-1, 4, 50)
    after[:20] = before[:20]
    after[0, 1] = np.nan  # never right
    right_before, right_after = before.argmax(1) == labels, after.argmax(1) == labels
    right_after[0] = False
    found = metrics_from_logits(after, labels, before)
    assert found.lost == (right_before & ~right_after).sum() > 0
    assert found.gained == (right_after & ~right_before).sum() > 0
    assert found.gained - found.lost == right_after.sum() - right_before.sum()
    assert metrics_from_logits(after, labels).lost is None
    unknown = metrics_from_logits(after, np.full(50, -1), before)
    assert (unknown.lost, unknown.gained) == (None, None)
