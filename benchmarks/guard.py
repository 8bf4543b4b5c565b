"""Fails if quantizing has become much slower, beside qwix's in the same process.

    python benchmarks/guard.py

The ratio of the best of interleaved calls stands a machine that does other things as well, to a
degree: the limit is for a mistake that costs a factor, not for a few percent.
"""

import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from contenders import CONTENDERS, TREES, make_weights

ROUNDS = 5
OURS, THEIRS = "corrq optimal", "qwix int4 absmax, per channel"
LIMIT = 6.0
"""The ratio was 3.3 on two quiet cores (AMD EPYC): on so few weights the search is most of it."""


def main() -> None:
    """Measure, print the ratio, exit with 1 above the limit."""
    weights = make_weights(TREES["convolutions"])
    calls = {name: CONTENDERS[name].prepare() for name in (OURS, THEIRS)}
    best = dict.fromkeys(calls, float("inf"))
    for round_ in range(ROUNDS + 1):  # the first compiles
        for name, call in calls.items():
            start = time.perf_counter()
            call(weights)
            if round_:
                best[name] = min(best[name], time.perf_counter() - start)
    size = sum(w.size for w in weights.values())
    for name, seconds in best.items():
        print(f"{name:32} {1e9 * seconds / size:8.2f} ns a weight")
    ratio = best[OURS] / best[THEIRS]
    print(f"ratio {ratio:.2f}, at most {LIMIT} allowed")
    sys.exit(ratio > LIMIT)


if __name__ == "__main__":
    main()
