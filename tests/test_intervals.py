"""Intervals, beside SciPy's and beside what they promise: to hold the truth 95 times in 100."""

import numpy as np
import pytest
from scipy import stats

from corrq_jax.intervals import clustered_share_interval, mean_intervals

RNG = np.random.default_rng(0)


def wilson(right, count):
    return tuple(stats.binomtest(right, count).proportion_ci(method="wilson"))


@pytest.mark.parametrize("right", [0, 1, 12, 24])
def test_views_that_agree_count_once(right):
    hits = np.repeat(np.arange(24) < right, 10).reshape(24, 10)
    # The variance of 24 photos has 23 degrees of freedom: they are worth a little less than 24,
    # which is not gone below.
    assert clustered_share_interval(hits) == pytest.approx(wilson(right, 24), abs=1e-6)


def test_views_that_photos_have_no_part_in_count_in_full():
    hits = np.tile(np.arange(10) < 7, (24, 1))
    hits[0, 0] = False  # photos differ, but less than by chance
    assert clustered_share_interval(hits) == pytest.approx(wilson(167, 240), abs=1e-6)


def test_one_view_a_photo_is_wilsons():
    hits = RNG.random((500, 1)) < 0.9
    assert clustered_share_interval(hits) == pytest.approx(wilson(int(hits.sum()), 500), abs=2e-4)


def test_the_true_share_is_held_as_often_as_is_said():
    held = 0
    for _ in range(400):
        of_photo = RNG.beta(4, 1, (40, 1))  # photos differ: the mean of all is 0.8
        low, high = clustered_share_interval(RNG.random((40, 10)) < of_photo)
        held += low <= 0.8 <= high
    # 95 of 100; of 400 trials three standard deviations are 3.3 of 100.
    assert 0.915 < held / 400 < 0.985


def test_means_are_those_of_scipys_bootstrap():
    values = RNG.gamma(0.5, size=(3, 60))
    single, pairs = mean_intervals(values)
    found = stats.bootstrap(
        *((values[0],), np.mean),
        n_resamples=20_000, method="percentile", rng=np.random.default_rng(1),
    ).confidence_interval  # fmt: skip
    # Ends of 2,000 resamples vary by 1/20 of the interval.
    np.testing.assert_allclose(single[0], found, atol=0.1 * (found.high - found.low))
    paired = stats.bootstrap(
        *((values[2], values[1]), lambda a, b, axis: (a - b).mean(axis)),
        paired=True, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1),
    ).confidence_interval  # fmt: skip
    np.testing.assert_allclose(pairs[2, 1], paired, atol=0.1 * (paired.high - paired.low))


def test_differences_have_signs_and_are_paired():
    base = RNG.normal(size=50)
    _, pairs = mean_intervals(np.stack([base, base + 1, base]))
    np.testing.assert_allclose(pairs[1, 0], [1, 1])
    np.testing.assert_allclose(pairs[0, 1], [-1, -1])
    np.testing.assert_array_equal(pairs[0, 2], [0, 0])


def test_the_same_in_each_call():
    values = RNG.random((2, 10))
    np.testing.assert_array_equal(mean_intervals(values)[1], mean_intervals(values)[1])
