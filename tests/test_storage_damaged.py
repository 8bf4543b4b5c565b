"""Files that are damaged, foreign, newer or made up: never read as something else."""

import dataclasses
import json
import zlib

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from stored_trees import TINY, W, same

import corrq_jax as corrq
from corrq_jax.tensor import QuantizedTensor


def test_a_damaged_leaf_does_not_spoil_the_others(tmp_path):
    path = tmp_path / "net.safetensors"
    corrq.save(path, {"a": W, "b": W})
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with corrq.Archive(path) as archive:
        np.testing.assert_array_equal(archive["a"], W)
        with pytest.raises(corrq.FileFormatError, match="checksum of 'b' does not fit its data"):
            archive["b"]


@pytest.mark.parametrize("bit", [0, 2, 7])
def test_a_flipped_bit_is_never_read_as_something_else(bit, tmp_path):
    path = tmp_path / "net.safetensors"
    corrq.save(path, TINY)
    data = path.read_bytes()
    damaged = tmp_path / "damaged.safetensors"
    wrong = []
    for at in range(len(data)):
        damaged.write_bytes(data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :])
        try:
            again = corrq.load(damaged)
        except corrq.FileFormatError as error:
            assert str(damaged) in str(error)  # noqa: PT017
            continue
        if not same(again, TINY):
            wrong.append((at, data[max(0, at - 20) : at + 20]))
    assert not wrong


def test_a_truncated_file_is_an_error_at_every_length(tmp_path):
    path = tmp_path / "net.safetensors"
    corrq.save(path, TINY)
    data = path.read_bytes()
    for size in range(len(data)):
        path.write_bytes(data[:size])
        with pytest.raises(corrq.FileFormatError, match=r"damaged, .*make or fetch it again"):
            corrq.load(path)


def test_what_is_too_long_is_an_error(tmp_path):
    path = tmp_path / "net.safetensors"
    corrq.save(path, TINY)
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(corrq.FileFormatError):
        corrq.load(path)


def rewritten(path, change):
    """The file of TINY with its corrq record changed and the checksum of the header made to fit."""
    corrq.save(path, TINY)
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    record = json.loads(header["__metadata__"]["corrq"])
    record = change(record)

    def text():
        header["__metadata__"]["corrq"] = json.dumps(record)
        raw = json.dumps(header).encode()
        return raw + b" " * (-len(raw) % 8)

    if isinstance(record, dict) and "crc32" in record:
        rest = record["crc32"][8:]
        record["crc32"] = "0" * (8 + len(rest))
        record["crc32"] = f"{zlib.crc32(text()):08x}" + rest
    path.write_bytes(len(text()).to_bytes(8, "little") + text() + data[8 + size :])
    return path


def without(key):
    return lambda r: {k: v for k, v in r.items() if k != key}


def tensor_with(**fields):
    return lambda r: r | {"tensors": {"w": r["tensors"]["w"] | fields}}


def test_a_newer_version_says_upgrade(tmp_path):
    path = rewritten(tmp_path / "a", lambda r: r | {"version": 3})
    with pytest.raises(
        corrq.FileFormatError, match="version 3, and this corrq_jax reads versions 1 to 2"
    ):
        corrq.load(path)


@pytest.mark.parametrize(
    "change",
    [
        without("version"),
        without("tensors"),
        without("crc32"),
        lambda r: r | {"tensors": []},
        lambda r: r | {"crc32": r["crc32"][:-1]},
        tensor_with(bits=9),
        tensor_with(bits=True),
        tensor_with(bits=3),
        tensor_with(bits=1),
        tensor_with(shape=[2, 3]),
        tensor_with(shape=[2, -2]),
        tensor_with(shape=[2.0, 2]),
        tensor_with(shape=[1 << 40, 1 << 40]),
        tensor_with(dtype="I32"),
        lambda r: r | {"tensors": r["tensors"] | {"x": r["tensors"]["w"]}},
        lambda r: r | {"containers": {"": "set"}},
        lambda r: r | {"containers": {"": "leaf"}},
        lambda r: r | {"containers": {"": "list"}},
        lambda r: r | {"containers": {"": "int"}},
        lambda r: r | {"containers": {"w": "dict"}},
        lambda r: r | {"containers": {"b/0": "none"}},
        lambda r: r | {"containers": {"x": "none", "x/y": "none"}},
        lambda r: r | {"containers": {"x": "list", "x/1": "none"}},
        lambda r: r | {"containers": {"x": "int", "x/01": "none"}},
        lambda r: r | {"containers": {"x/": "none"}},
        lambda r: r | {"containers": {"x~3": "none"}},
        lambda r: r | {"containers": {"x": "leaf"}},
        lambda r: r | {"containers": {"/".join("x" * 5000): "none"}},
        lambda r: r | {"crc32": r["crc32"][:-1] + "\ud800"},
        tensor_with(shape=[2, 2] + [1] * 63),
        lambda r: r | {"containers": []},
        lambda r: r | {"containers": {"": []}},
        lambda r: [],
        lambda r: "text",
    ],
)
def test_a_record_that_does_not_fit_is_an_error(change, tmp_path):
    path = rewritten(tmp_path / "a", change)
    with pytest.raises(corrq.FileFormatError, match="damaged"):
        corrq.load(path)


def test_a_code_without_a_level_is_an_error(tmp_path):
    """`jnp.take` would give the last level, and another reader something else."""
    path = tmp_path / "a"
    for bits, packed in ((2, [0b11100100]), (8, [0, 1, 2, 3])):
        w = QuantizedTensor(np.array(packed, np.uint8), TINY["w"].levels, (2, 2), "float32", bits)
        corrq.save(path, {"w": dataclasses.replace(w, levels=w.levels[:3])})
        with pytest.raises(corrq.FileFormatError, match=r"a: 'w' has a code 3 and levels for 3"):
            corrq.load(path)
    stack = QuantizedTensor(
        np.array([[0], [1], [3]], np.uint8), np.zeros((3, 3), np.float32), (2,), "float32", 4
    )
    corrq.save(path, [stack])
    with pytest.raises(corrq.FileFormatError, match=r"'0' has a code 3 and levels for 3"):
        corrq.load(path)


def test_a_rewritten_record_that_fits_is_read(tmp_path):
    assert same(corrq.load(rewritten(tmp_path / "a", lambda r: r | {"future": 1})), TINY)


def test_a_foreign_file_says_what_reads_it(tmp_path):
    path = tmp_path / "other.safetensors"
    safetensors.numpy.save_file({"a": W}, path)
    with pytest.raises(
        corrq.FileFormatError, match=r"not one that corrq_jax.save wrote.*read_weights"
    ):
        corrq.load(path)


@pytest.mark.parametrize("data", [b"", b"PK\3\4", b"\0" * 100, b"\x89HDF\r\n\x1a\n"])
def test_something_else_is_an_error(data, tmp_path):
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(corrq.FileFormatError, match="not a whole safetensors file"):
        corrq.load(tmp_path / "a")
