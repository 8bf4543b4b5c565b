"""Orbax checkpoints of quantized trees and of float networks, alone and inside of a state."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx

import corrq_jax as corrq
import corrq_jax.orbax
from corrq_jax import stacks
from corrq_jax.errors import FileFormatError, InputError
from corrq_jax.paths import flatten
from corrq_jax.readers import read_checkpoint, read_weights
from corrq_jax.tensor import is_quantized


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(0)
    kernels = {name: jnp.float32(rng.normal(size=(12, 10))) for name in ("a", "b")}
    stack = {"kernel": rng.normal(size=(3, 8, 8)).astype(np.float32)}
    half = jnp.asarray(rng.normal(size=(6, 6)), jnp.bfloat16)
    return {"layers": [{"kernel": k} for k in kernels.values()], "blocks": stack, "half": half}


@pytest.fixture(scope="module")
def qparams(params):
    options = {"bits": {"layers/1": 5, "*": 3}, "stacked": "blocks", "granularity": "channel"}
    tree, _ = stacks.quantize(params, **options)
    assert sum(map(is_quantized, jax.tree.leaves(tree, is_leaf=is_quantized))) == 4
    return tree | {"bias": jnp.arange(3.0)}


def check_same(found, expected):
    theirs = dict(flatten(expected)[0])
    ours = dict(flatten(found)[0])
    assert ours.keys() == theirs.keys()
    for path, leaf in theirs.items():
        assert jax.tree.structure(ours[path]) == jax.tree.structure(leaf)  # bits, shape and so on
        for a, b in zip(jax.tree.leaves(ours[path]), jax.tree.leaves(leaf), strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)


def test_saved_and_loaded_without_a_template(qparams, tmp_path):
    corrq_jax.orbax.save(tmp_path / "net", qparams)
    found = corrq_jax.orbax.load(tmp_path / "net")
    check_same(found, qparams)
    jax.tree.map(np.testing.assert_array_equal, *map(corrq.dequantize, (found, qparams)))
    with pytest.raises(FileExistsError, match="net exists; give a new folder"):
        corrq_jax.orbax.save(tmp_path / "net", qparams)
    with pytest.raises(InputError, match="no arrays"):
        corrq_jax.orbax.save(tmp_path / "none", {})


def test_orbax_restores_by_itself_with_a_template(qparams, tmp_path):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "net", qparams)
    with ocp.StandardCheckpointer() as checkpointer:
        check_same(checkpointer.restore(tmp_path / "net", qparams), qparams)


def test_within_a_state_of_a_checkpoint_manager(qparams, tmp_path):
    state = {"step": np.int32(7), "params": corrq_jax.orbax.to_arrays(qparams)}
    with ocp.CheckpointManager(tmp_path / "run") as manager:
        manager.save(7, args=ocp.args.StandardSave(state))
        manager.wait_until_finished()
    back = corrq_jax.orbax.load(tmp_path / "run" / "7")
    check_same(back["params"], qparams)
    assert back["step"] == 7
    with pytest.raises(FileFormatError, match="not an Orbax checkpoint of a tree; check the path"):
        read_checkpoint(tmp_path / "run")


def test_float_checkpoints_are_weight_files(params, tmp_path, done):
    state = nnx.state(nnx.Linear(4, 3, rngs=nnx.Rngs(0)))
    tree = params | {"nnx": nnx.to_pure_dict(state), "step": 3}
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "net", tree)
    arrays = read_weights(tmp_path / "net")
    theirs = dict(flatten(tree)[0])
    assert arrays.keys() == theirs.keys()
    for path, leaf in theirs.items():
        assert arrays[path].dtype == np.asarray(leaf).dtype
        np.testing.assert_array_equal(arrays[path], leaf)
    done("quantize", tmp_path / "net", "-o", tmp_path / "net.safetensors", "--bits", 3)
    loaded = dict(flatten(corrq.load(tmp_path / "net.safetensors"))[0])
    wanted = dict(flatten(corrq.quantize(arrays, bits=3)[0])[0])
    for path in ("layers/0/kernel", "nnx/kernel"):
        np.testing.assert_array_equal(loaded[path].codes, wanted[path].codes)


def test_damage_is_named(qparams, tmp_path):
    corrq_jax.orbax.save(tmp_path / "net", qparams)
    with pytest.raises(FileNotFoundError, match="no such checkpoint folder"):
        corrq_jax.orbax.load(tmp_path / "nothing")
    large = {"kernel": np.random.default_rng(0).normal(size=(100, 100))}
    corrq_jax.orbax.save(tmp_path / "large", large)
    files = [p for p in (tmp_path / "large").rglob("*") if p.is_file()]
    largest = max(files, key=lambda p: p.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)
    with pytest.raises(FileFormatError, match="large: a damaged checkpoint"):
        corrq_jax.orbax.load(tmp_path / "large")
    arrays = corrq_jax.orbax.to_arrays({"kernel": qparams["half"]})
    arrays["kernel"]["corrq_jax"] = np.array([1, 2], np.uint8)
    with pytest.raises(FileFormatError, match="'corrq_jax' entry is damaged"):
        corrq_jax.orbax.from_arrays(arrays)
