"""How far measured shares and means may be from those of all pictures: 95 % intervals.

Views of one photo resemble each other, so that it is photos, not views, that are drawn anew.
"""

from collections.abc import Iterator

import numpy as np

from corrq_jax.metrics import share_interval

RESAMPLES = 2000
_QUANTILES = (0.025, 0.975)


def clustered_share_interval(hits: np.ndarray) -> tuple[float, float]:
    """Wilson's interval of the share of hits, for as many pictures as the views are worth.

    Views count in full if photos differ no more than independent pictures in their place would.
    Where all views of a photo agree, only photos count (the design effect of Kish 1965).

    Args:
        hits: bool[photos, views].

    >>> [round(x, 3) for x in clustered_share_interval(np.ones((24, 10), bool))]
    [0.862, 1.0]
    """
    photos, views = hits.shape
    means = hits.mean(1)
    share = float(means.mean())
    between = float(means.var(ddof=1)) / photos if photos > 1 else 0.0
    worth = share * (1 - share) / between if between > 0 else photos
    worth = min(max(worth, photos), photos * views)
    return share_interval(share * worth, worth)


def mean_intervals(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bootstrap intervals of means over photos, and of the differences of any two.

    Photos are drawn with replacement, the same ones for all networks, so that differences are
    paired.

    Args:
        values: float[networks, photos].

    Returns:
        float64[networks, 2] and float64[networks, networks, 2]: of the mean of the first network
        less that of the second.
    """
    means = np.concatenate(list(_resampled_means(np.asarray(values, np.float64))))
    single = np.quantile(means, _QUANTILES, axis=0).T
    pairs = np.zeros((means.shape[1], means.shape[1], 2))
    for i in range(means.shape[1] - 1):
        differences = means[:, i, None] - means[:, i + 1 :]
        found = np.quantile(differences, _QUANTILES, axis=0).T
        pairs[i, i + 1 :] = found
        pairs[i + 1 :, i] = -found[:, ::-1]
    return single, pairs


def _resampled_means(values: np.ndarray) -> Iterator[np.ndarray]:
    """float64[some, networks], until there are `RESAMPLES`; the same ones in each call."""
    rng, photos = np.random.default_rng(0), values.shape[1]
    some = 50
    for _ in range(RESAMPLES // some):
        drawn = rng.integers(0, photos, (some, photos))
        weights = np.stack([np.bincount(row, minlength=photos) for row in drawn])
        yield weights @ values.T / photos
