"""Times a product with packed codes on a GPU, beside the bfloat16 product: one table of one run.

    python benchmarks/gpu_matmul.py                 # about a minute on one GPU
    python benchmarks/gpu_matmul.py --small --bits 4 --batch 1     # a trial on a CPU, no figures

Each time is that of one compiled program, which multiplies by several different matrices, together
larger than the GPU's cache, over their number: the median over repeats. See benchmarks/README.md.
"""

import argparse
import concurrent.futures
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from corrq_jax.core import coding, lookup_matmul
from corrq_jax.core.lookup_matmul import Blocks

ROWS, COLUMNS = 4096, 16384
MATRICES = 8
"""Even at 2 bits, 16.8 MB each, they are together over twice an H100's cache of 50 MB."""


class Variant(NamedTuple):
    """A way to multiply.

    Attributes:
        name: what the table shows.
        form: (x, codes, levels, bits) -> [batch, columns].
        bits: the widths that it serves.
        batches: the batches that it is timed at.
    """

    name: str
    form: Callable[..., jax.Array]
    bits: tuple[int, ...] = (2, 3, 4, 8)
    batches: tuple[int, ...] = (1,)


def _decode(x: jax.Array, codes: jax.Array, levels: jax.Array, bits: int) -> jax.Array:
    """The matrix is written to memory, then multiplied."""
    index = coding.unpack(codes, ROWS * COLUMNS, bits)
    w = coding.decode(index, levels).reshape(ROWS, COLUMNS)
    return jnp.dot(x, w, preferred_element_type=jnp.float32)


def _kernel(x, codes, levels, bits, *, blocks: Blocks, dtype: Any, interpret: bool) -> jax.Array:
    if not lookup_matmul.fits(ROWS, COLUMNS, bits, blocks):
        raise ValueError(f"{blocks} do not fit")
    levels = levels.astype(dtype)
    return lookup_matmul.partial_sums(x, codes, levels, bits, blocks, interpret).sum(0)


def variants(interpret: bool) -> Iterator[Variant]:
    """All of them."""

    def kernel(dtype: Any, bits: tuple[int, ...], batches: tuple[int, ...], *sizes: Any) -> Variant:
        blocks = Blocks(*sizes)
        form = functools.partial(_kernel, blocks=blocks, dtype=dtype, interpret=interpret)
        shape = "{rows}x{columns} depth {depth} unroll {unroll} warps {warps} ahead {ahead:d}"
        name = f"{jnp.dtype(dtype).name} levels, {shape.format(**blocks._asdict())}"
        return Variant(name, form, bits, batches)

    half, single = jnp.bfloat16, jnp.float32
    yield Variant("decoded, then multiplied", _decode)
    yield kernel(half, (4,), (1,), 16, 128, 512, 2, 4, False)
    for ahead in (False, True):
        yield kernel(half, (2,), (1,), 64, 32, 1024, 1, 8, ahead)
        yield kernel(half, (3,), (1,), 32, 32, 1024, 1, 8, ahead)
        yield kernel(half, (4,), (4, 8), 32, 32, 4096, 1, 16, ahead)
        yield kernel(half, (4,), (2, 4), 64, 32, 4096, 1, 16, ahead)
        yield kernel(single, (4,), (1,), 256, 32, 4096, 1, 16, ahead)
        yield kernel(half, (4,), (1,), 64, 128, 1024, 1, 16, ahead)
        yield kernel(half, (4,), (1,), 128, 32, 1024, 1, 8, ahead)
        yield kernel(half, (4,), (1,), 128, 64, 2048, 1, 16, ahead)
        yield kernel(half, (4,), (1, 2), 128, 32, 4096, 1, 16, ahead)
        yield kernel(half, (4,), (1,), 256, 32, 4096, 1, 16, ahead)
    yield kernel(half, (2, 3), (1,), 128, 16, 4096, 1, 16, True)
    yield kernel(single, (8,), (1,), 128, 32, 4096, 1, 16, False)
    yield kernel(half, (4,), (1, 2), 64, 32, 4096, 4, 16, False)
    yield kernel(half, (4,), (1,), 128, 32, 4096, 2, 16, False)


class Inputs(NamedTuple):
    """Of one width; all on the device.

    Attributes:
        codes: packed codes of each matrix.
        levels: their levels in bfloat16.
    """

    codes: list[jax.Array]
    levels: jax.Array


def inputs(bits: int, seed: int) -> Inputs:
    keys = jax.random.split(jax.random.key(seed), MATRICES + 1)
    size = coding.packed_size(ROWS * COLUMNS, bits)
    codes = [jax.random.bits(key, (size,), jnp.uint8) for key in keys[1:]]
    return Inputs(codes, jnp.sort(jax.random.normal(keys[0], (2**bits,), jnp.bfloat16)))


def activations(batch: int) -> list[jax.Array]:
    """Another x for each matrix, so that no two products can be merged."""
    keys = jax.random.split(jax.random.key(batch), MATRICES)
    return [jax.random.normal(key, (batch, ROWS), jnp.bfloat16) for key in keys]


def seconds(compiled: Callable[..., Any], *args: Any, calls: int = 8, repeats: int = 9) -> float:
    """Median time of a product, over repeats of several calls that are waited for together."""
    times = []
    for _ in range(repeats + 2):
        start = time.perf_counter()
        jax.block_until_ready([compiled(*args) for _ in range(calls)])
        times.append(time.perf_counter() - start)
    return float(np.median(times[2:])) / calls / MATRICES


def some_weights(given: Inputs, bits: int, columns: int) -> np.ndarray:
    """The first columns of the first matrix, float64, by NumPy from the stream of bits."""
    stream = np.unpackbits(np.asarray(given.codes[0]), bitorder="little").reshape(ROWS, -1)
    parts = stream[:, : columns * bits].reshape(ROWS, columns, bits)
    return np.asarray(given.levels, np.float64)[(parts * (1 << np.arange(bits))).sum(-1)]


def compile_one(variant: Variant, bits: int, batch: int, given: Inputs, xs: list[jax.Array]):
    """The program that multiplies each x by its matrix; or the text of the error."""

    def chain(xs, codes, levels):
        return [variant.form(x, c, levels, bits) for x, c in zip(xs, codes, strict=True)]

    try:
        return jax.jit(chain).lower(xs, given.codes, given.levels).compile()
    except Exception as error:  # one variant that fails must not end the run
        return _in_short(error)


def _in_short(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' / '.join(lines)}"[:500]


def baseline(batches: list[int]) -> dict[int, float]:
    """Seconds of the bfloat16 product at each batch."""
    keys = jax.random.split(jax.random.key(0), MATRICES)
    matrices = [jax.random.normal(key, (ROWS, COLUMNS), jnp.bfloat16) for key in keys]
    program = jax.jit(lambda xs, ws: [x @ w for x, w in zip(xs, ws, strict=True)])
    found = {}
    for batch in batches:
        xs = activations(batch)
        found[batch] = seconds(program.lower(xs, matrices).compile(), xs, matrices)
        rate = 2 * ROWS * COLUMNS / found[batch] / 1e12
        print(
            f"bfloat16  batch {batch:3}  {found[batch] * 1e6:8.1f} us  {rate:.2f} TB/s", flush=True
        )
    return found


def run_width(bits: int, batches: list[int], base: dict[int, float], interpret: bool) -> None:
    """Compiles all variants of one width side by side, then checks and times one after another."""
    given = inputs(bits, bits)
    shape = f"{bits} bits"
    served = [variant for variant in variants(interpret) if bits in variant.bits]
    jobs = [(v, batch) for v in served for batch in v.batches if batch in batches]
    xs = {batch: activations(batch) for batch in batches}
    weights = some_weights(given, bits, 1024)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        tasks = [pool.submit(compile_one, v, bits, b, given, xs[b]) for v, b in jobs]
        programs = [task.result() for task in tasks]
    for (variant, batch), program in zip(jobs, programs, strict=True):
        text = f"{shape}  batch {batch:3}  {variant.name:75}"
        if isinstance(program, str):
            print(f"{text}  {program}", flush=True)
            continue
        try:
            args = (xs[batch], given.codes, given.levels)
            found = np.asarray(program(*args)[0], np.float64)[:, :1024]
            exact = np.asarray(xs[batch][0], np.float64) @ weights
            error = np.abs(found - exact).max() / np.abs(exact).max()
            took = seconds(program, *args)
            rate = given.codes[0].nbytes / took / 1e12
            print(
                f"{text}  {took * 1e6:8.1f} us  {base[batch] / took:5.2f}x  {rate:.2f} TB/s  "
                f"error {error:.1e}",
                flush=True,
            )
        except Exception as error:  # likewise when it runs
            print(f"{text}  {_in_short(error)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bits", type=int, nargs="+", default=[8, 3, 2, 4])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--small", action="store_true", help="a small matrix, to try the script")
    chosen = parser.parse_args()
    if chosen.small:
        globals().update(ROWS=1024, COLUMNS=2048)
    device = jax.devices()[0]
    print(f"{device.device_kind}, jax {jax.__version__}, {ROWS} x {COLUMNS}", flush=True)
    start = time.perf_counter()
    base = baseline(chosen.batch)
    for bits in chosen.bits:
        run_width(bits, chosen.batch, base, interpret=device.platform == "cpu")
        print(f"-- {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
