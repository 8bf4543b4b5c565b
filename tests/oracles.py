"""Slow, independent references in float64 NumPy: nothing here imports corrq_jax."""

import kmeans1d
import numpy as np
import scipy.special
import scipy.stats


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


def quantile_sample(name, size=1_000_000):
    """Quantiles of a unit-variance Gaussian or Laplace density at (i + 1/2) / size, ascending."""
    p = (np.arange(size // 2) + 0.5) / size
    half = scipy.special.ndtri(p) if name == "gaussian" else np.log(2 * p) / np.sqrt(2)
    return np.concatenate([half, -half[::-1]])


def samples(seed=0):
    """Eight tensors of unlike densities and sizes, float32, by name."""
    rng = np.random.default_rng(seed)
    n = 20_000
    outlier = rng.normal(size=n)
    outlier[n // 3] = 1e6
    arrays = {
        "gaussian": quantile_sample("gaussian"),
        "laplace": quantile_sample("laplace"),
        "student": rng.standard_t(2, size=n),
        "uniform": rng.uniform(-1, 2, size=n),
        "bimodal": rng.normal(size=5000) * 0.2 + rng.choice([-1, 3], size=5000),
        "skewed": rng.lognormal(size=n),
        "outlier": outlier,
        "small": rng.laplace(size=300),
    }
    return {name: a.astype(np.float32) for name, a in arrays.items()}


def small_samples(seed=1):
    """Eight tensors of 5 to 1,000 weights, float32; "tiny" is that of docs/method.md, section 4."""
    rng = np.random.default_rng(seed)
    draw = [rng.normal, rng.laplace, rng.exponential, rng.uniform]
    sizes = [5, 6, 9, 17, 40, 350, 1000]
    arrays = {f"n{n}": draw[i % 4](size=n) for i, n in enumerate(sizes)}
    arrays["tiny"] = np.array([-4, -2, -1, -0.5, 0.5, 1, 2, 4])
    return {name: a.astype(np.float32) for name, a in arrays.items()}


def kmeans_noise(w, levels):
    """1 - rho^2 of exact one-dimensional k-means."""
    x = np.asarray(w, np.float64).ravel()
    labels, centers = kmeans1d.cluster(x.tolist(), min(levels, np.unique(x).size))
    error = x - np.asarray(centers)[np.asarray(labels)]
    return float(error @ error / ((x - x.mean()) ** 2).sum())


def noise_of(w, boundaries, values):
    """1 - rho^2 of a quantizer, weight by weight; a weight at a boundary lies below it."""
    w = np.asarray(w, np.float64).ravel()
    return 1 - rho(w, np.asarray(values)[np.searchsorted(boundaries, w, side="left")]) ** 2


def best_uniform(w, bits, centered, rounds=5):
    """Smallest noise of any uniform grid with values on it: centred on zero, or anywhere.

    A lattice over step and centre, then finer lattices around the 12 best points.
    """
    density = Sorted(w)
    count = 2**bits
    spread = np.sqrt(density.square / density.x.size)
    steps = np.linspace(0.01, 8 / max(count / 4, 1), 120) * spread
    centers = np.zeros(1) if centered else np.linspace(-1, 1, 81) * 3 * spread

    def noise(step, center):
        index = np.arange(count) - (count - 1) / 2
        boundaries = center[:, None] + step[:, None] * (index[1:] + index[:-1]) / 2
        return density.noise_of_values(boundaries, index)

    step, center = (a.ravel() for a in np.meshgrid(steps, centers))
    width_s = steps[1] - steps[0]
    width_c = 0 if centered else centers[1] - centers[0]
    for _ in range(rounds):
        found = noise(step, center)
        top = np.argsort(found)[:12]
        fine = np.linspace(-1, 1, 13)
        s = step[top][:, None, None] + width_s * fine[None, :, None]
        c = center[top][:, None, None] + width_c * (fine[None, None, :] if width_c else 0)
        s, c = (a.ravel() for a in np.broadcast_arrays(s, c))
        step, center = s[s > 0], c[s > 0]
        width_s, width_c = width_s / 5, width_c / 5
    return float(min(noise(step, center).min(), found.min()))


def pack(codes, bits):
    """The bit stream of codes, by NumPy's own bits."""
    digits = (np.asarray(codes, np.uint8)[:, None] >> np.arange(bits, dtype=np.uint8)) & 1
    return np.packbits(digits.ravel().astype(np.uint8), bitorder="little")


def histogram(x):
    """{float16 value: how many of x round to it}; minus zero apart from zero."""
    keys, counts = np.unique(
        np.asarray(x, np.float32).astype(np.float16).view(np.uint16), return_counts=True
    )
    return {int(k): int(n) for k, n in zip(keys, counts, strict=True)}


def nf4_levels():
    """The 16 levels as printed in QLoRA (arXiv:2305.14314, appendix E)."""
    return np.array(
        [
            -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
            -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
            0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
            0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
        ]
    )  # fmt: skip


def clipped_moments(mean, deviation, low, high):
    """Mean and variance of a Gaussian clipped to an interval, from its density and distribution."""
    a, b = (low - mean) / deviation, (high - mean) / deviation
    phi, cdf = scipy.stats.norm.pdf, scipy.stats.norm.cdf
    inside = cdf(b) - cdf(a)
    first = mean * inside + deviation * (phi(a) - phi(b)) + low * cdf(a) + high * (1 - cdf(b))
    second = (
        (mean**2 + deviation**2) * inside
        + deviation * ((mean + low) * phi(a) - (mean + high) * phi(b))
        + low**2 * cdf(a)
        + high**2 * (1 - cdf(b))
    )
    return first, second - first**2


def labels(shape, axes, group):
    """The row of each weight, by index arithmetic; an oracle for `Rows`."""
    at, rank = np.indices(shape), len(shape)
    axes = sorted(a % rank for a in axes)
    others = [a for a in range(rank) if a not in axes]

    def ravel(chosen):
        if not chosen:
            return np.zeros(shape, int)
        return np.ravel_multi_index(at[chosen], [shape[a] for a in chosen])

    channels = int(np.prod([shape[a] for a in axes]))
    return ravel(others) // group * channels + ravel(axes)


def labels_of(rows, shape):
    number = np.arange(np.prod(rows.shape)).reshape(rows.shape)
    return np.broadcast_to(rows.expand(number), rows.view(np.empty(shape)).shape).reshape(shape)
