"""Saving and loading what lies on a mesh; run by test_sharded.py with eight devices."""

import dataclasses
import json
import random
import re

import fuzz_mutations
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import corrq_jax as corrq
from corrq_jax.sharded_index import index_text
from corrq_jax.tensor import QuantizedTensor


def mesh_of(shape, axes=("x", "y")):
    return jax.make_mesh(shape, axes, axis_types=(AxisType.Auto,) * len(axes))


def on(spec, shape=(4, 2)):
    return NamedSharding(mesh_of(shape), spec)


SHARDINGS = {
    "wide": on(P("x", None, "y")),
    "half": on(P(None, ("x", "y"))),
    "whole": on(P()),
    "bias": on(P("x")),
    "layers": [on(P("x")), on(P("y"))],
}


def floats():
    rng = np.random.default_rng(0)
    return {
        "wide": rng.normal(size=(8, 64, 48)).astype(np.float32),
        "half": rng.normal(size=(16, 24)).astype(jnp.bfloat16),
        "whole": rng.normal(size=(9, 7)).astype(np.float32),
        "bias": rng.normal(size=16).astype(np.float32),
        "layers": [rng.normal(size=(8, 5)).astype(np.float32) for _ in range(2)],
    }


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder, what is saved in it, and the same decoded on one device."""
    params = jax.tree.map(jax.device_put, floats(), SHARDINGS)
    tree, report = corrq.quantize(params, bits=3)
    folder = tmp_path_factory.mktemp("saved") / "net"
    nbytes = corrq.save_sharded(folder, tree, report=report)
    assert nbytes == sum(file.stat().st_size for file in folder.iterdir())
    return folder, tree, corrq.dequantize(corrq.quantize(floats(), bits=3)[0])


def assert_equal(found, expected):
    jax.tree.map(np.testing.assert_array_equal, corrq.dequantize(found), expected)


def test_the_index_names_each_part_once(saved):
    folder, tree, _ = saved
    index = json.loads((folder / "index.json").read_text())
    assert index["tensors"]["wide"]["blocks"] == [4, 1, 2]
    assert len(index["arrays"]["wide:codes"]["parts"]) == 8
    assert len(index["arrays"]["wide:levels"]["parts"]) == 1  # on all devices, written once
    assert len(index["arrays"]["bias"]["parts"]) == 4
    # Codes of 3 bits, levels, biases; names and parts take the rest.
    data = sum(array.nbytes for array in jax.tree.leaves(tree))
    (file,) = (f for f in folder.iterdir() if f.suffix == ".safetensors")
    assert data < file.stat().st_size < data + 8000


def test_into_host_memory(saved):
    folder, _, expected = saved
    found = corrq.load_sharded(folder)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(found))
    assert_equal(found, expected)


def test_onto_the_same_sharding(saved):
    folder, tree, expected = saved
    found = corrq.load_sharded(folder, shardings=SHARDINGS)
    assert_equal(found, expected)
    assert jax.tree.structure(found) == jax.tree.structure(tree)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(tree), strict=True):
        assert a.sharding.is_equivalent_to(b.sharding, a.ndim)
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("shape", "spec"), [((2, 4), P("x")), ((8, 1), P(None, "x")), ((4, 2), P("y")), ((8, 1), P())]
)
def test_onto_another_sharding(saved, shape, spec):
    folder, _, expected = saved
    wide = on(spec, shape)
    shardings = {**SHARDINGS, "wide": wide, "half": on(P("x"), (2, 4)), "bias": on(P(), (8, 1))}
    found = corrq.load_sharded(folder, shardings=shardings)
    assert_equal(found, expected)
    decoded = jax.jit(corrq.dequantize)(found["wide"])
    assert decoded.sharding.is_equivalent_to(wide, 3)
    np.testing.assert_array_equal(decoded, expected["wide"])


def test_from_host_memory_onto_a_mesh(tmp_path):
    tree, _ = corrq.quantize(floats(), bits=3)
    coded, _ = corrq.quantize({"coded": floats()["wide"]}, bits=3, coding="entropy")
    corrq.save_sharded(tmp_path, coded)
    assert_equal(corrq.load_sharded(tmp_path), corrq.dequantize(coded))
    corrq.save_sharded(tmp_path, tree)
    found = corrq.load_sharded(tmp_path, shardings=SHARDINGS)
    assert found["wide"].blocks == (4, 1, 2)
    assert_equal(found, corrq.dequantize(tree))


@pytest.mark.parametrize(
    ("coding", "levels"), [("trellis", 16), ("trellis", 64), ("entropy-trellis", 12)]
)
def test_along_a_trellis(coding, levels, tmp_path):
    def along(leaf):
        """Any codes and levels: a search for them would compile for long."""
        if not isinstance(leaf, QuantizedTensor):
            return leaf
        table = np.linspace(-1, 1, levels, dtype=np.float32)
        return dataclasses.replace(leaf, levels=table, coding=coding)

    packed, _ = corrq.quantize(floats(), bits=3)
    tree = jax.tree.map(along, packed, is_leaf=lambda leaf: isinstance(leaf, QuantizedTensor))
    corrq.save_sharded(tmp_path, tree)
    assert_equal(corrq.load_sharded(tmp_path), corrq.dequantize(tree))
    found = corrq.load_sharded(tmp_path, shardings=jax.tree.map(lambda _: on(P()), SHARDINGS))
    assert_equal(found, corrq.dequantize(tree))
    with pytest.raises(corrq.InputError, match="along a trellis"):
        corrq.load_sharded(tmp_path, shardings=SHARDINGS)


def test_empty_arrays(tmp_path):
    tree = {"here": np.zeros((0, 3), jnp.bfloat16), "there": jnp.zeros((8, 0), device=on(P("x")))}
    corrq.save_sharded(tmp_path, tree)
    found = corrq.load_sharded(tmp_path)
    assert {k: (v.shape, v.dtype) for k, v in found.items()} == {
        k: (v.shape, v.dtype) for k, v in tree.items()
    }
    found = corrq.load_sharded(tmp_path, shardings={"here": on(P()), "there": on(P("x"))})
    assert found["there"].sharding.is_equivalent_to(tree["there"].sharding, 2)


def test_saving_again_replaces_and_leaves_nothing(saved, tmp_path):
    _, tree, _ = saved
    corrq.save_sharded(tmp_path, tree)
    with pytest.raises(FileExistsError, match="a tree is saved here"):
        corrq.save_sharded(tmp_path, tree, overwrite=False)
    before = set(tmp_path.iterdir())
    corrq.save_sharded(tmp_path, {"bias": tree["bias"]})
    after = set(tmp_path.iterdir())
    assert len(after) == 2
    assert before & after == {tmp_path / "index.json"}
    assert list(corrq.load_sharded(tmp_path)) == ["bias"]


@pytest.mark.parametrize("at", [0.02, 0.3, 0.6, 0.99])
@pytest.mark.parametrize("which", ["index.json", "*.safetensors"])
def test_damage_is_found(saved, tmp_path, which, at):
    folder, _, _ = saved
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (file,) = tmp_path.glob(which)
    data = bytearray(file.read_bytes())
    data[int(at * len(data))] ^= 1
    file.write_bytes(data)
    with pytest.raises(corrq.FileFormatError, match="damaged"):
        corrq.load_sharded(tmp_path)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=re.escape(file.name)):
        corrq.load_sharded(tmp_path)


@pytest.mark.parametrize("seed", range(10))
def test_an_index_that_is_wrong_throughout_is_refused(saved, tmp_path, seed):
    """Its checksum fits: only what it says tells. Whatever is loaded all the same can be used."""
    folder, _, _ = saved
    index = json.loads((folder / "index.json").read_text())
    (file,) = folder.glob("*.safetensors")
    (tmp_path / file.name).write_bytes(file.read_bytes())
    rng, refused = random.Random(seed), 0
    for _ in range(60):
        wrong = fuzz_mutations.damaged_json(rng, {k: index[k] for k in index if k != "crc32"})
        (tmp_path / "index.json").write_text(index_text({"version": 1, **wrong}))
        try:
            corrq.dequantize(corrq.load_sharded(tmp_path))
        except corrq.FileFormatError as error:
            assert "damaged" in str(error) or "upgrade corrq_jax" in str(error)  # noqa: PT017
            refused += 1
        except FileNotFoundError as error:
            assert ".safetensors" in str(error)  # noqa: PT017
            refused += 1
    assert refused > 40


@pytest.mark.parametrize("record", [None, 3, [], {}, "x"], ids=str)
def test_a_record_of_another_kind_is_refused(saved, tmp_path, record):
    folder, _, _ = saved
    index = json.loads((folder / "index.json").read_text())
    (file,) = folder.glob("*.safetensors")
    (tmp_path / file.name).write_bytes(file.read_bytes())
    index["tensors"]["wide"] = record
    del index["crc32"]
    (tmp_path / "index.json").write_text(index_text(index))
    with pytest.raises(corrq.FileFormatError, match="'wide'; the folder is damaged"):
        corrq.load_sharded(tmp_path)


def test_files_of_two_saves_are_not_mixed(saved, tmp_path):
    folder, tree, _ = saved
    corrq.save_sharded(tmp_path, corrq.dequantize(tree))
    (mine,), (other,) = (f.glob("*.safetensors") for f in (folder, tmp_path))
    (tmp_path / "index.json").write_bytes((folder / "index.json").read_bytes())
    other.rename(tmp_path / mine.name)
    with pytest.raises(corrq.FileFormatError, match="not the file that its index names"):
        corrq.load_sharded(tmp_path)


def test_what_cannot_be_is_named(saved):
    folder, _, _ = saved
    with pytest.raises(corrq.InputError, match=r"'bias'.* missing"):
        corrq.load_sharded(folder, shardings={k: v for k, v in SHARDINGS.items() if k != "bias"})
    with pytest.raises(corrq.InputError, match=r"whole: .*equal parts"):
        corrq.load_sharded(folder, shardings={**SHARDINGS, "whole": on(P("x"))})
    with pytest.raises(corrq.InputError, match="wide has a P"):
        corrq.load_sharded(folder, shardings={**SHARDINGS, "wide": P("x")})
    with pytest.raises(FileNotFoundError, match=r"no index\.json"):
        corrq.load_sharded(folder / "nowhere")
