"""How close to the optimum: every kernel of EfficientNet-Lite0 against slow independent references.

For each kernel and bit width, the noise ``1 - rho**2`` recomputed from the weights, over that of
exact one-dimensional k-means (kmeans1d) for free levels, and over that of a brute force in float64
NumPy (tests/oracles.py) for the grids. Prints the worst ratio of each method and bit width.

    python benchmarks/optimality.py                     # all: about 15 minutes on 2 cores
    python benchmarks/optimality.py --largest 20000     # small kernels only
"""

import argparse
import pathlib
import sys
from functools import partial

import numpy as np

import corrq_jax as corrq
from corrq_jax import models
from corrq_jax.flax import functional
from corrq_jax.paths import flatten
from corrq_jax.selection import default_select

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "tests"))
import oracles

GRIDS = (
    ("linear", "mean", False),
    ("linear", "grid", False),
    ("exponential", "mean", False),
    ("exponential", "grid", False),
    ("exponential", "grid", True),
)


def kernels(largest: int) -> dict[str, np.ndarray]:
    """The network's kernels of at most ``largest`` weights, by path."""
    entries, _ = flatten(functional(models.load("efficientnet_lite0"))[1])
    found = {path: np.asarray(leaf) for path, leaf in entries if default_select(path, leaf)}
    return {path: w for path, w in found.items() if w.size <= largest}


def worst_ratio(params: dict[str, np.ndarray], reference, **options) -> tuple[float, str]:
    """The largest noise over the reference's, and the kernel where it is."""
    qparams, _ = corrq.quantize(params, **options)
    decoded = corrq.dequantize(qparams)
    ratios = []
    for path, w in params.items():
        noise = 1 - oracles.rho(w, decoded[path]) ** 2
        best = reference(w)
        # Where the reference is exact up to rounding, so has to be the result.
        ratios.append((noise / best if best > 1e-10 else 1 + float(noise > 1e-9), path))
    return max(ratios)


def main() -> None:
    """Print the worst ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--largest", type=int, default=10**9, help="largest kernel to look at")
    params = kernels(parser.parse_args().largest)
    print(f"{len(params)} kernels, {sum(w.size for w in params.values()):,} weights")
    for bits in range(2, 7):
        exact = partial(oracles.kmeans_noise, levels=2**bits)
        ratio, path = worst_ratio(params, exact, bits=bits)
        print(f"optimal, {bits} bits: {ratio:.5f} of exact k-means at worst ({path})", flush=True)
    for grid, levels, zero in GRIDS:
        for bits in range(2, 9):
            ratio, path = worst_ratio(
                params,
                partial(oracles.brute_force, bits=bits, grid=grid, levels=levels, zero=zero),
                **{"bits": bits, "grid": grid, "levels": levels, "zero": zero},
            )
            name = f"{grid}, values {levels}{', zero' if zero else ''}, {bits} bits"
            print(f"{name}: {ratio:.5f} of brute force at worst ({path})", flush=True)


if __name__ == "__main__":
    main()
