"""Speed and overhead of entropy coding: one table of one run, on one core. See --help.

With --network of the codes of a network's tensors, from packed codes and back to them.
"""

import argparse
import json
import math
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import jax
import numpy as np

import corrq_jax as corrq
from corrq_jax import entropy, models, streams
from corrq_jax.flax import functional
from corrq_jax.tensor import QuantizedTensor, is_quantized

BITS = (2.0, 3.0, 4.0, 6.0)
CHUNK = 1 << 20


def make_codes(size: int, bits: float, seed: int = 0) -> np.ndarray:
    """Gaussian samples on equidistant levels, whose distance gives about the entropy asked for."""
    rng = np.random.default_rng(seed)
    codes = np.empty(size, np.uint8)
    deviation = 2**bits / math.sqrt(2 * math.pi * math.e)
    for start in range(0, size, CHUNK):
        part = codes[start : start + CHUNK]
        part[:] = np.clip(np.rint(deviation * rng.standard_normal(part.size)) + 128, 0, 255)
    return codes - codes.min()


def best_of(repeats: int, call: Callable[[], Any]) -> tuple[Any, float]:
    """The result, and the least processor time in seconds."""
    times = []
    result = None
    for _ in range(repeats):
        started = time.process_time()
        result = call()
        times.append(time.process_time() - started)
    return result, min(times)


def measure(size: int, bits: float, repeats: int) -> dict[str, Any]:
    """A row of the table."""
    codes = make_codes(size, bits)
    counts = np.bincount(codes)
    stream, encoding = best_of(repeats, lambda: entropy.encode(codes))
    again, decoding = best_of(repeats, lambda: entropy.decode(stream, size))
    if not np.array_equal(codes, again):
        raise AssertionError("the codes do not come back")
    least = entropy.entropy(counts) * size / 8
    return {
        "levels": counts.size,
        "entropy": entropy.entropy(counts),
        "encode_mb_per_second": size / encoding / 1e6,
        "decode_mb_per_second": size / decoding / 1e6,
        "excess": stream.size / least - 1,
        "prediction": entropy.predicted_nbytes(counts) / stream.size - 1,
    }


def measure_network(name: str, bits: float, repeats: int) -> None:
    """Print a line for each of the two codings."""
    params = functional(models.load(name))[1]
    for how in ("entropy", "entropy-trellis"):
        quantized, _ = corrq.quantize(params, bits_per_weight=bits, coding=how)
        leaves = jax.tree.leaves(quantized, is_leaf=is_quantized)
        tensors = [t for t in leaves if is_quantized(t) and t.coding == how]
        text = speeds(tensors, repeats)
        print(f"{name}, {how}, {bits:g} bits a weight: {len(tensors)} tensors, {text}", flush=True)


def speeds(tensors: list[QuantizedTensor], repeats: int) -> str:
    """From packed codes to streams and back, and of that the coder by itself."""

    def timed(call: Callable[..., Any], *arguments: list[Any]) -> tuple[list[Any], str]:
        found, seconds = best_of(repeats, lambda: list(map(call, *arguments)))
        return found, f"{sum(t.size for t in tensors) / seconds / 1e6:.0f}"

    def encode(tensor: QuantizedTensor) -> np.ndarray:
        return entropy.encode_pieces(streams.symbols_in_pieces(tensor))

    def decode(stream: np.ndarray, tensor: QuantizedTensor) -> np.ndarray:
        levels = int(tensor.levels.shape[-1])
        return streams.packed_codes(stream, tensor.size, tensor.bits, levels, tensor.coding)

    def decode_only(stream: np.ndarray, tensor: QuantizedTensor) -> np.ndarray:
        return entropy.decode(stream, tensor.size)

    symbols = [np.concatenate(list(streams.symbols_in_pieces(t))) for t in tensors]
    coded, encoding = timed(encode, tensors)
    _, coding = timed(entropy.encode, symbols)
    packed, decoding = timed(decode, coded, tensors)
    again, undoing = timed(decode_only, coded, tensors)
    for found, tensor in zip(packed, tensors, strict=True):
        np.testing.assert_array_equal(found, tensor.codes)
    np.testing.assert_array_equal(np.concatenate(again), np.concatenate(symbols))
    return (
        f"{sum(t.size for t in tensors) / 1e6:.2f} M codes; M codes a second: "
        f"encode {encoding} (coder {coding}), decode {decoding} (coder {undoing})"
    )


HEADER = "levels  bits a code  encode MB/s  decode MB/s  over entropy  prediction over size"


def text(row: dict[str, Any]) -> str:
    """A line of the table."""
    return (
        f"{row['levels']:6}  {row['entropy']:11.4f}  {row['encode_mb_per_second']:11.0f}  "
        f"{row['decode_mb_per_second']:11.0f}  {row['excess']:12.4%}  {row['prediction']:20.4%}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=20_000_000, help="codes in the tensor")
    parser.add_argument("--bits", type=float, action="append", help="entropy, repeatable")
    parser.add_argument("--repeats", type=int, default=3, help="the best counts")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--network", help="measure the tensors of a network instead, at --bits")
    chosen = parser.parse_args()
    if chosen.network:
        for bits in chosen.bits or (4.0,):
            measure_network(chosen.network, bits, chosen.repeats)
        return
    rows = []
    if not chosen.json:
        print(f"{chosen.size / 1e6:g} M codes of a byte each, MB of them a second of one core")
        print(f"pcodec {version('pcodec')}, numpy {np.__version__}", end=", ")
        print(f"python {platform.python_version()}, {platform.machine()}")
        print(HEADER)
    for bits in chosen.bits or BITS:
        rows.append(measure(chosen.size, bits, chosen.repeats))
        if not chosen.json:
            print(text(rows[-1]), flush=True)
    if chosen.json:
        print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
