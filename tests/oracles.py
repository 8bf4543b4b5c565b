"""Slow, independent references in float64 NumPy: nothing here imports corrq_jax."""

import numpy as np


def rho(w, q):
    """Centred Pearson correlation."""
    w, q = np.asarray(w, np.float64).ravel(), np.asarray(q, np.float64).ravel()
    w, q = w - w.mean(), q - q.mean()
    return float(w @ q / np.sqrt((w @ w) * (q @ q)))


class Sorted:
    """Sorted weights with running sums: the noise 1 - rho^2 of any boundaries in O(levels)."""

    def __init__(self, w):
        x = np.sort(np.asarray(w, np.float64).ravel())
        self.mean = x.mean()
        self.x = x
        self.sum = np.concatenate([[0.0], np.cumsum(x - self.mean)])
        self.square = float(((x - self.mean) ** 2).sum())

    def cells(self, boundaries):
        """Mass and moment of the cells of (..., levels - 1) boundaries; at a boundary is below."""
        edge = np.searchsorted(self.x, boundaries, side="right")
        zero = np.zeros((*edge.shape[:-1], 1), int)
        edge = np.concatenate([zero, edge, zero + self.x.size], axis=-1)
        return np.diff(edge, axis=-1), np.diff(self.sum[edge], axis=-1)

    def noise_of_means(self, boundaries):
        mass, moment = self.cells(boundaries)
        between = np.where(mass > 0, moment**2 / np.maximum(mass, 1), 0).sum(-1)
        return 1 - between / self.square

    def noise_of_values(self, boundaries, values):
        mass, moment = self.cells(boundaries)
        mean = (mass * values).sum(-1, keepdims=True) / self.x.size
        centered = values - mean
        covariance = (moment * centered).sum(-1)
        variance = (mass * centered**2).sum(-1)
        with np.errstate(divide="ignore", invalid="ignore"):
            rho2 = np.where(variance > 0, covariance * np.abs(covariance) / variance, 0)
        return 1 - rho2 / self.square


def linear_candidates(w, bits, positions=100):
    """Boundaries and values of all uniform grids between pairs of quantiles and even positions."""
    x = np.sort(np.asarray(w, np.float64).ravel())
    levels = 2**bits
    at = np.unique(
        np.concatenate(
            [
                np.quantile(x, np.linspace(0.0005, 0.9995, positions // 2)),
                np.linspace(x[0], x[-1], positions // 2 + 2)[1:-1],
            ]
        )
    )
    i, j = np.triu_indices(at.size, 1)
    first, last = at[i][:, None], at[j][:, None]
    step = (last - first) / (levels - 2)
    boundaries = first + step * np.arange(levels - 1)
    values = np.broadcast_to(np.arange(levels, dtype=float), (i.size, levels))
    return boundaries, values


def exponential_candidates(w, bits, zero=False, steps=80):
    """Boundaries and values of exponential grids over scale and ratio."""
    largest = np.abs(np.asarray(w, np.float64)).max()
    side = 2 ** (bits - 1) - int(zero)
    scales = largest * np.concatenate(
        [np.geomspace(1e-3, 1, steps // 2), np.linspace(0.02, 1, steps // 2)]
    )
    octaves = np.geomspace(0.3, 25, steps)
    s, o = (a.ravel()[:, None] for a in np.meshgrid(scales, octaves))
    ratio = 2.0 ** (-o / max(side - 1, 1))
    positive = s * ratio ** np.arange(side - 1, -1, -1.0)
    middle = np.zeros((s.size, int(zero)))
    values = np.concatenate([-positive[:, ::-1], middle, positive], axis=1)
    return (values[:, 1:] + values[:, :-1]) / 2, values


def brute_force(w, bits, grid, levels, zero=False, block=2000, **finer):
    """The smallest noise 1 - rho^2 over the candidates of a grid."""
    density = Sorted(w)
    make = {"linear": linear_candidates, "exponential": exponential_candidates}[grid]
    arguments = {"zero": zero} if grid == "exponential" else {}
    boundaries, values = make(w, bits, **arguments, **finer)
    best = np.inf
    for start in range(0, len(boundaries), block):
        part = slice(start, start + block)
        if levels == "mean":
            noise = density.noise_of_means(boundaries[part])
        else:
            noise = density.noise_of_values(boundaries[part], values[part])
        best = min(best, float(noise.min()))
    return best
