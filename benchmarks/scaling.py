"""How the time to quantize grows with weights, layers, bits and channels: one run, one figure.

    python benchmarks/scaling.py                  # up to 10**9 weights: minutes, 12 GB of memory
    python benchmarks/scaling.py --most 1e7       # a minute

Every point is the best of three calls after the first, all in one process. Writes the curves as
JSON and draws them as SVG; see --help.
"""

import argparse
import dataclasses
import functools
import json
import pathlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

import corrq_jax as corrq

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from contenders import CONTENDERS
from table import environment

REPEATS = 3
BLOCK = 1 << 22
LIMITS = {
    "kmeans1d": 3e6,
    "flash1dkmeans": 1e7,
    "scikit-learn KMeans": 1e7,
    "qwix int4 absmax, per channel": 1e8,
}
"""Weights up to which others are timed: 10 s a call, or 8 GB of memory."""


@dataclasses.dataclass(frozen=True)
class Point:
    """One measured point: ``seconds`` for ``x`` of what the panel varies."""

    panel: str
    curve: str
    x: float
    weights: int
    seconds: float


def sample(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Heavy-tailed weights; what is over 4 M repeats, each time with another scale."""
    rng = np.random.default_rng(seed)
    w = np.empty(shape, np.float32)
    flat = w.reshape(-1)
    some = rng.standard_t(4, min(flat.size, BLOCK)).astype(np.float32)
    for start in range(0, flat.size, BLOCK):
        part = flat[start : start + BLOCK]
        np.multiply(some[: part.size], np.float32(rng.uniform(0.5, 2)), out=part)
    return w


def seconds(call: Callable[[], Any]) -> float:
    """The best of some calls after the first."""
    times = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def square(size: float) -> tuple[int, int]:
    """The shape of a dense kernel of about so many weights."""
    columns = int(np.sqrt(size))
    return round(size / columns), columns


def over_weights(most: float) -> Iterator[Point]:
    """One tensor of 10**5 to 10**9 weights: this library and the others."""
    names = ["corrq optimal", "corrq channel scales", *LIMITS]
    installed = [name for name in names if CONTENDERS[name].absent is None]
    calls = {name: CONTENDERS[name].prepare() for name in installed}
    for size in (1e5, 1e6, 1e7, 1e8, 1e9):
        if size > most:
            return
        tree = {"kernel": sample(square(size))}
        for name, call in calls.items():
            if size <= LIMITS.get(name, 1e9):
                taken = seconds(lambda call=call, tree=tree: call(tree))
                yield Point("weights", name, size, tree["kernel"].size, taken)


def over_layers() -> Iterator[Point]:
    """Networks of 1 to 156 equal layers, as many as ResNet152V2 has."""
    for count in (1, 4, 16, 54, 156):
        tree = {f"{i:03}": {"kernel": sample((256, 256), i)} for i in range(count)}
        for name, options in (("4 bits", {"bits": 4}), ("a budget", {"bits_per_weight": 4.0})):
            taken = seconds(lambda tree=tree, options=options: corrq.quantize(tree, **options))
            yield Point("layers", name, count, count << 16, taken)


def over_bits(size: float) -> Iterator[Point]:
    """One tensor in 1 to 8 bits, on each grid."""
    tree = {"kernel": sample(square(size))}
    for grid in ("optimal", "linear", "exponential"):
        for bits in range(1, 9):
            call = functools.partial(corrq.quantize, tree, bits=bits, grid=grid)
            yield Point("bits", grid, bits, tree["kernel"].size, seconds(call))


def over_channels(size: float) -> Iterator[Point]:
    """One tensor of 16 to 65,536 output channels, with a scale for each or for groups of 64."""
    for channels in (16, 256, 4096, 65536):
        tree = {"kernel": sample((round(size / channels), channels))}
        for name, granularity in (("channel", "channel"), ("groups of 64", 64)):
            call = functools.partial(corrq.quantize, tree, bits=4, granularity=granularity)
            yield Point("channels", name, channels, tree["kernel"].size, seconds(call))


def draw(points: Iterable[Point], where: dict[str, str], target: pathlib.Path) -> None:
    """Four panels: nanoseconds a weight, and for layers the seconds of the network."""
    import matplotlib as mpl
    import matplotlib.pyplot as plt

    mpl.rcParams["svg.hashsalt"] = "corrq_jax"
    labels = {
        "weights": ("weights of one tensor", "ns a weight"),
        "layers": ("layers of 65,536 weights", "seconds"),
        "bits": ("bits a weight", "ns a weight"),
        "channels": ("output channels", "ns a weight"),
    }
    figure, axes = plt.subplots(2, 2, figsize=(9, 7), layout="constrained")
    for axis, (panel, (xlabel, ylabel)) in zip(axes.flat, labels.items(), strict=True):
        curves: dict[str, list[Point]] = {}
        for point in points:
            if point.panel == panel:
                curves.setdefault(point.curve, []).append(point)
        for marker, (name, some) in zip("osD^vPX*", curves.items(), strict=False):
            y = [p.seconds if panel == "layers" else 1e9 * p.seconds / p.weights for p in some]
            axis.plot([p.x for p in some], y, marker=marker, ms=4, label=name)
        axis.set(xlabel=xlabel, ylabel=ylabel, yscale="log")
        if panel != "bits":
            axis.set_xscale("log")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7, frameon=False)
    versions = ", ".join(f"{k} {v}" for k, v in where.items() if k in ("cpus", "jax", "processor"))
    figure.suptitle(f"Time to quantize, after compilation ({versions})", fontsize=9)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, metadata={"Date": None})


def main() -> None:
    """Measure, print, write and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--most", type=float, default=1e9, help="weights of the largest tensor")
    parser.add_argument("--json", type=pathlib.Path, default=pathlib.Path("scaling.json"))
    parser.add_argument("--svg", type=pathlib.Path, default=pathlib.Path("scaling.svg"))
    parser.add_argument("--from", dest="source", type=pathlib.Path, help="draw a JSON file again")
    chosen = parser.parse_args()
    if chosen.source:
        saved = json.loads(chosen.source.read_text())
        draw([Point(**p) for p in saved["points"]], saved["environment"], chosen.svg)
        return
    medium = min(chosen.most, 1e7)
    panels = (
        over_weights(chosen.most),
        over_layers(),
        over_bits(medium),
        over_channels(medium),
    )
    points = []
    for panel in panels:
        for point in panel:
            points.append(point)
            ns = 1e9 * point.seconds / point.weights
            print(
                f"{point.panel:9} {point.curve:30} {point.x:14,.0f} {point.seconds:9.4f} s "
                f"{ns:9.2f} ns a weight",
                flush=True,
            )
    where = environment()
    saved = {"environment": where, "points": [dataclasses.asdict(p) for p in points]}
    chosen.json.write_text(json.dumps(saved, indent=1) + "\n")
    draw(points, where, chosen.svg)


if __name__ == "__main__":
    main()
