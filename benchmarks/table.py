"""All ways to quantize side by side: time, memory, stored bits and correlation, in one run.

    python benchmarks/table.py                       # the table, then the curves of scaling.py
    python benchmarks/table.py --no-curves --only "corrq optimal" --json

Every contender runs in a fresh process of its own, so that its first call is cold and its peak of
memory is its own. See benchmarks/README.md.
"""

import argparse
import gc
import json
import os
import pathlib
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from contenders import BITS, CONTENDERS, TREES, correlation, in_rows, make_weights

ENOUGH_SECONDS = 5.0
MOST_REPEATS = 3


def resident(field: str) -> int | None:
    """Bytes of "VmRSS", memory held now, or "VmHWM", its peak; None where there is no /proc."""
    try:
        lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(field)), None)


def reset_peak() -> bool:
    """Let the peak of memory start from what is held now; whether that is possible."""
    try:
        pathlib.Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def measured(call: Callable[[], Any], baseline: int | None, nbytes: int):
    """(result, seconds, peak of memory above the baseline in units of the weights' size)."""
    gc.collect()
    has_peak = reset_peak()
    started = time.perf_counter()
    result = call()
    seconds = time.perf_counter() - started
    peak = resident("VmHWM")
    ratio = (peak - baseline) / nbytes if has_peak and peak and baseline else None
    return result, seconds, ratio


def weights_for(name: str, tree: str) -> dict[str, np.ndarray]:
    """The weights of a tree as a contender wants them."""
    weights = make_weights(TREES[tree])
    return in_rows(weights) if CONTENDERS[name].in_rows else weights


def run_contender(name: str, tree: str) -> dict[str, Any]:
    """Measure one contender in this process, which has to be fresh."""
    contender = CONTENDERS[name]
    quantize = contender.prepare()
    baseline = resident("VmRSS")
    weights = weights_for(name, tree)
    size = sum(w.size for w in weights.values())
    nbytes = sum(w.nbytes for w in weights.values())
    result, cold, cold_peak = measured(lambda: quantize(weights), baseline, nbytes)
    # Warm, the contender's own memory is in the baseline: its compiled code, its thread pools.
    del weights, result
    gc.collect()
    baseline = resident("VmRSS")
    weights = weights_for(name, tree)
    warm, spent, warm_peak = [], 0.0, None
    result = None
    while len(warm) < MOST_REPEATS and spent < ENOUGH_SECONDS:
        del result
        result, seconds, warm_peak = measured(lambda: quantize(weights), baseline, nbytes)
        warm.append(seconds)
        spent += seconds
    decoded = contender.decode(result)
    rho = float(np.mean([correlation(w, decoded[path]) for path, w in weights.items()]))
    return {
        "contender": name,
        "weights": size,
        "cold_seconds": cold,
        "warm_ns_per_weight": 1e9 * min(warm) / size,
        "repeats": len(warm),
        "cold_peak_ratio": cold_peak,
        "warm_peak_ratio": warm_peak,
        "stored_bits": contender.stored(result) / size,
        "held_bits": 8 * contender.held(result) / size,
        "rho": rho,
        "noise": 1 - rho**2,
    }


def in_fresh_process(name: str, tree: str) -> dict[str, Any]:
    """`run_contender` in a new process; a failure becomes a row that says why."""
    command = [sys.executable, __file__, "--child", name, "--tree", tree]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return {"contender": name, "tree": tree, "failed": lines[-1]}
    return {"tree": tree, **json.loads(done.stdout.splitlines()[-1])}


PACKAGES = (
    *("corrq_jax", "jax", "numpy", "kmeans1d", "flash1dkmeans", "scikit-learn", "qwix"),
    *("torch", "bitsandbytes", "hqq", "optimum-quanto"),
)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def environment() -> dict[str, str]:
    """Where the figures come from."""
    processors = pathlib.Path("/proc/cpuinfo")
    lines = processors.read_text().splitlines() if processors.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor(),
        "cpus": str(os.cpu_count()),
        "python": platform.python_version(),
        **{package: found for package in PACKAGES if (found := _version(package))},
    }


def text(row: dict[str, Any]) -> str:
    """A line of the table."""
    name = f"{row['contender']:32}"
    if "failed" in row:
        return f"{name}  {row['failed']}"
    peaks = (row["cold_peak_ratio"], row["warm_peak_ratio"])
    cold_peak, warm_peak = ("-" if p is None else f"{p:.2f}" for p in peaks)
    return (
        f"{name}  {row['weights'] / 1e6:7.2f}  {row['cold_seconds']:7.2f}  "
        f"{row['warm_ns_per_weight']:10.2f}  {cold_peak:>9}  {warm_peak:>9}  "
        f"{row['stored_bits']:7.4f}  {row['held_bits']:6.2f}  {row['rho']:.6f}  {row['noise']:.5f}"
    )


HEADER = (
    f"{'contender':32}  {'M wts':>7}  {'cold s':>7}  {'warm ns/wt':>10}  {'cold peak':>9}  "
    f"{'warm peak':>9}  {'stored':>7}  {'held':>6}  {'rho':8}  1-rho^2"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tree", choices=TREES, default="vgg16", help="what the tree is")
    parser.add_argument("--only", action="append", choices=CONTENDERS, help="repeatable")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--no-curves", action="store_true", help="the table alone")
    parser.add_argument("--most", default="1e9", help="weights of the largest tensor of the curves")
    parser.add_argument("--child", choices=CONTENDERS, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child:
        print(json.dumps(run_contender(chosen.child, chosen.tree)))
        return
    where = environment()
    rows: list[dict[str, Any]] = []
    if not chosen.json:
        print(f"{BITS} bits; " + ", ".join(f"{k} {v}" for k, v in where.items()))
        print("peaks: memory above that before the weights were made, in sizes of the weights")
        print(HEADER)
    for name in chosen.only or CONTENDERS:
        contender = CONTENDERS[name]
        trees = [chosen.tree] * contender.on_tree + ["kernel"] * contender.on_kernel
        for tree in dict.fromkeys(trees):
            if contender.absent:
                row = {"contender": name, "failed": f"not installed: {contender.absent}"}
            else:
                row = in_fresh_process(name, tree)
            rows.append(row)
            if not chosen.json:
                print(text(row), flush=True)
            if contender.absent:
                break
    if chosen.json:
        print(json.dumps({"bits": BITS, "environment": where, "rows": rows}, indent=1))
    if not chosen.no_curves:
        script = pathlib.Path(__file__).with_name("scaling.py")
        output = sys.stderr if chosen.json else None
        subprocess.run(
            [sys.executable, str(script), "--most", chosen.most], check=True, stdout=output
        )


if __name__ == "__main__":
    main()
