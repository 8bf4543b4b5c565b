"""Files of entropy-coded tensors and of scales: what comes back, what they hold, and damage."""

import dataclasses
import json
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import corrq_jax as corrq
from corrq_jax import entropy, layout, paths
from corrq_jax.core import coding
from corrq_jax.tensor import QuantizedTensor, Rows

ROWS = Rows(before=30, channels=4, after=1, group=8)


def tensor(how="entropy", rows=None, dtype="float32", levels=5, shape=(5, 6, 4), seed=0):
    """Any codes and levels: not what a search would find."""
    rng = np.random.default_rng(seed)
    bits = max(1, (levels - 1).bit_length())
    codes = rng.binomial(levels - 1, 0.4, size=int(np.prod(shape))).astype(np.uint8)
    wide = np.float64 if dtype == "float64" else np.float32
    table = np.sort(rng.normal(size=levels)).astype(wide)
    scales = None if rows is None else rng.uniform(0.5, 2, size=rows.shape).astype(np.float16)
    packed = np.asarray(coding.pack(codes, bits))
    return QuantizedTensor(packed, table, shape, dtype, bits, scales, rows, how)


TREE = {
    "a": {"kernel": tensor(), "bias": np.arange(3, dtype=np.float32)},
    "b": {"kernel": tensor("packed", ROWS, seed=1)},
    "c/d": tensor("entropy", ROWS, seed=2),
    "one": tensor(levels=1),
    "wide": tensor("entropy", ROWS, "float64", levels=200, seed=3),
    "narrow": [tensor("entropy", Rows(5, 6, 4, 20), "bfloat16", seed=4), tensor(dtype="float16")],
}


def leaves_of(tree):
    return dict(paths.flatten(tree)[0])


def check_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)  # static fields as well
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert (x.dtype, x.shape) == (y.dtype, y.shape)
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def test_coded_and_scaled_tensors_come_back(tmp_path):
    path = tmp_path / "net.safetensors"
    assert corrq.save(path, TREE) == path.stat().st_size
    again = corrq.load(path)
    check_same(again, TREE)
    for name, leaf in leaves_of(TREE).items():
        if isinstance(leaf, QuantizedTensor):
            found = leaves_of(again)[name]
            assert (found.coding, found.rows) == (leaf.coding, leaf.rows)
    check_same(corrq.dequantize(again), corrq.dequantize(TREE))


def test_a_quantized_network_comes_back_and_its_size_was_known(tmp_path):
    rng = np.random.default_rng(0)
    w = (rng.laplace(size=(90, 40)) * np.geomspace(0.1, 1, 40)).astype(np.float32)
    tree = {"kernel": w, "bias": w[0], "tiny": {"kernel": w[:4, :4]}}
    options = {"coding": "entropy", "granularity": "channel"}
    quantized, report = corrq.quantize(tree, bits_per_weight=3.5, **options)
    assert quantized["kernel"].coding == "entropy"
    assert quantized["kernel"].scales.shape == (1, 40)
    path = tmp_path / "net.safetensors"
    assert corrq.save(path, quantized) == report.file_nbytes == path.stat().st_size
    check_same(corrq.load(path), quantized)
    corrq.save(path, quantized, report=report)
    assert path.stat().st_size > report.file_nbytes
    with corrq.Archive(path) as archive:
        for row in report:
            found = archive.record(row.path)["noise"]
            assert found == pytest.approx(row.noise, rel=1e-5)  # six digits are recorded


def test_what_lies_in_the_file(tmp_path):
    path = tmp_path / "net.safetensors"
    corrq.save(path, TREE)
    found = safetensors.numpy.load_file(path)
    assert {name for name in found if name.startswith("a/")} == {
        *("a/kernel:stream", "a/kernel:levels", "a/bias")
    }
    parts = ("stream", "levels", "scales")
    assert {name for name in found if name.startswith("c~1d")} == {f"c~1d:{p}" for p in parts}
    assert {name for name in found if name.startswith("b/")} == {
        *("b/kernel:codes", "b/kernel:levels", "b/kernel:scales")
    }
    leaf = TREE["a"]["kernel"]
    stream = found["a/kernel:stream"]
    assert (stream.dtype, stream.ndim) == (np.uint8, 1)
    np.testing.assert_array_equal(entropy.decode(stream, 120), leaf.unpacked())
    assert found["b/kernel:scales"].dtype == np.float16
    np.testing.assert_array_equal(found["b/kernel:scales"], TREE["b"]["kernel"].scales)
    assert found["one:stream"].size == 7  # a version, and a table of one code
    with corrq.Archive(path) as archive:
        record = archive.record("b/kernel")
        assert record == {"bits": 3, "shape": [5, 6, 4], "dtype": "F32", "rows": [30, 4, 1, 8]}
        assert archive.names() == sorted(["a/bias", "a/kernel", "b/kernel", "c~1d", "one", "wide",
                                          "narrow/0", "narrow/1"])  # fmt: skip
        for name in ("a/kernel", "b/kernel", "c~1d"):
            own = [x.nbytes for n, x in found.items() if n.startswith(f"{name}:")]
            assert archive.leaf_nbytes(name) == sum(own)


def test_the_value_of_a_weight_is_level_times_scale():
    """As docs/format.md puts it, weight by weight."""
    leaf = TREE["b"]["kernel"]
    codes = leaf.unpacked().reshape(30, 4)
    decoded = np.asarray(leaf.dequantize()).reshape(30, 4)
    for i in range(30):
        for channel in range(4):
            scale = np.float32(leaf.scales[i // 8, channel])
            assert decoded[i, channel] == leaf.levels[codes[i, channel]] * scale


def test_coded_tensors_take_less_than_packed_ones(tmp_path):
    codes = np.random.default_rng(0).binomial(6, 0.5, size=50_000).astype(np.uint8)
    packed = dataclasses.replace(
        tensor("packed", levels=7, shape=(50_000,)), codes=np.asarray(coding.pack(codes, 3))
    )
    sizes = [
        corrq.save(tmp_path / how, {"w": dataclasses.replace(packed, coding=how)})
        for how in ("packed", "entropy")
    ]
    p = np.bincount(codes) / codes.size
    saved = (3 + (p * np.log2(p)).sum()) * codes.size / 8
    # The coder itself adds next to nothing; its table does.
    assert sizes[0] - sizes[1] == pytest.approx(saved, abs=150)


def test_stacks_stay_packed(tmp_path):
    path = tmp_path / "net.safetensors"
    stack = jax.tree.map(
        lambda *x: np.stack(x), tensor("entropy", ROWS), tensor("entropy", ROWS, seed=5)
    )
    corrq.save(path, {"scan": stack})
    names = set(safetensors.numpy.load_file(path))
    assert names == {"scan:codes", "scan:levels", "scan:scales"}
    again = corrq.load(path)["scan"]
    assert again.coding == "packed"
    check_same(dataclasses.replace(again, coding="entropy"), stack)
    np.testing.assert_array_equal(again.dequantize(), stack.dequantize())


@pytest.mark.parametrize("name", ["a/kernel", "b/kernel", "c/d", "one", "narrow/0", "narrow/1"])
def test_decoding_inside_jit_is_decoding_outside(name, tmp_path):
    corrq.save(tmp_path / "a", TREE)
    leaf = leaves_of(corrq.load(tmp_path / "a"))[name]
    inside = jax.jit(corrq.dequantize)({"w": jax.tree.map(jnp.asarray, leaf)})["w"]
    outside = leaf.dequantize()
    assert inside.dtype == outside.dtype
    np.testing.assert_array_equal(np.asarray(inside), np.asarray(outside))


def rewritten(path, arrays=None, **fields):
    """The file of one scaled, coded tensor with parts replaced, all its checksums made to fit.

    Args:
        path: where.
        arrays: for the end of a name a function of the array; None as result leaves it out.
        fields: in the record; None leaves a field out.
    """
    corrq.save(path, {"w": tensor("entropy", ROWS, seed=2)})
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    record = json.loads(header.pop("__metadata__")["corrq"])
    own = {k: v for k, v in (record["tensors"]["w"] | fields).items() if v is not None}
    record["tensors"]["w"] = own
    stored = safetensors.numpy.load_file(path)
    stored = {name: stored[name] for name in header}
    for end, change in (arrays or {}).items():
        changed = change(stored.pop(f"w:{end}", None))
        if changed is not None:
            stored[f"w:{end}"] = np.ascontiguousarray(changed)
    body, start = {}, 0
    for name, x in sorted(stored.items(), key=lambda item: -item[1].itemsize):
        body[name] = layout.Stored(name, x).header(start)
        start += x.nbytes
    raw = [stored[name].tobytes() for name in body]

    def text(checksums):
        record["crc32"] = "".join(f"{value:08x}" for value in checksums)
        found = json.dumps({"__metadata__": {"corrq": json.dumps(record)}, **body}).encode()
        return found + b" " * (-len(found) % 8)

    sums = [zlib.crc32(x) for x in raw]
    top = text([zlib.crc32(text([0] * (1 + len(sums)))), *sums])
    path.write_bytes(len(top).to_bytes(8, "little") + top + b"".join(raw))
    return path


def test_a_rewritten_file_is_read(tmp_path):
    """So that what fails below fails for its own reason."""
    path = rewritten(tmp_path / "net", {"levels": lambda x: 2 * x}, future=1)
    expected = tensor("entropy", ROWS, seed=2)
    check_same(corrq.load(path)["w"], dataclasses.replace(expected, levels=2 * expected.levels))


BROKEN_STREAMS = {
    "flipped bit of the table": {
        "stream": lambda x: x ^ np.where(np.arange(x.size) == 4, 16, 0).astype("u1")
    },
    "codes without a level": {
        "stream": lambda x: entropy.encode(np.arange(120, dtype=np.uint8) % 6)
    },
    "cut": {"stream": lambda x: x[:-1]},
    "longer": {"stream": lambda x: np.append(x, np.uint8(7))},
    "ends in zero": {"stream": lambda x: np.append(x, np.uint8(0))},
    "stream of another kind": {"stream": lambda x: x[: x.size // 2 * 2].view(np.uint16)},
}


@pytest.mark.parametrize("arrays", BROKEN_STREAMS.values(), ids=BROKEN_STREAMS)
def test_what_cannot_be_decoded_names_file_and_leaf(arrays, tmp_path):
    path = rewritten(tmp_path / "net.safetensors", arrays)
    with pytest.raises(corrq.FileFormatError, match=r"'w' cannot be decoded.*damaged") as error:
        corrq.load(path)
    assert str(path) in str(error.value)


BROKEN_PARTS = {
    "levels of a stack": {"levels": lambda x: x[None]},
    "no levels": {"levels": lambda x: x[:0]},
    "more levels": {"levels": lambda x: np.resize(x, 9)},
    "wide scales": {"scales": lambda x: x.astype(np.float32)},
    "fewer scales": {"scales": lambda x: x[:, :-1]},
    "flat scales": {"scales": lambda x: x.reshape(-1)},
    "scales of a stack": {"scales": lambda x: x[None]},
}


@pytest.mark.parametrize("arrays", BROKEN_PARTS.values(), ids=BROKEN_PARTS)
def test_parts_that_do_not_fit_each_other_name_file_and_leaf(arrays, tmp_path):
    path = rewritten(tmp_path / "net.safetensors", arrays)
    with pytest.raises(corrq.FileFormatError, match=r"of 'w' do not fit.*damaged") as error:
        corrq.load(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    "rows",
    [
        [30, 4, 1, 9],
        [31, 4, 1, 8],
        [30, 4, 1, 2],
        [15, 4, 1, 8],
        [15, 8, 1, 8],
        [30, 2, 2, 8],
        [1 << 40, 4, 1, 8],
    ],
    ids=str,
)
def test_rows_that_do_not_fit_name_file_and_leaf(rows, tmp_path):
    path = rewritten(tmp_path / "net.safetensors", rows=rows)
    if rows == [30, 4, 1, 9]:  # as many groups of a channel: 4 of 9 and 3, instead of 8 and 6
        assert corrq.load(path)["w"].rows == Rows(*rows)
        return
    with pytest.raises(corrq.FileFormatError, match=r"of 'w' do not fit.*damaged") as error:
        corrq.load(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("arrays", "fields"),
    [
        ({}, {"rows": None}),
        ({"scales": lambda x: None}, {}),
        ({}, {"rows": [30, 4, 8]}),
        ({}, {"rows": [30, 4, 1, 0]}),
        ({}, {"rows": [30, 4, -1, 8]}),
        ({}, {"rows": [30.0, 4, 1, 8]}),
        ({}, {"rows": "text"}),
        ({}, {"noise": "text"}),
        ({}, {"noise": 2}),
        ({}, {"noise": float("nan")}),
        ({"codes": lambda x: np.zeros(45, np.uint8)}, {}),
        ({"stream": lambda x: None}, {}),
        ({"frequencies": lambda x: np.ones(5, np.uint8)}, {}),
        ({"levels": lambda x: None}, {}),
    ],
    ids=lambda changes: "-".join(changes) or "unchanged",  # their values have no fixed text
)
def test_a_record_that_does_not_fit_names_the_file(arrays, fields, tmp_path):
    path = rewritten(tmp_path / "net.safetensors", arrays, **fields)
    with pytest.raises(corrq.FileFormatError, match="record does not fit its tensors") as error:
        corrq.load(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("shape", [[5, 6, 3], [5, 6, 5], [0], [1 << 40, 1 << 40]], ids=str)
def test_another_shape_is_an_error(shape, tmp_path):
    path = rewritten(tmp_path / "net.safetensors", shape=shape)
    with pytest.raises(corrq.FileFormatError, match=r"'w'.*damaged"):
        corrq.load(path)


def test_what_a_small_file_claims_is_bounded_and_save_keeps_to_the_bound(tmp_path):
    """A constant tensor takes no bytes in a file, and any number in memory."""
    path = tmp_path / "net.safetensors"
    rewritten(path, {"scales": lambda x: None}, shape=[2**20, 2**10], rows=None)
    with pytest.raises(corrq.FileFormatError, match=r"'w' the largest, would take 402653184 bytes"):
        corrq.load(path)
    size = 2**29 + 8 * 10**6
    large = dataclasses.replace(
        tensor(levels=1), codes=np.zeros(size // 8, np.uint8), shape=(size,)
    )
    path.unlink()
    with pytest.raises(corrq.InputError, match=r"net.safetensors: .* so uniform .*packed"):
        corrq.save(path, {"w": large})
    assert not path.exists()
    corrq.save(path, {"w": dataclasses.replace(large, coding="packed")})


@pytest.mark.parametrize("bit", [0, 6])
def test_a_flipped_bit_is_never_read_as_something_else(bit, tmp_path):
    path, damaged = tmp_path / "net", tmp_path / "damaged"
    tree = {"w": tensor("entropy", Rows(2, 3, 1, 2), shape=(2, 3))}
    corrq.save(path, tree)
    data = path.read_bytes()
    wrong = []
    for at in range(len(data)):
        damaged.write_bytes(data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :])
        try:
            corrq.load(damaged)
        except corrq.FileFormatError:
            continue
        wrong.append((at, data[max(0, at - 20) : at + 20]))
    assert not wrong
