"""One of two processes that share a network and quantize it: give NUMBER PORT FOLDER."""

import pathlib
import sys

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import corrq_jax as corrq

SPECS = {
    "rows": P("x"),
    "both": P("x", "y"),
    "columns": P(None, "y"),  # each process holds all of it
    "few": P("x", "y"),
    "small": P("x"),
    "whole": P(),
    "bias": P("x"),
}


def floats():
    """The network's parameters, whatever the sharding."""
    rng = np.random.default_rng(0)
    shapes = {"rows": (64, 512), "both": (128, 256), "columns": (256, 128), "small": (8, 6)}
    made = {name: rng.laplace(size=shape).astype(np.float32) for name, shape in shapes.items()}
    few = rng.choice([-1.5, 0.0, 0.25, 4.0], (256, 96)).astype(np.float32)
    few[:128] = np.abs(few[:128])  # the first process never sees -1.5
    whole, bias = (rng.normal(size=shape).astype(np.float32) for shape in ((30, 5), (16,)))
    return {**made, "few": few, "whole": whole, "bias": bias}


def main(number, port, folder):
    jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=number)
    assert (jax.process_count(), jax.device_count(), jax.local_device_count()) == (2, 4, 2)
    mesh = jax.make_mesh((2, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    shardings = {name: NamedSharding(mesh, spec) for name, spec in SPECS.items()}
    params = {
        name: jax.make_array_from_callback(w.shape, shardings[name], w.__getitem__)
        for name, w in floats().items()
    }
    qparams, report = corrq.quantize(params, bits=3)
    corrq.save_sharded(folder / "net", qparams, report=report)
    mixed, _ = corrq.quantize(params, bits_per_weight=2.5)
    corrq.save_sharded(folder / "mixed", mixed)
    again = corrq.load_sharded(folder / "net", shardings=shardings)
    weights = jax.jit(corrq.dequantize)(qparams)
    decoded = corrq.dequantize(again)  # outside of jit
    for name, w in weights.items():
        assert w.sharding.is_equivalent_to(shardings[name], w.ndim), name
        for shard, same in zip(w.addressable_shards, decoded[name].addressable_shards, strict=True):
            np.testing.assert_array_equal(shard.data, same.data)
    with pytest.raises(corrq.InputError, match=r"corrq_jax\.save_sharded"):
        corrq.save(folder / "one", qparams)
    (folder / f"report-{number}").write_text(str(report))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], pathlib.Path(sys.argv[3]))
