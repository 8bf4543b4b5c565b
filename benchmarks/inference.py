"""Memory and time of the forward pass with packed weights, beside float: one table of one run.

    python benchmarks/inference.py                            # EfficientNet-Lite0, batch 32
    python benchmarks/inference.py --network resnet50 vgg16   # weights are random
    python benchmarks/inference.py --bits 4 3 --batch 1 32

Every network is run as float, with all kernels decoded first, and with each decoded in its layer.
Calls take turns, so that whatever else the machine does meets all of them alike. See
benchmarks/README.md.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

import corrq_jax as corrq
import corrq_jax.flax
from corrq_jax import models
from corrq_jax.tensor import is_quantized


class Form(NamedTuple):
    """A way to run the network.

    Attributes:
        name: what the table shows.
        compiled: its program.
        params: its first argument.
    """

    name: str
    compiled: Any
    params: Any


def forms(name: str, bits: list[int], images: jax.Array) -> list[Form]:
    """The float network first."""
    apply, params = corrq_jax.flax.functional(network(name))

    def compiled(function: Callable[..., Any], params: Any) -> Any:
        return jax.jit(function).lower(params, images).compile()

    def decoded_first(params: Any, images: Any) -> Any:
        return apply(corrq.dequantize(params), images)

    found = [Form("float", compiled(apply, params), params)]
    for width in bits:
        qparams = jax.device_put(corrq.quantize(params, bits=width)[0])
        found.append(Form(f"{width} bits, all first", compiled(decoded_first, qparams), qparams))
        found.append(Form(f"{width} bits, packed", compiled(apply, qparams), qparams))
    return found


def network(name: str) -> Any:
    """With its weights where a package has them, and random ones elsewhere."""
    return models.load(name) if name == "efficientnet_lite0" else models.create(name)


def largest(params: Any) -> int:
    """Bytes of the largest decoded kernel."""
    leaves = [leaf for leaf in jax.tree.leaves(params, is_leaf=is_quantized) if is_quantized(leaf)]
    return max((leaf.size * np.dtype(leaf.dtype).itemsize for leaf in leaves), default=0)


def seconds(forms: list[Form], images: jax.Array, rounds: int) -> list[tuple[float, float]]:
    """For each form the medians of seconds and of processor seconds of a call, taken in turn."""
    taken: list[list[tuple[float, float]]] = [[] for _ in forms]
    for round_number in range(rounds + 1):
        for form, times in zip(forms, taken, strict=True):
            start, cpu = time.perf_counter(), time.process_time()
            jax.block_until_ready(form.compiled(form.params, images))
            if round_number:  # the first is to warm up
                times.append((time.perf_counter() - start, time.process_time() - cpu))
    medians = ([statistics.median(column) for column in zip(*t, strict=True)] for t in taken)
    return [(wall, cpu) for wall, cpu in medians]


def table(name: str, bits: list[int], batch: int, rounds: int) -> None:
    """Prints the rows of one network and batch."""
    resolution = models.info(name).resolution
    rng = np.random.default_rng(0)
    images = jax.device_put(rng.normal(size=(batch, resolution, resolution, 3)).astype(np.float32))
    rows = forms(name, bits, images)
    times = seconds(rows, images, rounds)
    single = sum(leaf.nbytes for leaf in jax.tree.leaves(rows[0].params))
    for form, (wall, cpu) in zip(rows, times, strict=True):
        live = sum(leaf.nbytes for leaf in jax.tree.leaves(form.params))
        scratch = form.compiled.memory_analysis().temp_size_in_bytes
        print(
            f"{name:20} {batch:5}  {form.name:18} {live / 1e6:9.2f} {live / single:7.3f} "
            f"{largest(form.params) / 1e6:8.2f} {scratch / 1e6:9.2f}  {wall:8.3f} "
            f"{wall / times[0][0]:6.2f} {cpu:8.3f} {cpu / times[0][1]:6.2f}",
            flush=True,
        )


HEADER = (
    f"{'network':20} {'batch':>5}  {'form':18} {'live MB':>9} {'/float':>7} {'largest':>8} "
    f"{'scratch':>9}  {'seconds':>8} {'/float':>6} {'CPU s':>8} {'/float':>6}"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", nargs="+", default=["efficientnet_lite0"])
    parser.add_argument("--bits", type=int, nargs="+", default=[4])
    parser.add_argument("--batch", type=int, nargs="+", default=[32])
    parser.add_argument("--rounds", type=int, default=7, help="timed calls of each form")
    chosen = parser.parse_args()
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}")
    print(HEADER)
    for name in chosen.network:
        for batch in chosen.batch:
            table(name, chosen.bits, batch, chosen.rounds)


if __name__ == "__main__":
    main()
