"""Where the time of quantizing goes: each stage by itself, on one tree, in one process.

Beside them, in the same run: the whole (`corrq_jax.quantize`), reading the weights twice from
memory, and qwix's absmax int4 per channel on the same tree. Everything is warm: compiled before.

Parts of stages run on one piece that stays in the cache, as often as there are pieces; beside them
are the compiled loops of numpy that do the same. Processor time is that of all threads: it stands a
machine that does other things as well, to a degree.

    python benchmarks/stages.py                          # VGG-16's 138 M weights, 2 GB of memory
    python benchmarks/stages.py --tree convolutions      # 14.7 M weights
    python benchmarks/stages.py --bits 3 --json
"""

import argparse
import importlib.util
import json
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from contenders import CONTENDERS, TREES, make_weights
from table import environment

import corrq_jax as corrq
from corrq_jax import leaf as leaves
from corrq_jax import menu
from corrq_jax.config import Config
from corrq_jax.core import coding, density
from corrq_jax.core.density import CHUNK
from corrq_jax.core.histogram import histogram

QWIX = "qwix int4 absmax, per channel"
WHOLE = "corrq_jax.quantize"


def best(call: Callable[[], Any], repeats: int) -> tuple[float, float, Any]:
    """The least of several times, of processor times, and the last result; one call is free."""
    call()
    seconds, processor = [], []
    for _ in range(repeats):
        started = time.perf_counter(), time.process_time()
        result = jax.block_until_ready(call())
        seconds.append(time.perf_counter() - started[0])
        processor.append(time.process_time() - started[1])
    return min(seconds), min(processor), result


def read_twice(weights: dict[str, np.ndarray]) -> list[float]:
    """Two passes that do next to nothing but read."""
    return [float(f()) for w in weights.values() for f in (w.max, w.min)]


def searched(measured: list[menu.Measured], config: Config, bits: int) -> list[menu.Option]:
    """The quantizers of all tensors, a batch in one call."""
    batches = (measured[i : i + menu.BATCH] for i in range(0, len(measured), menu.BATCH))
    return [some[0] for batch in batches for some in menu.options(batch, config, [bits], False)]


def chunks(weights: dict[str, np.ndarray]):
    """The weights in the pieces that the library hands to the device."""
    for w in weights.values():
        flat = w.reshape(-1)
        yield from (flat[i : i + CHUNK] for i in range(0, flat.size, CHUNK))


def handed_over(weights: dict[str, np.ndarray], bits: int) -> None:
    """Every piece copied to the device, and as many bytes as its codes have copied back."""
    for chunk in chunks(weights):
        on_device = jax.device_put(chunk).block_until_ready()
        back = on_device[: coding.packed_size(chunk.size, bits) // 4]
        np.array(back)


@jax.jit
def bins(chunk: jax.Array, norm: density.Normalization) -> jax.Array:
    return density.key(norm.apply(chunk))


@jax.jit
def looked_up(keys: jax.Array, table: jax.Array) -> jax.Array:
    return table.at[keys].get(mode="promise_in_bounds")


def parts(bits: int) -> list[tuple[str, Callable[[], Any]]]:
    """(name, call) of what density and encoding do with one piece that is there already."""
    random = np.random.default_rng(0)
    chunk = jax.device_put(random.standard_t(4, CHUNK).astype(np.float32))
    keys = bins(chunk, norm := density.normalization(*density.extent(chunk)))
    table = jax.device_put(np.sort(random.integers(0, 2**bits, density.BINS)).astype(np.uint8))
    codes, add = looked_up(keys, table), jax.jit(histogram)
    there = np.asarray(keys), np.asarray(table)
    return [
        ("a piece: bins", lambda: bins(chunk, norm)),
        ("a piece: additions", lambda: add(keys)),
        ("a piece: look-up", lambda: looked_up(keys, table)),
        ("a piece: pack", lambda: coding.pack(codes, bits)),
        ("a piece: additions, numpy", lambda: np.bincount(there[0], minlength=density.BINS)),
        ("a piece: look-up, numpy", lambda: np.take(there[1], there[0], mode="clip")),
    ]


def stages(tree: str, bits: int, repeats: int) -> list[tuple[str, float, float]]:
    """(stage, seconds, seconds of processors) of each."""
    weights = make_weights(TREES[tree])
    size = sum(w.size for w in weights.values())
    config = Config(bits=bits)
    found = []

    def timed(name: str, call: Callable[[], Any]) -> Any:
        seconds, processor, result = best(call, repeats)
        found.append((name, seconds, processor))
        return result

    read = timed("extremes", lambda: [leaves.read(path, w) for path, w in weights.items()])
    measured = timed("density", lambda: [menu.measure(leaf) for leaf in read])
    options = timed("search", lambda: searched(measured, config, bits))
    timed("encode and pack", lambda: [menu.encode(option)[0].codes for option in options])
    timed("transfers", lambda: handed_over(weights, bits))
    for name, call in parts(bits):
        timed(name, lambda call=call: [jax.block_until_ready(call()) for _ in chunks(weights)])
        least = found.pop()
        scale = size / (CHUNK * sum(1 for _ in chunks(weights)))  # the last pieces are short
        found.append((name, least[1] * scale, least[2] * scale))
    timed(WHOLE, lambda: corrq.quantize(weights, bits=bits)[0])
    timed("reading the weights twice", lambda: read_twice(weights))
    if importlib.util.find_spec("qwix") is not None:
        absmax = CONTENDERS[QWIX].prepare()
        timed(QWIX, lambda: [jax.tree.leaves(q) for q in absmax(weights).values()])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tree", choices=TREES, default="vgg16", help="what the tree is")
    parser.add_argument("--bits", type=int, default=4, help="bits a weight")
    parser.add_argument("--repeats", type=int, default=3, help="of each the best counts")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    chosen = parser.parse_args()
    found = stages(chosen.tree, chosen.bits, chosen.repeats)
    size = sum(int(np.prod(shape)) for shape in TREES[chosen.tree])
    where = {**environment(), "device": jax.devices()[0].device_kind}
    if chosen.json:
        rows = [
            {"stage": n, "seconds": s, "processor_seconds": p, "ns_per_weight": 1e9 * s / size}
            for n, s, p in found
        ]
        print(json.dumps({"bits": chosen.bits, "environment": where, "rows": rows}, indent=1))
        return
    whole = next(seconds for name, seconds, _ in found if name == WHOLE)
    print(
        f"{chosen.bits} bits, {size:,} weights; " + ", ".join(f"{k} {v}" for k, v in where.items())
    )
    print(f"{'stage':32}  {'seconds':>8}  {'ns/weight':>9}  {'processor':>9}  {'of the whole':>12}")
    for name, seconds, processor in found:
        ns, own, share = 1e9 * seconds / size, 1e9 * processor / size, seconds / whole
        print(f"{name:32}  {seconds:8.4f}  {ns:9.3f}  {own:9.3f}  {share:11.0%}")


if __name__ == "__main__":
    main()
