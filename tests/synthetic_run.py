"""A run as a real comparison gives it: methods, mixed bits, peers, layers and densities."""

import numpy as np

from corrq_jax.results import LayerDensity, LayerResult, Result, Run

METHODS = {
    # name: (grid, fit, levels, noise-to-signal at b bits)
    "linear": ("linear", "range", "grid", lambda b: 1.9 * 4.0 ** (-b) * 9),
    "exponential": ("exponential", "range", "grid", lambda b: 1.25 * 3.4 ** (-b) * 2),
    "linear + correlation": ("linear", "correlation", "means", lambda b: 1.35 * 3.85 ** (-b)),
    "exponential + correlation": (
        *("exponential", "correlation", "means"),
        lambda b: 1.25 * 3.65 ** (-b),
    ),
    "optimal": ("optimal", "correlation", "means", lambda b: 1.2 * 3.9 ** (-b)),
    "nf4": ("nf4", "range", "grid", lambda b: 0.016),
    "mixed bits": ("optimal", "correlation", "mean", lambda b: 0.6 * 3.9 ** (-b)),
    "mixed bits, entropy-coded": ("optimal", "correlation", "mean", lambda b: 0.4 * 3.9 ** (-b)),
}
BITS = {
    "nf4": (4,),
    "mixed bits": (2.5, 3.0, 4.0),
    "mixed bits, entropy-coded": (2.0, 2.5, 3.0, 4.0),
}
PEERS = {
    # name: stored bits beside the codes, and noise-to-signal at b bits
    "int absmax, channel": (0.02, lambda b: 9 * 4.0 ** (-b)),
    "int min-max, groups of 64": (0.5, lambda b: 4 * 4.0 ** (-b)),
    "HQQ, groups of 64": (0.5, lambda b: 3 * 4.0 ** (-b)),
    "NF4, blocks of 64": (0.25, lambda b: 0.011),
    "k-means, tensor": (0.01, lambda b: 1.25 * 3.9 ** (-b)),
}
WEIGHTS = 4_652_008
LAYERS = {
    "params/stem/conv/kernel": (3, 3, 3, 32),
    "params/blocks_0/depthwise/kernel": (3, 3, 1, 32),
    "params/blocks_0/project/kernel": (1, 1, 32, 16),
    "params/head/conv/kernel": (1, 1, 320, 1280),
    "params/head/classifier/kernel": (1280, 1000),
}


def synthetic_run(network: str = "EfficientNet-Lite0") -> Run:
    results = tuple(
        _result(method, bits) for method in METHODS for bits in BITS.get(method, range(2, 9))
    )
    peers = tuple(
        _peer(name, bits)
        for name in PEERS
        for bits in ((4,) if name.startswith("NF4") else (2, 3, 4))
    )
    return Run(
        network=network,
        weights=WEIGHTS,
        float_nbytes=4 * WEIGHTS + 21_344,
        photos=24,
        views=240,
        float_top1=0.8125,
        float_top5=0.9625,
        results=(*results, *peers),
        layers={
            result.key: _layers(result)
            for result in results
            if result.key in ("exponential + correlation @ 4", "linear + correlation @ 3")
        },
        densities=(gaussian_density(), laplace_density()),
        environment={
            "jax": "0.10.2",
            "corrq_jax": "0.1.0",
            "hardware": "2 cores of an x86-64 CPU",
        },
    )


def _result(method: str, bits: float) -> Result:
    grid, fit, levels, noise = METHODS[method]
    mixed = method.startswith("mixed")
    return Result(
        method=method,
        grid=grid,
        fit=fit,
        levels=levels,
        bits=bits,
        **_figures(bits - 0.01 if mixed else bits + 0.31, noise(bits)),
        coding="entropy" if method.endswith("entropy-coded") else "packed",
        mixed=mixed,
        matched=mixed,
    )


def _peer(name: str, bits: int) -> Result:
    beside, noise = PEERS[name]
    figures = _figures(bits + beside, noise(bits))
    return Result(name, grid="", fit="", levels="", bits=bits, **figures, granularity="", peer=True)


def _figures(bits_per_weight: float, noise: float) -> dict:
    lost = min(noise, 0.45)
    agreement = float(np.clip(1.02 - 9 * lost, 0, 1))
    return {
        "bits_per_weight": bits_per_weight,
        "file_nbytes": int(WEIGHTS * bits_per_weight / 8),
        "mean_correlation": float(np.sqrt(1 - lost)),
        "min_correlation": float(np.sqrt(1 - 1.6 * lost)),
        "top1": 0.8125 * agreement,
        "top5": 0.9625 * agreement,
        "agreement": agreement,
        "kl": 14 * lost,
        "logit_correlation": float(np.sqrt(1 - lost)),
    }


def _layers(result: Result) -> tuple[LayerResult, ...]:
    return tuple(
        LayerResult(
            path=path,
            shape=shape,
            size=int(np.prod(shape)),
            bits=result.bits,
            correlation=result.mean_correlation - 0.001 * index,
            nbytes=int(np.prod(shape)) * result.bits // 8 + 64,
        )
        for index, (path, shape) in enumerate(LAYERS.items())
    )


def density_of(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Support points and counts on a float16 grid, as a layer's density is measured."""
    return np.unique(weights.astype(np.float16).astype(np.float64), return_counts=True)


def gaussian_density() -> LayerDensity:
    points, counts = density_of(0.04 * np.random.default_rng(0).standard_normal(400_000))
    step = 0.04 * 0.335
    boundaries = step * np.arange(-7, 8)
    return LayerDensity(
        path="params/head/conv/kernel",
        points=points,
        counts=counts,
        boundaries=boundaries,
        levels=step * (np.arange(16) - 7.5),
        bits=4,
        method="linear + correlation",
        correlation=0.994589,
    )


def laplace_density(outlier: float = 3.5) -> LayerDensity:
    """A peaked layer with one weight far out."""
    weights = np.append(0.05 * np.random.default_rng(1).laplace(size=200_000), outlier)
    points, counts = density_of(weights)
    half = 0.3 * 0.64 ** np.arange(7, -1, -1.0)
    return LayerDensity(
        path="params/stage_3/blocks_11/inverted_bottleneck/depthwise_convolution/kernel",
        points=points,
        counts=counts,
        boundaries=np.concatenate([-half[:0:-1], [0], half[1:]]) * 0.85,
        levels=np.concatenate([-half[::-1], half]),
        bits=4,
        method="exponential + correlation",
        correlation=0.991197,
    )
