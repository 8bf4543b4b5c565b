"""Quantizes a network and prints the SHA-256 of what each way of saving makes of it.

    python saved_bytes.py FOLDER PROCESSORS

Run with other numbers of processors and devices by `tests/test_same_bytes.py`.
"""

import hashlib
import os
import pathlib
import sys

if hasattr(os, "sched_setaffinity"):  # before jax counts them
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(sys.argv[2])])

import jax
import jax.numpy as jnp
import numpy as np

import corrq_jax as corrq
from corrq_jax.readers import write_weights


def spread(params, name):
    """With more devices each part of the kernel on another, where that is supported."""
    if len(jax.devices()) == 1 or name != "packed":
        return params
    mesh = jax.make_mesh((len(jax.devices()),), ("x",), (jax.sharding.AxisType.Auto,))
    columns = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "x"))
    kernel = jax.device_put(params["a"]["kernel"], columns)
    return {**params, "a": {**params["a"], "kernel": kernel}}


def main(folder):
    rng = np.random.default_rng(0)
    large = rng.laplace(size=(700, 1600))  # more than a chunk: sums are those of pieces
    params = {
        "a": {"kernel": large.astype(np.float32), "bias": np.zeros(1600, np.float32)},
        "b": {"kernel": jnp.asarray(rng.normal(size=(3, 3, 8, 16)), jnp.bfloat16)},
    }
    files = {"coded": {"coding": "entropy", "granularity": "channel"}, "packed": {}}
    for name, options in files.items():
        tree, report = corrq.quantize(spread(params, name), bits=3, **options)
        path = folder / f"{name}.safetensors"
        corrq.save(path, tree, report=report)
        print(name, hashlib.sha256(path.read_bytes()).hexdigest())
        back = jax.tree.map(np.asarray, corrq.dequantize(corrq.load(path)))
        print("decoded", hashlib.sha256(back["a"]["kernel"].tobytes()).hexdigest())
    for suffix in (".npz", ".safetensors"):
        path = folder / f"floats{suffix}"
        write_weights(path, {"w": large, "b": np.zeros(3)}, overwrite=True)
        print(suffix, hashlib.sha256(path.read_bytes()).hexdigest())


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
