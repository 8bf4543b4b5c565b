"""Damaged files of `corrq_jax.save`: with every checksum right, as far as that is possible."""

import contextlib
import copy
import functools
import json
import math
import pathlib
import zlib

import numpy as np
import spec_reader
from fuzz_mutations import damaged, damaged_json, to_json
from stored_trees import tensor

import corrq_jax as corrq
from corrq_jax.tensor import QuantizedTensor, Rows


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
    # 8 codes for 16 and for 64 levels along a trellis; 6 for 12, and 2 for 4, entropy-coded too.
    long = QuantizedTensor(packed, np.arange(64, dtype=np.float32), (60,), "float32", 3, None, None,
                           "trellis")  # fmt: skip
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
        {"t": along[0], "e": along[1:], "l": long},
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
