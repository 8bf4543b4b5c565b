"""What is fuzzed: for each kind of file how damaged ones are made, read, and read independently."""

import contextlib
import copy
import functools
import io
import json
import math
import pathlib
import pickle
import sys
import zipfile
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import h5py
import numpy as np
import safetensors.numpy
import spec_reader
import torch_files
from fuzz_mutations import damaged, damaged_json, to_json
from stored_trees import tensor

import corrq_jax as corrq
from corrq_jax import entropy
from corrq_jax.readers import read_weights
from corrq_jax.readers.keras_layers import read_keras_layers
from corrq_jax.tensor import QuantizedTensor, Rows

CANARY = "canary"
"""A file that hostile pickles make, should they be run."""


class Kind(NamedTuple):
    """A kind of input.

    Attributes:
        suffix: of its files.
        make: a damaged input of a random.Random.
        read: what is tested, given the path; a CorrqError is a refusal.
        again: the same, given the input's bytes, read in an independent way; it may raise
            anything for what should have been refused.
        is_library: whether crashes, hangs and memory are those of a library known not to be proof.
    """

    suffix: str
    make: Callable[[Any], bytes]
    read: Callable[[pathlib.Path], Any]
    again: Callable[[bytes], Any]
    is_library: bool = False


# --- the files of corrq_jax.save


def _trees():
    rows = Rows(3, 2, 2, 4)
    scales = np.array([[1, 0.5], [2, 0.25]], np.float16)
    scaled = tensor(3, (3, 2, 2), "bfloat16")
    scaled = QuantizedTensor(scaled.codes, scaled.levels, (3, 2, 2), "bfloat16", 3, scales, rows)
    few = QuantizedTensor(np.array([0x11, 2], np.uint8), np.arange(3, dtype=np.float32), (3,),
                          "float32", 4)  # fmt: skip
    stack = QuantizedTensor(
        np.zeros((2, 1), np.uint8), np.ones((2, 2), np.float32), (2, 3), "float16", 1
    )
    codes = np.random.default_rng(0).binomial(6, 0.3, 60).astype(np.uint8)
    packed = np.packbits(
        np.unpackbits(codes[:, None], axis=1, bitorder="little")[:, :3], bitorder="little"
    )
    coded = [
        QuantizedTensor(packed[: -(-n * 3 // 8)], np.arange(levels, dtype=np.float32), (n,),
                        "float32", 3, None, None, "entropy")
        for n, levels in ((60, 7), (0, 1))
    ]  # fmt: skip
    alone = QuantizedTensor(np.zeros(3, np.uint8), np.ones(1, np.float32), (4, 6), "float32", 1,
                            None, None, "entropy")  # fmt: skip
    # 8 codes for 16 levels along a trellis; 6 for 12, and 2 for 4, entropy-coded too.
    along = [
        QuantizedTensor(packed, np.arange(16, dtype=np.float32), (60,), "float32", 3, None, None,
                        "trellis"),
        QuantizedTensor(np.array([0b10001101, 0b1010], np.uint8), np.arange(12, dtype=np.float64),
                        (4,), "float64", 3, None, None, "entropy-trellis"),
        QuantizedTensor(np.array([0xD3, 0x01], np.uint8), np.arange(4, dtype=np.float32), (3, 3),
                        "bfloat16", 1, None, None, "entropy-trellis"),
    ]  # fmt: skip
    floats = {"b": np.array([1.5, -2.0]), "n": np.array([3], np.int16)}
    return [
        {"a": scaled, "few": few, **floats},
        {"a/b": [coded[0], None, (stack,)], "c": {}, "": {3: np.float32(1)}},
        {"x": coded, "alone": alone, "x:codes": np.zeros(2, np.float16)},
        tensor(2, (5,), "float64"),
        {"t": along[0], "e": along[1:]},
    ]


@functools.cache
def _saved():
    files = []
    for tree in _trees():
        path = pathlib.Path("made.safetensors")
        corrq.save(path, tree)
        files.append(path.read_bytes())
        path.unlink()
    return files


def _split(data):
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    return header, json.loads(header["__metadata__"]["corrq"]), data[8 + size :]


def _joined(header, record, values):
    """A file with all checksums right, as far as the header can be understood."""
    checksums = []
    for name, entry in header.items():
        if name != "__metadata__":
            start, end = (0, 0)
            with contextlib.suppress(TypeError, ValueError, KeyError):
                start, end = entry["data_offsets"]
            piece = b""
            with contextlib.suppress(TypeError):
                piece = values[start:end]
            checksums.append((start, zlib.crc32(piece)))
    with contextlib.suppress(TypeError):
        checksums.sort()
    if isinstance(record, dict) and "crc32" in record:
        record["crc32"] = "0" * 8 * (1 + len(checksums))
        own = zlib.crc32(_text(header, record))
        record["crc32"] = "".join(f"{crc:08x}" for crc in (own, *(c for _, c in checksums)))
    text = _text(header, record)
    return len(text).to_bytes(8, "little") + text + values


def _text(header, record):
    body = dict(header)
    if isinstance(body.get("__metadata__"), dict):
        body["__metadata__"] = {**body["__metadata__"], "corrq": to_json(record)}
    text = to_json(body).encode()
    return text + b" " * (-len(text) % 8)


def make_own(rng):
    data = rng.choice(_saved())
    how = rng.randrange(8)
    if how == 0:
        return damaged(rng, data, _saved())
    header, record, values = _split(data)
    if how == 1:
        header = damaged_json(rng, header)
    elif how == 2:
        record, header = damaged_json(rng, record), damaged_json(rng, header)
    elif how < 5:
        values = damaged(rng, values)[: len(values)].ljust(len(values), b"\1")
        record = damaged_json(rng, record) if how == 3 else record
    else:
        header, values = _other_arrays(rng, header, values)
        record = _other_numbers(rng, record) if how < 7 else damaged_json(rng, record)
    try:
        return _joined(header, record, values)
    except (AttributeError, TypeError):  # nothing to hold a checksum
        return damaged(rng, data)


def _other_arrays(rng, header, values):
    """A header and values that fit each other, with one array or two changed."""
    entries = {name: dict(entry) for name, entry in header.items() if name != "__metadata__"}
    pieces = {name: values[slice(*entry["data_offsets"])] for name, entry in entries.items()}
    for name in rng.sample(list(entries), min(len(entries), rng.choice((0, 1, 1, 2)))):
        size = np.dtype(spec_reader.DTYPES[entries[name]["dtype"]]).itemsize
        dtype = rng.choice([entries[name]["dtype"]] * 3 + list(spec_reader.DTYPES))
        piece = damaged(rng, pieces[name]) if rng.random() < 0.5 else pieces[name]
        size = np.dtype(spec_reader.DTYPES[dtype]).itemsize
        count = rng.choice((len(piece) // size, len(piece) // size, 0, 1, 2, 3, 4, 8, 300))
        pieces[name] = piece[: count * size].ljust(count * size, b"\2")
        shape = rng.choice(([count], [count], [1, count], [count, 1], [2, count // 2]))
        entries[name] = {"dtype": dtype, "shape": shape}
    at = 0
    for name, entry in entries.items():
        entry["data_offsets"] = [at, at + len(pieces[name])]
        at += len(pieces[name])
    return {"__metadata__": header["__metadata__"]} | entries, b"".join(pieces.values())


def _other_numbers(rng, record):
    """Bits, shapes and rows of the tensors, some of them still fitting."""
    record = copy.deepcopy(record)
    for about in record["tensors"].values():
        if rng.random() < 0.5:
            size = rng.choice((math.prod(about["shape"]), rng.randint(0, 100), 2**33, 2**50))
            about["shape"] = rng.choice(([size], [size, 1], [1, 1, size], [size // 2, 2], []))
        if rng.random() < 0.3:
            about["bits"] = rng.randint(0, 9)
        if rng.random() < 0.2:
            about["rows"] = [rng.choice((1, 2, 3, 4, 12, 0, 2**40)) for _ in range(4)]
        if rng.random() < 0.2:
            about["dtype"] = rng.choice(("F16", "BF16", "F32", "F64", "I8"))
    return record


def plain(node):
    """A tree of `corrq.load` as `spec_reader.read` has it."""
    if isinstance(node, QuantizedTensor):
        names = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64"}
        rows = node.rows and (node.rows.before, node.rows.channels, node.rows.after,
                              node.rows.group)  # fmt: skip
        codes = spec_reader.unpack(np.asarray(node.codes), node.size, node.bits)
        return spec_reader.Quantized(
            codes, node.levels, node.scales, node.bits, node.shape, names[node.dtype], rows,
            node.coding.startswith("entropy"), node.coding.endswith("trellis"),
        )  # fmt: skip
    if isinstance(node, dict):
        return {key: plain(child) for key, child in node.items()}
    if isinstance(node, list | tuple):
        return type(node)(map(plain, node))
    return node


# --- files of others


ARRAYS = {
    "conv/kernel": np.arange(24, dtype=np.float32).reshape(2, 3, 4) / 7,
    "bias": np.array([0.1, -0.0, 5e-324]),
    "half": np.array([[1.5, -2.0]], np.float16),
    "step": np.array(7, np.int64),
    "mask": np.array([True, False]),
    "fortran": np.asfortranarray(np.arange(6, dtype=">i2").reshape(2, 3)),
    "empty": np.zeros((0, 3), np.float32),
}


class Hostile:
    """Pickles as a call that makes the canary."""

    def __reduce__(self):
        return open, (CANARY, "w")


@functools.cache
def _npz():
    files = []
    for save in (np.savez, np.savez_compressed):
        for arrays in (ARRAYS, {"w": np.zeros(5000)}, {"o": np.array([Hostile()], object)}):
            file = io.BytesIO()
            save(file, **arrays)
            files.append(file.getvalue())
    return files


def make_npz(rng):
    return _damaged_zip(rng, rng.choice(_npz()), _npz())


def _damaged_zip(rng, data, others, member_of=None):
    """Damage of the archive, or of members with the archive's checksums made to fit."""
    if rng.random() < 0.5:
        return damaged(rng, data, others)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    names = list(members)
    for _ in range(rng.choice((1, 1, 2))):
        name = member_of if member_of is not None and rng.random() < 0.8 else rng.choice(names)
        # Headers are at the beginning, and are what is worth most.
        start = rng.choice((0, 0, 64, 4096))
        body = members[name]
        members[name] = body[:start] + damaged(rng, body[start:], list(members.values()))
    if rng.random() < 0.1:
        members[rng.choice((f"{names[0]}", "x.npy", "x", "a/data.pkl", "../x.npy"))] = b"\x80\x02}."
    file = io.BytesIO()
    method = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    with zipfile.ZipFile(file, "w") as archive:
        for name, body in members.items():
            archive.writestr(zipfile.ZipInfo(name), body, method)  # a date would differ by run
    return file.getvalue()


def npz_again(data):
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        return {name.removesuffix(".npy"): file[name] for name in file.zip.namelist()}


# The library reads bfloat16 into JAX and PyTorch, but has no name for it in NumPy.
safetensors.numpy._TYPES.setdefault("BF16", spec_reader.DTYPES["BF16"])


@functools.cache
def _safetensors():
    native = {
        n: np.ascontiguousarray(a.astype(a.dtype.newbyteorder("="))) for n, a in ARRAYS.items()
    }
    return [
        safetensors.numpy.save(native),
        safetensors.numpy.save({"w": ARRAYS["bias"]}, {"a": "b"}),
    ]


def make_safetensors(rng):
    data = rng.choice(_safetensors())
    if rng.random() < 0.5:
        return damaged(rng, data, _safetensors())
    size = int.from_bytes(data[:8], "little")
    header = to_json(damaged_json(rng, json.loads(data[8 : 8 + size]))).encode()
    return len(header).to_bytes(8, "little") + header + data[8 + size :]


@functools.cache
def _torch(is_zip):
    before = {name: sys.modules.get(name) for name in torch_files.stand_ins()}
    sys.modules |= torch_files.stand_ins()
    make = torch_files.zip_bytes if is_zip else torch_files.legacy_bytes
    tree = torch_files.example()
    nested = {"epoch": 3, "state_dict": {"fc": tree["plain"], "l": [tree["steps"], None, 0.5]}}
    files = [make(t, protocol=p) for t in (tree, nested) for p in (2, 4)]
    files.append(make({"w": tree["corner"], "evil": Hostile()}))
    for name, module in before.items():
        sys.modules.pop(name) if module is None else sys.modules.update({name: module})
    return files


def make_torch_zip(rng):
    return _damaged_zip(rng, rng.choice(_torch(True)), _torch(True), "net/data.pkl")


def make_torch_legacy(rng):
    data = rng.choice(_torch(False))
    if rng.random() < 0.2:  # pickles that pickle itself makes: any objects, in any order
        objects = [
            0x1950A86A20F9469CFC6C,
            1001,
            {"little_endian": True},
            {"a": [1, (2.5, "x")]},
            [],
        ]
        return damaged(rng, b"".join(pickle.dumps(o, rng.choice((2, 4))) for o in objects), [data])
    return damaged(rng, data, _torch(False))


@functools.cache
def _h5():
    files = []
    for libver in ("earliest", "latest"):
        for is_older in (True, False):
            file = io.BytesIO()
            with h5py.File(file, "w", libver=libver) as root:
                _write_keras(root, is_older)
            files.append(file.getvalue())
    return files


def _write_keras(root, is_older):
    options = {"chunks": (4, 4), "compression": "gzip"}
    w, b = np.arange(40, dtype=np.float32).reshape(8, 5), np.arange(5, dtype=np.float32)
    if is_older:
        group = root.create_group("model_weights")
        group.attrs["layer_names"] = [b"dense"]
        dense = group.create_group("dense")
        dense.attrs["weight_names"] = [b"dense/kernel:0", b"dense/bias:0"]
        dense.create_dataset("dense/kernel:0", data=w, **options)
        dense["dense/bias:0"] = b
        root["optimizer_weights/iterations:0"] = np.int64(3)
    else:
        root.create_dataset("layers/dense/vars/0", data=w, **options)
        root["layers/dense/vars/1"] = b
        root.create_dataset("layers/dense_1/vars/0", data=b.astype("<f2").view("V2")).attrs[
            "dtype"
        ] = "bfloat16"
        root["optimizer/vars/0"] = np.int64(3)


def make_h5(rng):
    return damaged(rng, rng.choice(_h5()), _h5())


def make_keras(rng):
    data = rng.choice(_h5())
    file = io.BytesIO()
    method = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in (("config.json", "{}"), ("model.weights.h5", data)):
            archive.writestr(zipfile.ZipInfo(name), content, method)
    return _damaged_zip(rng, file.getvalue(), (), "model.weights.h5")


def read_keras(path):
    """By both readers; what comes out of the second is the same arrays in another order."""
    arrays = read_weights(path)
    with contextlib.suppress(corrq.CorrqError):
        for layer in read_keras_layers(path):
            for array in layer.arrays:
                assert isinstance(array, np.ndarray)
    return arrays


def keras_again(data):
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return h5_again(archive.read("model.weights.h5"))


def h5_again(data):
    found = {}
    with h5py.File(io.BytesIO(data), "r") as file:
        is_whole = isinstance(file.get("model_weights", getlink=True), h5py.HardLink)
        root = file["model_weights"] if is_whole else file
        root = root if isinstance(root, h5py.Group) else file

        def visit(name, item):
            if isinstance(item, h5py.Dataset):
                is_bfloat16 = item.dtype == "V2" and item.attrs.get("dtype") == "bfloat16"
                if not name.startswith("optimizer/") or "layer_names" in root.attrs:
                    found[name] = (
                        item[()].view(spec_reader.DTYPES["BF16"]) if is_bfloat16 else item[()]
                    )

        root.visititems(visit)
    return found


# --- the entropy coder, without a file


@functools.cache
def _streams():
    rng = np.random.default_rng(0)
    cases = [
        (rng.binomial(n - 1, 0.3, size), n) for n, size in ((4, 40), (200, 300), (2, 9), (3, 0))
    ]
    cases.append((np.r_[np.zeros(700, int), 1], 2))
    return [(*entropy.encode(c.astype(np.uint8), n), c.size) for c, n in cases]


def make_stream(rng):
    """Size, width and number of the frequencies, and then both arrays."""
    frequencies, stream, size = rng.choice(_streams())
    width = frequencies.dtype.itemsize
    table = frequencies.tobytes()
    if rng.random() < 0.5:
        table = damaged(rng, table)
    if rng.random() < 0.7:
        stream = np.frombuffer(damaged(rng, stream.tobytes(), [table]), np.uint8)
    if rng.random() < 0.3:
        size = rng.choice((size + 1, size - 1, 0, 2 * size, rng.randrange(5000)))
    if rng.random() < 0.1:
        width = rng.choice((1, 2, 4))
    table = (table + bytes(-len(table) % width))[: 256 * width]
    return (
        json.dumps([max(size, 0), width, len(table)]).encode().ljust(40) + table + stream.tobytes()
    )


def _parts(data):
    size, width, length = json.loads(data[:40])
    frequencies = np.frombuffer(data[40 : 40 + length], f"<u{width}")
    return frequencies, np.frombuffer(data[40 + length :], np.uint8), size


def read_stream(path):
    frequencies, stream, size = _parts(path.read_bytes())
    try:
        return {"codes": entropy.decode(frequencies, stream, size)}
    except ValueError as error:  # as `corrq.load` does
        raise corrq.FileFormatError(f"{path}: {error}") from None


KINDS = {
    "own": Kind(".safetensors", make_own, lambda p: plain(corrq.load(p)), spec_reader.read),
    "safetensors": Kind(
        ".safetensors", make_safetensors, read_weights, safetensors.numpy.load
    ),
    "npz": Kind(".npz", make_npz, read_weights, npz_again),
    "torch": Kind(".pth", make_torch_zip, read_weights, torch_files.read),
    "torch_old": Kind(".pth", make_torch_legacy, read_weights, torch_files.read),
    "stream": Kind(".stream", make_stream, read_stream,
                   lambda data: {"codes": spec_reader.decode(*_parts(data))}),
    "h5": Kind(".h5", make_h5, read_keras, h5_again, is_library=True),
    "keras": Kind(".keras", make_keras, read_keras, keras_again, is_library=True),
}  # fmt: skip


def same(a, b):
    """Whether two readings agree, to the last bit; dtypes in any byte order."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if not isinstance(a, np.ndarray | np.generic):
        return type(a) is type(b) and a == b
    a, b = np.asarray(a), np.asarray(b)
    dtypes = (x.dtype.newbyteorder("=") for x in (a, b))
    return (
        len(set(dtypes)) == 1
        and a.shape == b.shape
        and a.astype(a.dtype.newbyteorder("=")).tobytes()
        == b.astype(b.dtype.newbyteorder("=")).tobytes()
    )
