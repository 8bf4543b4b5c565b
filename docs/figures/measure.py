"""Measures what the figures show, on EfficientNet-Lite0's kernels, into measured.json beside this.

    python docs/figures/measure.py      # some minutes on 2 cores

No pictures are looked at: correlations and bytes are of the weights alone. `make.py` draws.
"""

import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import corrq_jax as corrq
from corrq_jax import models
from corrq_jax.flax import functional
from corrq_jax.methods import methods
from corrq_jax.moments import trace
from corrq_jax.sweep import layer_density

HERE = pathlib.Path(__file__).parent
BITS = (2, 3, 4, 5, 6)
GRIDS: dict[str, dict[str, Any]] = {
    "linear": {"grid": "linear", "fit": "range", "levels": "grid"},
    "exponential": {"grid": "exponential", "fit": "range", "levels": "grid"},
    "linear + correlation": {"grid": "linear"},
    "exponential + correlation": {"grid": "exponential"},
    "optimal": {},
}
GRANULARITIES = ("tensor", "channel", 64)
DENSITY_PATH = "stage6/block2/expand/conv/kernel"


def summary(report: corrq.Report) -> dict[str, float]:
    """Stored bits a weight, and the mean and the largest noise of the tensors."""
    noises = [row.noise for row in report]
    return {
        "bits_per_weight": round(report.bits_per_weight, 4),
        "noise": float(f"{np.mean(noises):.5g}"),
        "worst": float(f"{max(noises):.5g}"),
    }


def rows(report: corrq.Report) -> list[list[Any]]:
    """Path, stored bits and noise of each tensor."""
    return [[r.path, round(r.bits_per_weight, 4), float(f"{r.noise:.5g}")] for r in report]


def densities(params: Any, path: str, bits: int) -> dict[str, Any]:
    """Boundaries and levels of a kernel by each grid, and its density in 160 equal bins."""
    found: dict[str, Any] = {"path": path, "bits": bits, "methods": {}}
    for method in methods(GRIDS):
        layer = layer_density(params, path, method, bits)
        found["methods"][method.name] = {
            "boundaries": [float(f"{x:.5g}") for x in layer.boundaries],
            "levels": [float(f"{x:.5g}") for x in layer.levels],
            "correlation": round(layer.correlation, 6),
        }
        reach = float(np.abs(layer.points).max())
        counts, edges = np.histogram(layer.points, 160, (-reach, reach), weights=layer.counts)
        found |= {"counts": [int(c) for c in counts], "reach": float(f"{edges[-1]:.6g}")}
    return found


def measure(say: Callable[[str], None] = print) -> dict[str, Any]:
    """All of it."""
    network, params = functional(models.load("efficientnet_lite0"))
    found: dict[str, Any] = {"network": "EfficientNet-Lite0", "jax": jax.__version__}
    found["density"] = densities(params, DENSITY_PATH, 3)
    found["grids"] = {}
    for name, options in GRIDS.items():
        found["grids"][name] = {
            str(b): summary(corrq.quantize(params, bits=b, **options)[1]) for b in BITS
        }
        say(name)
    found["granularities"] = {
        str(g): {
            str(b): summary(corrq.quantize(params, bits=b, granularity=g)[1]) for b in (2, 3, 4, 5)
        }
        for g in GRANULARITIES
    }
    say("granularities")
    wiring = trace(network, params, jax.ShapeDtypeStruct((1, 224, 224, 3), np.float32))
    found["importance"] = {p: float(f"{v:.4g}") for p, v in wiring.importance.items()}
    for name, options in {
        "uniform": {"bits": 3},
        "budget": {"bits_per_weight": 3.0, "importance": wiring.importance},
    }.items():
        found[name] = rows(corrq.quantize(params, **options)[1])
        say(name)
    return found


if __name__ == "__main__":
    (HERE / "measured.json").write_text(json.dumps(measure(), indent=1) + "\n")
