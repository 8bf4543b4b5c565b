"""Speed and overhead of entropy coding: one table of one run, on one core. See --help."""

import argparse
import json
import math
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy as np

from corrq_jax import entropy

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
    (frequencies, stream), encoding = best_of(repeats, lambda: entropy.encode(codes, counts.size))
    again, decoding = best_of(repeats, lambda: entropy.decode(frequencies, stream, size))
    if not np.array_equal(codes, again):
        raise AssertionError("the codes do not come back")
    nbytes = frequencies.nbytes + stream.nbytes
    least = entropy.entropy(counts) * size / 8
    return {
        "levels": counts.size,
        "entropy": entropy.entropy(counts),
        "encode_mb_per_second": size / encoding / 1e6,
        "decode_mb_per_second": size / decoding / 1e6,
        "excess": nbytes / least - 1,
        "prediction": entropy.coded_nbytes(counts) / nbytes - 1,
    }


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
    chosen = parser.parse_args()
    rows = []
    if not chosen.json:
        print(f"{chosen.size / 1e6:g} M codes of a byte each, MB of them a second of one core")
        print(f"constriction {version('constriction')}, numpy {np.__version__}", end=", ")
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
