"""What decoding takes, by coding: a kernel of a million weights, and one of twenty million.

    python benchmarks/decoding.py        # a minute

Under jit, where a network runs, and outside of it, where pieces are decoded one after the other.
The best of several calls after the first.
"""

import math
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import jax
import numpy as np

import corrq_jax as corrq

WAYS = {
    "4 bits": {"bits": 4},
    "3 bits": {"bits": 3},
    "4 bits, channel scales": {"bits": 4, "granularity": "channel"},
    "4 bits, trellis": {"bits": 4, "coding": "trellis"},
    "3 bits, trellis": {"bits": 3, "coding": "trellis"},
    "4 bits, entropy-coded trellis": {"bits": 4, "coding": "entropy-trellis"},
}
SHAPES = (1024, 1024), (4000, 5000)


def nanoseconds(call: Callable[[], Any], size: int, repeats: int = 9) -> float:
    """Of the best of several calls, for each weight."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - start)
    return 1e9 * min(times[1:]) / size


def main() -> None:
    """Print the table."""
    print(f"jax {version('jax')}, {jax.devices()[0].device_kind}, ns a weight")
    print(f"{'':30} {'weights':>11} {'under jit':>10} {'outside':>8}")
    decode = jax.jit(corrq.dequantize)
    for shape in SHAPES:
        size = math.prod(shape)
        kernel = np.random.default_rng(0).standard_t(4, shape).astype(np.float32)
        for name, options in WAYS.items():
            tree, _ = corrq.quantize({"kernel": kernel}, **options)
            under = nanoseconds(lambda tree=tree: decode(tree), size)
            outside = nanoseconds(lambda tree=tree: corrq.dequantize(tree), size)
            print(f"{name:30} {size:11,} {under:10.2f} {outside:8.2f}", flush=True)


if __name__ == "__main__":
    main()
