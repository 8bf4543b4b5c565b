"""Measure quantized forms of `fashion_resnet` on the 10,000 test pictures: a table in Markdown.

    python examples/fashion_mnist/evaluate.py results

keeps each cell, a method at a number of bits, in the folder `results` and goes on where it was
stopped. Prints top-1 with its 95 % interval (Wilson), and that of its change from the float
network, which is narrower, since both see the same pictures. Needs the extras `cli` and `flax`, and
the data set (see `corrq_jax.data.read_fashion_mnist`).
"""

import argparse
import pathlib

from corrq_jax.evaluation import change_interval, share_interval
from corrq_jax.experiment import compare
from corrq_jax.fidelity import subject
from corrq_jax.methods import METHODS, cells, methods
from corrq_jax.results import Result, Run

BITS = (4, 3, 2.5, 2, 1.5)


def width(text: str) -> float:
    """Bits, whole ones as a whole number."""
    bits = float(text)
    return int(bits) if bits == int(bits) else bits


def cell(result: Result, count: int) -> str:
    """Top-1 with its interval, and the interval of the change, in percent."""
    right = round(result.top1 * count)
    low, high = (100 * end for end in share_interval(right, count))
    least, most = (100 * end for end in change_interval(result.lost, result.gained, count))
    return f"{100 * result.top1:.1f} [{low:.1f}, {high:.1f}]; {least:+.1f} to {most:+.1f}"


def table(run: Run) -> str:
    """Methods by bits, in Markdown."""
    widths = sorted({result.bits for result in run.results}, reverse=True)
    found = {(result.method, result.bits): result for result in run.results}
    lines = ["| method | " + " | ".join(f"{bits:g}" for bits in widths) + " |"]
    lines += ["|---" * (len(widths) + 1) + "|"]
    for method in dict.fromkeys(result.method for result in run.results):
        row = [found.get((method, bits)) for bits in widths]
        lines += [
            f"| {method} | " + " | ".join(cell(r, run.photos) if r else "" for r in row) + " |"
        ]
    return "\n".join(lines)


def main() -> None:
    """Reads the arguments, measures, prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=pathlib.Path, help="keeps what is done")
    parser.add_argument("--weights", help="a file that train.py wrote; those shipped if left out")
    parser.add_argument("--data", help="the folder with Fashion-MNIST's files")
    parser.add_argument("--method", action="append", help="a method (repeatable); all by default")
    parser.add_argument("--bits", type=width, nargs="+", default=BITS)
    args = parser.parse_args()
    network = subject("fashion_resnet", weights=args.weights, data_dir=args.data, batch_size=500)
    chosen = cells(methods(args.method) if args.method else METHODS, args.bits)
    args.folder.mkdir(parents=True, exist_ok=True)
    run = compare(
        network.name, network.params, chosen, subject=network, keep=args.folder, advance=print
    )
    low, high = share_interval(round(run.float_top1 * run.photos), run.photos)
    print(f"\nfloat: {100 * run.float_top1:.2f} % [{100 * low:.2f}, {100 * high:.2f}] of", end=" ")
    print(f"{run.photos:,} pictures; {run.weights:,} weights; {dict(run.environment)}\n")
    print(table(run))


if __name__ == "__main__":
    main()
