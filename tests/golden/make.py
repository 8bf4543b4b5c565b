"""Makes the golden files of the present format version: run once, when a version is new.

    python tests/golden/make.py FOLDER

Files of a version that has been released are never made again: what they hold has to be read for
ever. What a version learns to say later is in a file of its own. Beside each file lies what has to
come out of it, as `golden_files.describe` tells it.
"""

import dataclasses
import json
import pathlib
import sys

import ml_dtypes
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
from golden_files import describe

import corrq_jax as corrq
from corrq_jax.core import coding
from corrq_jax.layout import DTYPE_NAMES, VERSION
from corrq_jax.tensor import QuantizedTensor, Rows

RNG = np.random.default_rng(20)


def tensor(codes, levels, shape, dtype="float32", rows=None, how="packed"):
    """A tensor of given codes; levels by their number, scales random."""
    bits = max(1, (levels - 1).bit_length())
    table = np.sort(RNG.normal(size=levels)).astype("f8" if dtype == "float64" else "f4")
    scales = None if rows is None else RNG.uniform(0.5, 2, size=rows.shape).astype(np.float16)
    packed = np.asarray(coding.pack(codes.astype(np.uint8), bits))
    return QuantizedTensor(packed, table, shape, dtype, bits, scales, rows, how)


def packed(levels, shape, dtype="float32", rows=None):
    return tensor(RNG.integers(levels, size=np.prod(shape, dtype=int)), levels, shape, dtype, rows)


def coded(levels, shape, dtype="float32", rows=None, p=0.4):
    codes = RNG.binomial(levels - 1, p, size=np.prod(shape, dtype=int))
    return tensor(codes, levels, shape, dtype, rows, "entropy")


def along(levels, shape, dtype="float32", rows=None, how="trellis"):
    """Of codes below half the number of levels, a multiple of 4."""
    table = np.sort(RNG.normal(size=levels)).astype("f8" if dtype == "float64" else "f4")
    scales = None if rows is None else RNG.uniform(0.5, 2, size=rows.shape).astype(np.float16)
    bits = max(1, (levels // 2 - 1).bit_length())
    codes = RNG.binomial(levels // 2 - 1, 0.4, size=np.prod(shape, dtype=int)).astype(np.uint8)
    codes = np.asarray(coding.pack(codes, bits))
    return QuantizedTensor(codes, table, shape, dtype, bits, scales, rows, how)


def trellis():
    """A tree with all that a file can say of trellises."""
    channels, both = Rows(12, 5, 1, 12), "entropy-trellis"
    return {
        "packed": {f"{bits}": along(2 ** (bits + 1), (40, 53)) for bits in range(1, 8)},
        "dtypes": {n: along(16, (1500,), n) for n in ("float16", "bfloat16", "float64")},
        "scales": along(8, (3, 4, 5), rows=channels),
        "stack": stack([along(16, (31, 40)) for _ in range(2)]),
        "entropy": {
            **{f"{levels}": along(levels, (3, 700), how=both) for levels in (4, 12, 64, 256)},
            "float64": along(20, (1024,), "float64", how=both),
            "scales": along(28, (3, 4, 5), "bfloat16", channels, both),
            "empty": along(8, (0,), how=both),
        },
    }


def long(bits, spread, shape=(40, 53), dtype="float32", rows=None):
    """Along the trellis of long histories: ``2**spread`` levels for each code."""
    table = np.sort(RNG.normal(size=2 ** (bits + spread)))
    scales = None if rows is None else RNG.uniform(0.5, 2, size=rows.shape).astype(np.float16)
    codes = RNG.integers(2**bits, size=np.prod(shape, dtype=int)).astype(np.uint8)
    codes = np.asarray(coding.pack(codes, bits))
    table = table.astype("f8" if dtype == "float64" else "f4")
    return QuantizedTensor(codes, table, shape, dtype, bits, scales, rows, "trellis")


def long_trellis():
    """A tree with all that a file can say of trellises of long histories."""
    pairs = [(bits, spread) for spread in (2, 3, 4) for bits in range(1, 9 - spread)]
    return {
        "packed": {f"{bits}, {spread}": long(bits, spread) for bits, spread in pairs},
        "dtypes": {n: long(3, 3, (1500,), n) for n in ("float16", "bfloat16", "float64")},
        "scales": long(2, 2, (3, 4, 5), rows=Rows(12, 5, 1, 12)),
        "stack": stack([long(3, 4, (31, 40)) for _ in range(2)]),
    }


def stack(tensors):
    scaled = tensors[0].scales is not None
    return dataclasses.replace(
        tensors[0],
        codes=np.stack([t.codes for t in tensors]),
        levels=np.stack([t.levels for t in tensors]),
        scales=np.stack([t.scales for t in tensors]) if scaled else None,
    )


def everything():
    """A tree with all else that a file can say."""
    floats = {n: RNG.normal(size=5).astype(n) for n in ("float64", "float32", "float16")}
    whole = {n: np.array([0, 1, 100], n) for n in DTYPE_NAMES if "int" in n}
    odd = np.array([np.nan, np.inf, -np.inf, -0.0, 1e-45], np.float32)
    alone = np.zeros(2**22 + 10, np.uint8)
    alone[12345] = 1
    channels, groups = Rows(12, 5, 1, 12), Rows(3, 4, 5, 7)
    return {
        "packed": {f"{bits}": packed(2**bits, (5, 7)) for bits in range(1, 9)},
        "few levels": packed(5, (3, 3, 2)),
        "dtypes": {n: packed(8, (11,), n) for n in ("float16", "bfloat16", "float64")},
        "entropy": {
            "a few": coded(7, (9, 11)),
            "two pages": coded(2, (600, 600), p=0.0005),
            "two chunks": tensor(alone, 2, alone.shape, how="entropy"),
            "bins of several codes": coded(200, (5, 5)),
            "one code": coded(4, (3, 3), p=0.0),
            "none": coded(4, (0, 3)),
            "float64": coded(200, (20, 20), "float64"),
            "channels": coded(8, (3, 4, 5), "bfloat16", channels),
        },
        "scales": [packed(8, (3, 4, 5), rows=channels), packed(16, (3, 4, 5), "float16", groups)],
        "stacks": (
            stack([packed(4, (3, 5)) for _ in range(3)]),
            stack([packed(8, (3, 4, 5), "float32", groups) for _ in range(2)]),
        ),
        "constants": [packed(1, (4, 3)), packed(2, ()), packed(3, (0, 4))],
        "floats": {**floats, "bfloat16": odd.astype(ml_dtypes.bfloat16), "odd": odd},
        "whole": {**whole, "bool": np.array([[True, False]])},
        "shapes": [np.float32(3), np.zeros((0, 3), np.float32), np.zeros((2, 1, 2), np.int8)],
        "keys": {"": {"": np.int8(1)}, "a/b~c": np.int8(2), "\u00e9\u4e2d": np.int8(3)},
        "nodes": [None, {}, [], (), {7: np.int8(4), -1: {"~2": np.int8(5)}}, ((np.int8(6),),)],
    }


def quantized():
    """A network, quantized: the correlations are recorded."""
    w = RNG.laplace(size=(64, 20)).astype(np.float32)
    tree = {"dense": {"kernel": w, "bias": w[0]}}
    return corrq.quantize(tree, bits_per_weight=4.0, coding="entropy", granularity="channel")


def main(folder):
    trees = {"everything": (everything(), None), "leaf": (packed(8, (2, 3)), None)}
    trees["quantized"] = quantized()
    trees["trellis"] = (trellis(), None)
    trees["long_trellis"] = (long_trellis(), None)
    for name, (tree, report) in trees.items():
        path = folder / f"version_{VERSION}_{name}.safetensors"
        corrq.save(path, tree, report=report)
        text = json.dumps(describe(tree), indent=1, sort_keys=True)
        path.with_suffix(".json").write_text(text + "\n")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
