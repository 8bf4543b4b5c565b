"""Quantization of parameters that lie on an accelerator: the whole, and its stages.

    python benchmarks/accelerator.py            # VGG-16's kernels, 138 M weights; about a minute
    python benchmarks/accelerator.py --tree convolutions

Every figure is the median of several calls after the first, each waited for. The two passes over
the weights that a quantizer needs at least are timed as well, by a sum of all weights, twice.
"""

import argparse
import functools
import importlib.metadata
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import corrq_jax as corrq
from corrq_jax import on_device
from corrq_jax.core import density as core
from corrq_jax.core import fit, histogram, ladder

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from contenders import TREES

BITS = 4


@functools.partial(jax.jit, static_argnames="shape")
def make(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Student's t with 4 degrees of freedom, with a log-normal scale for each output channel."""
    first, second = jax.random.split(key)
    w = jax.random.t(first, 4.0, shape, jnp.float32)
    scale = jnp.exp(0.5 * jax.random.normal(second, shape[-1:]))
    return w * scale / np.sqrt(np.prod(shape[:-1]))


def report(name: str, call: Callable[[], Any], weights: int, repeats: int = 10) -> Any:
    """Time a call, print a line, and return its result."""
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        result = jax.block_until_ready(call())
        seconds.append(time.perf_counter() - start)
    warm = np.median(seconds[1:])
    ns = 1e9 * warm / weights
    cold = f"{seconds[0]:8.2f} s"
    print(f"{name:44} {cold}  {1e3 * warm:9.3f} ms  {ns:9.4f} ns a weight", flush=True)
    return result


def stages(tree: dict[str, jax.Array], weights: int) -> None:
    """Each stage on the whole tree, the histogram in each formulation."""
    flat = {path: w.reshape(-1) for path, w in tree.items()}
    twice = jax.jit(lambda t: [jnp.sum(w + i) for i in range(2) for w in t.values()])
    report("two reads (sums)", lambda: twice(flat), weights)
    arrays = list(tree.values())
    ends = report("extents", lambda: on_device.extents(arrays), weights)
    norms = [jax.jit(core.normalization)(lo, hi) for lo, hi in ends]
    on_host = jax.device_get(norms)

    def counted(way: Callable[[jax.Array], jax.Array]) -> Callable[[], list[jax.Array]]:
        one = jax.jit(lambda w, norm: way(core.key(norm.apply(w))))
        return lambda: [one(w, norm) for w, norm in zip(flat.values(), norms, strict=True)]

    ways = (histogram.by_scatter, histogram.by_copies, histogram.by_digits, histogram.histogram)
    for way in ways:
        counts = report(f"densities, {way.__name__}", counted(way), weights, repeats=3)
    points = jnp.broadcast_to(jnp.asarray(core.BIN_POINTS), (len(counts), core.BINS))
    batch = core.Density(points, jnp.stack(counts))
    lo, hi = ends.T
    norm = jax.tree.map(lambda *a: jnp.stack(a), *norms)
    for grid in ("optimal", "linear", "exponential"):
        method = fit.Method(grid, "correlation", "mean", BITS)
        call = functools.partial(fit.fit_batch, batch, lo, hi, norm, method, len(lo))
        found = report(f"search of all layers, {grid}", call, weights, repeats=5)
        if grid == "optimal":
            boundaries, values = np.asarray(found.boundaries), np.asarray(found.values)
    widths = functools.partial(ladder.ladders_by_width, batch, len(lo))
    report("search of all widths", widths, weights, repeats=3)
    steps = functools.partial(ladder.ladders_by_step, batch, len(lo))
    report("search of entropy-coded steps", steps, weights, repeats=3)

    def encoded() -> list[jax.Array]:
        each = zip(flat.values(), on_host, boundaries, values, strict=True)
        return [on_device.codes(w, n, None, b, v, BITS) for w, n, b, v in each]

    report("codes, packed", encoded, weights)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tree", choices=sorted(TREES), default="vgg16")
    tree_name = parser.parse_args().tree
    device = jax.devices()[0]
    print(f"{device.device_kind}, jax {importlib.metadata.version('jax')}, {BITS} bits")
    keys = jax.random.split(jax.random.key(0), len(TREES[tree_name]))
    tree = {
        f"layer{i:02}/kernel": make(key, shape)
        for i, (key, shape) in enumerate(zip(keys, TREES[tree_name], strict=True))
    }
    weights = sum(w.size for w in tree.values())
    print(f"{weights} weights in {len(tree)} kernels\n{'':44} {'first':>10}  {'median':>12}")
    stages(tree, weights)
    options: dict[str, dict[str, Any]] = {
        "quantize": {"bits": BITS},
        "quantize, linear grid": {"bits": BITS, "grid": "linear"},
        "quantize, 4 bits a weight in all": {"bits_per_weight": BITS},
        "quantize, scales of channels": {"bits": BITS, "granularity": "channel"},
    }
    for name, some in options.items():
        found = report(name, lambda some=some: corrq.quantize(tree, **some)[0], weights, 5)
    back = jax.jit(corrq.dequantize)
    report("dequantize under jit", lambda: back(found), weights, 5)


if __name__ == "__main__":
    main()
