"""Sizes on disk of the named networks at 1 to 8 bits a weight, beside their float files.

Without entropy coding sizes depend on shapes alone, so that random weights give them honestly: each
network is built with such, quantized, saved, and the file measured.

    python benchmarks/sizes.py                     # all networks; some minutes, 3 GB of memory
    python benchmarks/sizes.py --model resnet50 --bits 4,3
"""

import argparse
import json
import pathlib
import sys
import tempfile
import time
from typing import Any

import jax
import numpy as np
from flax import nnx

import corrq_jax as corrq
from corrq_jax import models
from corrq_jax.flax import functional

NETWORKS = ("vgg16", "resnet50", "xception", "inception_v3", "mobilenet_v2", "resnet152v2")


def gaussian(name: str) -> Any:
    """The network's tree with kernels of independent Gaussian weights, and what else it has."""
    module = nnx.eval_shape(lambda: models.create(name))
    graph, state = nnx.split(module)
    rng = np.random.default_rng(0)

    def fill(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        if len(leaf.shape) < 2:
            return np.ones(leaf.shape, leaf.dtype)
        scale = np.float32(1 / np.sqrt(np.prod(leaf.shape[:-1])))
        return rng.standard_normal(leaf.shape, np.float32) * scale

    return functional(nnx.merge(graph, jax.tree.map(fill, state)))[1]


def sizes(name: str, bits: list[int], folder: pathlib.Path) -> dict[str, Any]:
    """Bytes of the float file and of the quantized ones, by bits."""
    params = gaussian(name)
    row: dict[str, Any] = {"network": name}
    row["float"] = corrq.save(folder / "float.safetensors", params, overwrite=True)
    for b in bits:
        quantized, report = corrq.quantize(params, bits=b)
        row[str(b)] = corrq.save(folder / "quantized.safetensors", quantized, overwrite=True)
        row["weights"] = sum(r.size for r in report)
    return row


def main() -> None:
    """Measure, and print a Markdown table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", action="append", choices=models.names(), help="repeatable")
    parser.add_argument("--bits", default="8,7,6,5,4,3,2,1", help="such as 4,3")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    bits = [int(b) for b in options.bits.split(",")]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in options.model or NETWORKS:
            started = time.perf_counter()
            rows.append(sizes(name, bits, pathlib.Path(folder)))
            print(f"{name}: {time.perf_counter() - started:.0f} s", file=sys.stderr)
    if options.json:
        print(json.dumps(rows, indent=1))
        return
    print("| network | quantized weights | float |" + "".join(f" {b} |" for b in bits))
    print("|---|---|---|" + "---|" * len(bits))
    for row in rows:
        cells = [row["float"], *(row[str(b)] for b in bits)]
        megabytes = " | ".join(f"{nbytes / 1e6:.2f}" for nbytes in cells)
        print(f"| {row['network']} | {row['weights']:,} | {megabytes} |")


if __name__ == "__main__":
    main()
