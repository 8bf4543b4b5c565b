"""Quantization time, memory and correlation, beside other ways to do it: one table of one run.

Every contender runs in a fresh process of its own, so that its first call is cold and its peak of
memory is its own. See benchmarks/README.md.
"""

import argparse
import dataclasses
import gc
import importlib.util
import json
import math
import os
import pathlib
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy as np

_CONVOLUTIONS = [
    *((3, 3, 3, 64), (3, 3, 64, 64), (3, 3, 64, 128), (3, 3, 128, 128), (3, 3, 128, 256)),
    *((3, 3, 256, 256),) * 2,
    (3, 3, 256, 512),
    *((3, 3, 512, 512),) * 5,
]
TREES = {
    "vgg16": [*_CONVOLUTIONS, (25088, 4096), (4096, 4096), (4096, 1000)],
    "convolutions": _CONVOLUTIONS,
    "kernel": [(3, 3, 512, 512)],
}
"""Shapes of the tree: VGG-16's kernels (138 M weights), its convolutions (14.7 M), one (2.36 M)."""

BITS = 4
CHUNK = 1 << 20
ENOUGH_SECONDS = 5.0
MOST_REPEATS = 3


@dataclasses.dataclass(frozen=True)
class Contender:
    """A way to quantize.

    Attributes:
        name: what the table shows.
        prepare: imports what it needs, and returns the function to time; that takes the weights and
            returns what `decode` needs.
        decode: makes weights of that again, not timed.
        packages: modules that have to be installed.
        on_tree: whether it can bear the whole tree; if not it gets one kernel.
    """

    name: str
    prepare: Callable[[], Callable[[dict], Any]]
    decode: Callable[[Any], dict]
    packages: tuple[str, ...] = ()
    on_tree: bool = False


def _corrq(**options: Any) -> Callable[[], Callable[[dict], Any]]:
    def prepare():
        import corrq_jax as corrq

        return lambda weights: corrq.quantize(weights, **{"bits": BITS, **options})

    return prepare


def _decode_corrq(result: Any) -> dict:
    import corrq_jax as corrq

    return corrq.dequantize(result[0])


def _one(function: Callable[[np.ndarray], Any]) -> Callable[[dict], dict]:
    return lambda weights: {path: function(w) for path, w in weights.items()}


def _prepare_kmeans1d():
    import kmeans1d

    return _one(lambda w: (*kmeans1d.cluster(w.ravel(), 2**BITS), w.shape))


def _decode_kmeans1d(result: dict) -> dict:
    return {
        path: np.asarray(centroids, np.float32)[np.asarray(codes)].reshape(shape)
        for path, (codes, centroids, shape) in result.items()
    }


def _prepare_flash1dkmeans():
    import flash1dkmeans

    def cluster(w):
        centroids, codes = flash1dkmeans.kmeans_1d(w.ravel(), 2**BITS, random_state=0)
        return codes, centroids, w.shape

    return _one(cluster)


def _prepare_sklearn():
    from sklearn.cluster import KMeans

    def cluster(w):
        # The settings of coremltools' palettization.
        model = KMeans(2**BITS, init="k-means++", tol=1e-2, n_init=1, random_state=0)
        codes = model.fit_predict(w.reshape(-1, 1))
        return codes, model.cluster_centers_.ravel(), w.shape

    return _one(cluster)


def _prepare_qwix():
    import jax
    import qwix

    def absmax(w):
        return qwix.quantize(w, "int4", channelwise_axes=(w.ndim - 1,))

    jitted = jax.jit(absmax)
    return _one(lambda w: jax.block_until_ready(jitted(w)))


def _decode_qwix(result: dict) -> dict:
    import qwix

    return {path: np.asarray(qwix.dequantize(q)) for path, q in result.items()}


# QLoRA (Dettmers et al., 2023), appendix E.
NF4 = np.array(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ],
    np.float32,
)


def _prepare_nf4():
    boundaries = (NF4[1:] + NF4[:-1]) / 2

    def quantize(w):
        scale = np.abs(w).max(axis=tuple(range(w.ndim - 1)))
        return np.searchsorted(boundaries, w / scale).astype(np.uint8), scale

    return _one(quantize)


def _decode_nf4(result: dict) -> dict:
    return {path: NF4[codes] * scale for path, (codes, scale) in result.items()}


_BUDGET = {"bits": None, "bits_per_weight": float(BITS)}

CONTENDERS = {
    contender.name: contender
    for contender in (
        Contender("corrq optimal", _corrq(), _decode_corrq, ("corrq_jax",), on_tree=True),
        Contender(
            "corrq linear + correlation",
            _corrq(grid="linear"),
            _decode_corrq,
            ("corrq_jax",),
            on_tree=True,
        ),
        Contender(
            "corrq exponential + correlation",
            _corrq(grid="exponential"),
            _decode_corrq,
            ("corrq_jax",),
            on_tree=True,
        ),
        *(
            Contender(f"corrq {name}", _corrq(**options), _decode_corrq, ("corrq_jax",), True)
            for name, options in (
                ("channel scales", {"granularity": "channel"}),
                ("budget", _BUDGET),
                ("budget, channel scales", {**_BUDGET, "granularity": "channel"}),
                ("budget, entropy-coded", {**_BUDGET, "coding": "entropy"}),
            )
        ),
        Contender("kmeans1d", _prepare_kmeans1d, _decode_kmeans1d, ("kmeans1d",)),
        Contender("flash1dkmeans", _prepare_flash1dkmeans, _decode_kmeans1d, ("flash1dkmeans",)),
        Contender("scikit-learn KMeans", _prepare_sklearn, _decode_kmeans1d, ("sklearn",)),
        Contender("qwix int4 absmax, per channel", _prepare_qwix, _decode_qwix, ("qwix",)),
        Contender("NF4 in NumPy, per channel", _prepare_nf4, _decode_nf4),
    )
}


def make_weights(shapes: list[tuple[int, ...]], seed: int = 0) -> dict[str, np.ndarray]:
    """Heavy-tailed weights, made in pieces so that no memory but their own is needed.

    Student's t with 4 degrees of freedom, times a scale of each output channel that is log-normal.
    """
    rng = np.random.default_rng(seed)
    weights = {}
    for i, shape in enumerate(shapes):
        w = np.empty(shape, np.float32)
        flat = w.reshape(-1)
        for start in range(0, flat.size, CHUNK):
            part = flat[start : start + CHUNK]
            part[:] = rng.standard_t(4, part.size)
        w *= np.exp(0.5 * rng.standard_normal(shape[-1])).astype(np.float32)
        w /= math.sqrt(math.prod(shape[:-1]))
        weights[f"layer{i:02}/kernel"] = w
    return weights


def resident(field: str) -> int | None:
    """Bytes of "VmRSS", memory held now, or "VmHWM", its peak; None where there is no /proc."""
    try:
        lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(field)), None)


def reset_peak() -> bool:
    """Let the peak of memory start from what is held now; whether that is possible."""
    try:
        pathlib.Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def measured(call: Callable[[], Any], baseline: int | None, nbytes: int):
    """(result, seconds, peak of memory above the baseline in units of the weights' size)."""
    gc.collect()
    has_peak = reset_peak()
    started = time.perf_counter()
    result = call()
    seconds = time.perf_counter() - started
    peak = resident("VmHWM")
    ratio = (peak - baseline) / nbytes if has_peak and peak and baseline else None
    return result, seconds, ratio


def correlation(weights: dict, decoded: dict) -> float:
    """The mean over tensors of Pearson's rho, in float64, in pieces."""
    rhos = []
    for path, w in weights.items():
        a, b = w.reshape(-1), np.asarray(decoded[path]).reshape(-1)
        sums = np.zeros(5)
        means = a.mean(dtype=np.float64), b.mean(dtype=np.float64)
        for start in range(0, a.size, CHUNK):
            x = a[start : start + CHUNK] - means[0]
            y = b[start : start + CHUNK] - means[1]
            sums[:3] += (x @ y, x @ x, y @ y)
        rhos.append(sums[0] / math.sqrt(sums[1] * sums[2]))
    return float(np.mean(rhos))


def run_contender(name: str, tree: str) -> dict[str, Any]:
    """Measure one contender in this process, which has to be fresh."""
    contender = CONTENDERS[name]
    quantize = contender.prepare()
    baseline = resident("VmRSS")
    weights = make_weights(TREES[tree])
    size = sum(w.size for w in weights.values())
    nbytes = sum(w.nbytes for w in weights.values())
    result, cold, cold_peak = measured(lambda: quantize(weights), baseline, nbytes)
    # Warm, the contender's own memory is in the baseline: its compiled code, its thread pools.
    del weights, result
    gc.collect()
    baseline = resident("VmRSS")
    weights = make_weights(TREES[tree])
    warm, spent, warm_peak = [], 0.0, None
    result = None
    while len(warm) < MOST_REPEATS and spent < ENOUGH_SECONDS:
        del result
        result, seconds, warm_peak = measured(lambda: quantize(weights), baseline, nbytes)
        warm.append(seconds)
        spent += seconds
    rho = correlation(weights, contender.decode(result))
    return {
        "contender": name,
        "weights": size,
        "cold_seconds": cold,
        "warm_ns_per_weight": 1e9 * min(warm) / size,
        "repeats": len(warm),
        "cold_peak_ratio": cold_peak,
        "warm_peak_ratio": warm_peak,
        "rho": rho,
        "noise": 1 - rho**2,
    }


def in_fresh_process(name: str, tree: str) -> dict[str, Any]:
    """`run_contender` in a new process; a failure becomes a row that says why."""
    command = [sys.executable, __file__, "--child", name, "--tree", tree]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return {"contender": name, "tree": tree, "failed": lines[-1]}
    return {"tree": tree, **json.loads(done.stdout.splitlines()[-1])}


def environment() -> dict[str, str]:
    """Where the figures come from."""
    packages = ("corrq_jax", "jax", "numpy", "kmeans1d", "flash1dkmeans", "scikit-learn", "qwix")
    modules = {"scikit-learn": "sklearn"}
    installed = [p for p in packages if importlib.util.find_spec(modules.get(p, p))]
    processors = pathlib.Path("/proc/cpuinfo")
    lines = processors.read_text().splitlines() if processors.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor(),
        "cpus": str(os.cpu_count()),
        "python": platform.python_version(),
        **{package: version(package) for package in installed},
    }


def text(row: dict[str, Any]) -> str:
    """A line of the table."""
    name = f"{row['contender']:32}"
    if "failed" in row:
        return f"{name}  {row['failed']}"
    peaks = (row["cold_peak_ratio"], row["warm_peak_ratio"])
    cold_peak, warm_peak = ("-" if p is None else f"{p:.2f}" for p in peaks)
    return (
        f"{name}  {row['weights'] / 1e6:7.2f}  {row['cold_seconds']:7.2f}  "
        f"{row['warm_ns_per_weight']:10.2f}  {cold_peak:>9}  {warm_peak:>9}  "
        f"{row['rho']:.6f}  {row['noise']:.5f}"
    )


HEADER = (
    f"{'contender':32}  {'M wts':>7}  {'cold s':>7}  {'warm ns/wt':>10}  {'cold peak':>9}  "
    f"{'warm peak':>9}  {'rho':8}  1-rho^2"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tree", choices=TREES, default="vgg16", help="what the tree is")
    parser.add_argument("--only", action="append", choices=CONTENDERS, help="repeatable")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--child", choices=CONTENDERS, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child:
        print(json.dumps(run_contender(chosen.child, chosen.tree)))
        return
    where = environment()
    rows: list[dict[str, Any]] = []
    if not chosen.json:
        print(f"{BITS} bits; " + ", ".join(f"{k} {v}" for k, v in where.items()))
        print("peaks: memory above that before the weights were made, in sizes of the weights")
        print(HEADER)
    for name in chosen.only or CONTENDERS:
        contender = CONTENDERS[name]
        absent = [p for p in contender.packages if importlib.util.find_spec(p) is None]
        trees = [chosen.tree] if contender.on_tree else []
        for tree in dict.fromkeys([*trees, "kernel"]):
            if absent:
                row = {"contender": name, "tree": tree, "failed": f"not installed: {absent[0]}"}
            else:
                row = in_fresh_process(name, tree)
            rows.append(row)
            if not chosen.json:
                print(text(row), flush=True)
            if absent:
                break
    if chosen.json:
        print(json.dumps({"bits": BITS, "environment": where, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
