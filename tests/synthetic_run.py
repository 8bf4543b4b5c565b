"""A run as a real comparison gives it: methods, mixed bits, peers, layers and densities."""

import dataclasses

import numpy as np

from corrq_jax.data.thumbnails import thumbnail
from corrq_jax.details import FLOAT, LevelTable, Pictures, Predictions, Thumbnail
from corrq_jax.histograms import histogram
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


def quick_run() -> Run:
    """Of few figures, which take most of the time of writing a report."""
    run = synthetic_run()
    return dataclasses.replace(run, results=run.results[:2], densities=(), layers={})


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


def detailed_run(network: str = "EfficientNet-Lite0", seed: int = 0) -> Run:
    """The run with layers, level tables, histograms, bytes by part, and answers to 24 photos."""
    run = synthetic_run(network)
    rng = np.random.default_rng(seed)
    weights = {path: rng.normal(0, 0.05, 3000) for path in LAYERS}
    results = [_with_parts(r) for r in run.results]
    own = [r for r in results if not r.peer]
    return dataclasses.replace(
        run,
        results=results,
        layers={r.key: _detailed_layers(r, weights) for r in own},
        histograms={path: histogram(w) for path, w in weights.items()},
        pictures=_pictures(own, rng),
    )


def _with_parts(result: Result) -> Result:
    if result.peer:
        return result
    codes = int(result.file_nbytes * 0.9)
    scales = 500 if "entropy" in result.method else 0
    return dataclasses.replace(
        result,
        codes_nbytes=codes,
        levels_nbytes=4000,
        scales_nbytes=scales,
        rest_nbytes=20_000,
        header_nbytes=result.file_nbytes - codes - scales - 24_000,
    )


def _detailed_layers(result: Result, weights: dict[str, np.ndarray]) -> tuple[LayerResult, ...]:
    layers = []
    for index, (path, shape) in enumerate(LAYERS.items()):
        size, noise = int(np.prod(shape)), 1 - result.mean_correlation**2
        bits = int(result.bits) + (index % 3 if result.mixed else 0)
        levels = np.linspace(-0.12, 0.12, 2**bits) if bits <= 6 else np.zeros(0)
        table = LevelTable(levels, (levels[1:] + levels[:-1]) / 2) if levels.size else None
        if table and "entropy" in result.method:
            own = histogram(weights[path] / 0.03)
            table = LevelTable(levels / 0.03, np.array(table.boundaries) / 0.03, own)
        lost = float(noise * (1 + 0.3 * index))
        layers.append(
            LayerResult(
                *(
                    path,
                    shape,
                    size,
                    bits,
                    float(np.sqrt(1 - min(lost, 0.9))),
                    64 + size * bits // 8,
                ),
                noise=min(lost, 0.9),
                codes_nbytes=size * bits // 8,
                levels_nbytes=32,
                scales_nbytes=0,
                entropy=bits - 0.4,
                table=table,
            )
        )
    return tuple(layers)


def _pictures(results: list[Result], rng: np.random.Generator) -> Pictures:
    """24 photos in 10 views each; each network changes the answers that its agreement says."""
    labels = np.repeat(np.arange(24) % 12, 10)
    predictions = {FLOAT: _answers(labels, np.zeros(240))}
    for result in results:
        changed = rng.random(240) < 1 - (result.agreement or 0)
        kl = np.round(rng.gamma(1, (result.kl or 0) + 1e-3, 240), 4)
        predictions[result.key] = _answers(np.where(changed, 11 - labels, labels), kl)
    colours = rng.integers(0, 256, (24, 1, 1, 3)).astype(np.uint8)
    shown = [Thumbnail(10 * i, thumbnail(np.tile(c, (16, 16, 1)))) for i, c in enumerate(colours)]
    names = {str(i): f"kind {i}" for i in range(12)}
    return Pictures(labels.tolist(), 10, names, tuple(shown), predictions)


def _answers(classes: np.ndarray, kl: np.ndarray) -> Predictions:
    return Predictions(classes.tolist(), kl.tolist(), [0.5] * len(classes))
