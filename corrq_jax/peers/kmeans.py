"""One-dimensional k-means: 2**bits free levels, as palettization and look-up-table quantizers have.

Those use k-means1d, which is exact (coremltools' post-training palettization, SqueezeLLM), or
scikit-learn's Lloyd from a random start. Lloyd, Least squares quantization in PCM (1982); the
number of cells at each place is after Panter and Dite, Quantization distortion in pulse-count
modulation with nonuniform spacing of levels (1951).
"""

import numpy as np

from corrq_jax.peers.base import Groups, to_float16

ITERATIONS = 300
_CELLS_BY_DENSITY, _CELLS_BY_MASS = 768, 320
_SAMPLE, _TAIL = 1 << 14, 1 << 12
_SMALLEST_HALF, _LARGEST_HALF = 2.0**-10, 65504.0


def kmeans(groups: Groups, bits: int) -> tuple[np.ndarray, int]:
    """Levels of the least squared error, up to a local optimum close by.

    A dynamic program finds the best levels for weights gathered into about a thousand cells;
    Lloyd's iteration on the weights themselves, in float64, does the rest. Weights of at most
    2**bits distinct values keep them. The error is that of exact k-means but for a fraction of a
    percent, at 8 bits a few percent; scikit-learn with coremltools' settings is worse, as is
    coremltools' fast mode, which rounds the weights first.

    The codebook is float16, as in Core ML's default precision, or float32 where the largest level
    lies outside of [2**-10, 65504], so that rounding it costs next to nothing.

    Args:
        groups: the weights; each group gets a codebook.
        bits: 1 to 8.

    Returns:
        Decoded weights, and the bytes of the codebooks.

    >>> w = np.float32([[-1.0, -0.9, 0.0, 0.1, 1.0]])
    >>> decoded, nbytes = kmeans(Groups(w, np.array([5])), bits=1)
    >>> decoded.astype(float).round(2).tolist(), nbytes
    ([[-0.95, -0.95, 0.37, 0.37, 0.37]], 4)
    """
    decoded, nbytes = np.zeros_like(groups.weights), 0
    for i, count in enumerate(groups.counts):
        w = groups.weights[i, :count]
        levels = _stored(fit(w, 2**bits))
        codes = np.searchsorted((levels[1:] + levels[:-1]) / 2, w)
        decoded[i, :count] = levels[codes]
        nbytes += 2**bits * (2 if _fits_half(levels) else 4)
    return decoded, nbytes


def fit(w: np.ndarray, levels: int) -> np.ndarray:
    """float64, ascending: the levels for flat weights, no more than there are distinct ones."""
    x = np.sort(w).astype(np.float64)
    first = np.append(True, x[1:] != x[:-1])
    if np.count_nonzero(first) <= levels:
        return x[first]
    sums = np.append(0.0, np.cumsum(x))
    edges = _cells(x)
    squares = np.append(0.0, np.cumsum((x - x.mean()) ** 2))[edges]
    start = _program(edges, sums[edges] - edges * x.mean(), squares, levels)
    return _lloyd(x, sums, sums[start[1:]] - sums[start[:-1]], np.diff(start))


def _cells(x: np.ndarray) -> np.ndarray:
    """Ascending indices into sorted weights, 0 and the end among them: the edges of small cells.

    Most are spaced by the cube root of the density, as the best levels are where they are many.
    Between two points of a sample the density is mass / gap, and the integral of its cube root
    mass**(1 / 3) * gap**(2 / 3). The others have equal mass, in case outliers take all the former.
    """
    size = x.size
    if size <= _CELLS_BY_DENSITY + _CELLS_BY_MASS:
        return np.arange(size + 1)
    even = np.linspace(0, size - 1, min(size, _SAMPLE)).astype(int)
    tail = np.arange(min(size, _TAIL))
    at = np.unique(np.concatenate([tail, even, size - 1 - tail]))
    integral = np.append(0.0, np.cumsum(np.cbrt(np.diff(at) * np.diff(x[at]) ** 2)))
    wanted = np.linspace(0, integral[-1], _CELLS_BY_DENSITY)
    by_density = np.interp(wanted, integral, at).astype(int)
    by_mass = np.linspace(0, size, _CELLS_BY_MASS).astype(int)
    return np.unique(np.concatenate([by_density, by_mass]))


def _program(
    edges: np.ndarray, moments: np.ndarray, squares: np.ndarray, levels: int
) -> np.ndarray:
    """The ``levels + 1`` of the edges between which the squared error is least.

    Args:
        edges: how many weights lie below each edge.
        moments: their sum, about the mean of all.
        squares: their sum of squares, about the mean of all.
        levels: at most the number of cells.
    """
    # Entry (end, start) is the error of one level for all weights between two edges.
    mass, moment, square = (a[:, None] - a[None, :] for a in (edges, moments, squares))
    error = np.maximum(square - moment**2 / np.maximum(mass, 1), 0)
    error[mass < 1] = np.inf
    best, starts = error[:, 0], []
    for _ in range(levels - 1):
        total = error + best
        starts.append(total.argmin(axis=1))
        best = np.take_along_axis(total, starts[-1][:, None], axis=1)[:, 0]
    path = [len(edges) - 1]
    for start in reversed(starts):
        path.append(start[path[-1]])
    return edges[[0, *reversed(path)]]


def _lloyd(x: np.ndarray, sums: np.ndarray, total: np.ndarray, mass: np.ndarray) -> np.ndarray:
    """Levels where nothing moves any more, from the sum and number of weights of each cell."""
    levels = total / mass
    for _ in range(ITERATIONS):
        inner = np.searchsorted(x, (levels[1:] + levels[:-1]) / 2)
        ends = np.concatenate([[0], inner, [x.size]])
        mass, total = np.diff(ends), np.diff(sums[ends])
        means = np.where(mass > 0, total / np.maximum(mass, 1), levels)
        if (means == levels).all():
            break
        levels = means
    return levels


def _fits_half(levels: np.ndarray) -> bool:
    return bool(_SMALLEST_HALF <= np.abs(levels).max() <= _LARGEST_HALF)


def _stored(levels: np.ndarray) -> np.ndarray:
    return to_float16(levels) if _fits_half(levels) else levels.astype(np.float32)
