"""Files: the tree comes back as it was, or an error says why not."""

import dataclasses
import pathlib
import struct
import zlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from stored_trees import TINY, W, same, tensor

import corrq_jax as corrq
from corrq_jax.tensor import is_quantized


def round_trip(tree, folder, **options):
    path = folder / "net.safetensors"
    size = corrq.save(path, tree)
    assert path.stat().st_size == size
    return corrq.load(path, **options)


arrays = st.sampled_from(["<f4", "<f8", "<f2", "<i4", "|u1", "|b1", "<i8"]).flatmap(
    lambda d: hnp.arrays(d, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))
)
quantized = st.builds(
    tensor,
    bits=st.integers(1, 8),
    shape=hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
    dtype=st.sampled_from(["float32", "float16", "bfloat16", "float64"]),
    seed=st.integers(0, 99),
)
text = st.text(alphabet="ab/~01:. é", max_size=4)
trees = st.recursive(
    arrays | quantized | st.none(),
    lambda child: (
        st.dictionaries(text, child, max_size=3)
        | st.dictionaries(st.integers(-3, 12), child, max_size=3)
        | st.lists(child, max_size=3)
        | st.lists(child, max_size=3).map(tuple)
    ),
    max_leaves=8,
)


@given(tree=trees)
@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_tree_comes_back(tree, tmp_path):
    try:
        again = round_trip(tree, tmp_path)
    except corrq.InputError as error:  # As "a/codes" beside a quantized "a" can bring about.
        assert "two leaves" in str(error)  # noqa: PT017
        return
    assert same(again, tree)


@pytest.mark.parametrize(
    "tree",
    [
        {"a/b": {"c": W}, "a": {"b/c": 2 * W}},
        {"a~1b": W, "a/b": 2 * W, "~": W[0], "~0": W[1], "~1": W[2]},
        {"": W, "a": {"": {"": W[0]}}},
        {"": None},
        {"": [W]},
        {"~2": W, "": W[0], "~02": W[1]},
        {3: W, 12: W[0], -1: W[1]},
        {"3": W, "12": W[0]},
        [W, (W[0], [W[1]]), None, {}, [], ()],
        [W[0]] * 12,
        {"a": None, "b": {"c": {}}},
        {},
        [],
        (),
        None,
        W,
        tensor(),
    ],
    ids=str,
)
def test_awkward_trees_come_back(tree, tmp_path):
    assert same(round_trip(tree, tmp_path), tree)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_narrow_floats_come_back(dtype, tmp_path):
    tree = {"a": jnp.asarray(W, dtype), "b": np.asarray(W).astype(ml_dtypes.bfloat16)}
    assert same(round_trip(tree, tmp_path), tree)


def test_odd_memory_layouts_come_back(tmp_path):
    tree = {"t": W.T, "s": W[::2, ::-1], "f": np.asfortranarray(W), "e": W.astype(">f4")}
    again = round_trip(tree, tmp_path)
    for key, array in tree.items():
        np.testing.assert_array_equal(again[key], array)
        assert again[key].dtype == np.float32


def test_a_quantized_network_comes_back_and_its_size_was_known(tmp_path):
    tree = {"dense": {"kernel": W, "bias": W[0]}, "wide": W.astype(np.float64), "s": np.float32(3)}
    quantized, report = corrq.quantize(tree)
    path = tmp_path / "net.safetensors"
    assert corrq.save(path, quantized) == report.file_nbytes == path.stat().st_size
    again = corrq.load(path)
    assert same(again, quantized)
    assert same(corrq.dequantize(again), corrq.dequantize(quantized))


def test_every_byte_of_the_file_is_accounted_for(tmp_path):
    quantized, report = corrq.quantize({f"layer_{i}/kernel": W + i for i in range(20)})
    assert corrq.save(tmp_path / "a", quantized) == report.file_nbytes
    # The rest is the version, the shape of the JSON, longer offsets and padding.
    assert 0 <= report.file_nbytes - report.nbytes < 600


def test_safetensors_opens_the_file(tmp_path):
    path = tmp_path / "net.safetensors"
    tree = {"a": {"kernel": tensor()}, "b": W}
    corrq.save(path, tree)
    found = safetensors.numpy.load_file(path)
    assert set(found) == {"a/kernel:codes", "a/kernel:levels", "b"}
    np.testing.assert_array_equal(found["b"], W)
    np.testing.assert_array_equal(found["a/kernel:codes"], tree["a"]["kernel"].codes)


def test_literal_bytes(tmp_path):
    path = tmp_path / "net.safetensors"
    corrq.save(path, TINY)
    b, levels, codes = struct.pack("<2f", 1, -2), struct.pack("<4f", -1, 0, 0.5, 2), b"\xe4"
    header = (
        '{"__metadata__":{"corrq":"{\\"version\\":2,\\"tensors\\":{\\"w\\":{\\"bits\\":2,'
        '\\"shape\\":[2,2],\\"dtype\\":\\"F32\\"}},\\"crc32\\":\\"CRC\\"}"},'
        '"b":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
        '"w:levels":{"dtype":"F32","shape":[4],"data_offsets":[8,24]},'
        '"w:codes":{"dtype":"U8","shape":[1],"data_offsets":[24,25]}}'
    )
    parts = [b, levels, codes]
    header = header.replace("CRC", "0" * 8 * (1 + len(parts)))
    header += " " * (-len(header) % 8)
    crc = "".join(f"{zlib.crc32(part):08x}" for part in [header.encode(), *parts])
    header = header.replace("0" * len(crc), crc).encode()
    expected = struct.pack("<Q", len(header)) + header + b + levels + codes
    assert path.read_bytes() == expected


def test_same_bytes_on_every_run(tmp_path):
    quantized, report = corrq.quantize({"a": {"kernel": W}, "b": W[0]})
    again, _ = corrq.quantize({"a": {"kernel": W}, "b": W[0]})
    for name, tree in (("1", quantized), ("2", again)):
        corrq.save(tmp_path / name, tree, report=report)
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_archive_reads_leaf_by_leaf(tmp_path):
    path = tmp_path / "net.safetensors"
    quantized, report = corrq.quantize({"a": {"kernel": W}, "b": W[0]})
    corrq.save(path, quantized, report=report)
    with corrq.Archive(path) as archive:
        assert archive.names() == list(archive) == ["a/kernel", "b"]
        assert archive.is_quantized("a/kernel")
        assert not archive.is_quantized("b")
        assert same(archive["a/kernel"], quantized["a"]["kernel"])
        np.testing.assert_array_equal(archive["b"], W[0])
        assert archive.leaf_nbytes("b") == 28
        assert archive.leaf_nbytes("a/kernel") == quantized["a"]["kernel"].nbytes
        record = archive.record("a/kernel")
        assert record["noise"] == pytest.approx(report.rows[0].noise, rel=1e-5)
        assert (record["bits"], record["shape"]) == (4, [6, 7])
        assert same(archive.tree(), quantized)


def test_archive_reads_when_asked(tmp_path):
    path = tmp_path / "net.safetensors"
    coded = dataclasses.replace(tensor(4, (60, 50)), coding="entropy")
    tree = {"a": [tensor(), coded], "b": W, "c": None}
    corrq.save(path, tree)
    with corrq.Archive(path) as archive:
        lazy = archive.tree(lazy=True)
    corrq.save(tmp_path / "again", lazy)
    assert (tmp_path / "again").read_bytes() == path.read_bytes()
    assert same(jax.tree.map(np.asarray, lazy), tree)
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(corrq.FileFormatError, match="checksum"):
        jax.tree.map(np.asarray, lazy)


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no\.safetensors: there is no such file"):
        corrq.load(tmp_path / "no.safetensors")
    with pytest.raises(IsADirectoryError):
        corrq.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        corrq.save(tmp_path / "no" / "a", TINY)


def test_overwrite(tmp_path):
    path = tmp_path / "a"
    corrq.save(path, {"a": W})
    with pytest.raises(FileExistsError):
        corrq.save(path, TINY, overwrite=False)
    assert same(corrq.load(path), {"a": W})
    corrq.save(path, TINY)
    assert same(corrq.load(path), TINY)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


@dataclasses.dataclass
class Layer:
    kernel: Any
    bias: Any


jax.tree_util.register_dataclass(Layer, ["kernel", "bias"], [])


class Pair(NamedTuple):
    first: Any
    second: Any


def test_like_gives_dataclasses_and_named_tuples_back(tmp_path):
    tree = {"layer": Layer(tensor(), W[0]), "pair": Pair(W, [W[1], None])}
    plain = round_trip(tree, tmp_path)
    assert same(plain["layer"], {"bias": W[0], "kernel": tensor()})
    assert same(round_trip(tree, tmp_path, like=tree), tree)
    shapes = jax.tree.map(lambda x: None if is_quantized(x) else 0, tree, is_leaf=is_quantized)
    shapes["layer"] = Layer(0, 0)
    assert same(round_trip(tree, tmp_path, like=shapes), tree)


def test_like_of_other_paths_is_an_error(tmp_path):
    with pytest.raises(
        corrq.InputError, match=r"\['c'\] are missing in the file, \['b'\] are only"
    ):
        round_trip(TINY, tmp_path, like={"c": 0, "w": 0})


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"a": {"b": np.zeros(2, complex)}}, "a/b: a ndarray of dtype complex128 cannot be stored"),
        ({"a": ["text"]}, "a/0: a str of dtype"),
        ({"__metadata__": W}, "safetensors keeps the name '__metadata__' for itself"),
        ({"a": jnp.asarray(W, "float8_e5m2")}, "a: a .* of dtype float8_e5m2 cannot be stored"),
        ({"a": object()}, "a: a object of dtype object"),
        ({"a": {1.5: W, 2.5: W}}, r"a: the keys \[1.5, 2.5\] are neither all text nor all whole"),
        ({True: W, False: W}, "the tree: the keys"),
        *(
            ({"w": TINY["w"], f"w:{part}": W}, f"'w:{part}' is a name of what a quantized leaf is")
            for part in ("codes", "stream", "frequencies", "levels", "scales")
        ),
    ],
)
def test_what_cannot_be_stored_names_its_path(tree, message, tmp_path):
    with pytest.raises(corrq.InputError, match=message):
        corrq.save(tmp_path / "a", tree)
    assert list(pathlib.Path(tmp_path).iterdir()) == []
