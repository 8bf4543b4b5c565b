"""Reads a file as docs/format.md says, in plain Python and NumPy: slow, and nothing of corrq_jax.

Whatever does not fit what the page says raises an exception of one kind or another.
"""

import bisect
import json
import math
import struct
import zlib
from typing import NamedTuple

import ml_dtypes
import numpy as np

DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": ml_dtypes.bfloat16, "BOOL": "?",
    "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1",
}  # fmt: skip


class Quantized(NamedTuple):
    """A quantized tensor; its codes are one in a byte each, uint8[..., size]."""

    codes: np.ndarray
    levels: np.ndarray
    scales: np.ndarray | None
    bits: int
    shape: tuple
    dtype: str
    rows: tuple | None
    is_coded: bool
    is_along_trellis: bool


def read(data):
    """The tree of a file, given its bytes."""
    tensors, record, whole = _safetensors(data)
    quantized, containers = record["tensors"], record.get("containers", {})
    leaves = {}
    for name, about in quantized.items():
        parts = {}
        for part in ("codes", "frequencies", "stream", "levels", "scales"):
            if f"{name}:{part}" in tensors:
                parts[part] = tensors.pop(f"{name}:{part}")
        assert ("frequencies" in parts) <= (record["version"] == 1)
        leaves[name] = _quantized(about, parts)
    assert whole
    leaves |= tensors
    if containers.get("") == "leaf":
        (leaf,) = leaves.values()
        return leaf
    return _tree(leaves, containers)


def _safetensors(data):
    (size,) = struct.unpack("<Q", data[:8])
    text = data[8 : 8 + size]
    header = json.loads(text.decode())
    record = json.loads(header.pop("__metadata__")["corrq"])
    assert record["version"] in (1, 2)
    crc = record["crc32"]
    assert crc[:8] == f"{zlib.crc32(text.replace(crc.encode(), b'0' * len(crc))):08x}"
    entries = sorted(header.items(), key=lambda item: item[1]["data_offsets"])
    assert len(crc) == 8 * (1 + len(entries))
    tensors, at = {}, 0
    for i, (name, entry) in enumerate(entries, 1):
        start, end = entry["data_offsets"]
        assert start == at <= end
        at = end
        values = data[8 + size + start : 8 + size + end]
        assert crc[8 * i : 8 * i + 8] == f"{zlib.crc32(values):08x}"
        array = np.frombuffer(values, DTYPES[entry["dtype"]])
        assert all(type(n) is int and n >= 0 for n in entry["shape"])
        tensors[name] = array.reshape(entry["shape"])
    return tensors, record, 8 + size + at == len(data)


def _quantized(about, parts):
    bits, shape = about["bits"], about["shape"]
    size = math.prod(shape)
    assert 1 <= bits <= 8
    assert all(type(n) is int and n >= 0 for n in shape)
    levels, scales = parts["levels"], parts.get("scales")
    trellis = "coding" in about
    count = levels.shape[-1]
    if trellis:
        assert about["coding"] == "trellis"
        assert bits <= 7
        assert count % 4 == 0
        if count <= 2 ** (bits + 1):
            count //= 2
        else:  # of long histories
            assert "codes" in parts
            assert count in [n for n in (4 << bits, 8 << bits, 16 << bits) if n <= 256]
            count = 2**bits
    if "codes" in parts:
        packed = parts["codes"]
        assert packed.dtype == np.uint8
        assert packed.shape[-1] == math.ceil(size * bits / 8)
        codes = unpack(packed, size, bits)
    else:
        assert levels.ndim == 1
        if "frequencies" in parts:
            assert parts["frequencies"].shape == (count,)
            codes = decode_version_1(parts["frequencies"], parts["stream"], size)
        else:
            codes = decode(parts["stream"], size)
            assert (codes < count).all()
        if trellis:
            codes = along_trellis(codes, count)
    assert levels.shape[:-1] == codes.shape[:-1]
    assert 1 <= count <= 2**bits
    assert levels.dtype in (np.float32, np.float64)
    assert (codes < count).all()
    assert ("rows" in about) == (scales is not None)
    if scales is not None:
        before, channels, after, group = about["rows"]
        assert before * channels * after == size
        groups = math.ceil(before * after / group)
        assert scales.dtype == np.float16
        assert scales.shape == (*codes.shape[:-1], groups, channels)
    rows = about.get("rows")
    return Quantized(
        codes, levels, scales, bits, tuple(shape), about["dtype"], rows and tuple(rows),
        "stream" in parts, trellis,
    )  # fmt: skip


def along_trellis(symbols, count):
    """uint8[size]: the codes of symbols, one after another."""
    codes = []
    for i, symbol in enumerate(symbols.tolist()):
        if i % 1024 == 0:
            u = [0] * 5
        place = count - 1 - symbol if u[-3] else symbol
        u.append(place % 2 ^ u[-2] ^ u[-5])
        codes.append(place // 2 * 2 + u[-1])
    return np.array(codes, np.uint8)


def unpack(packed, size, bits):
    """uint8[..., size]: the codes in a little-endian stream of bits."""
    stream = np.unpackbits(packed, axis=-1, bitorder="little")[..., : size * bits]
    weights = 1 << np.arange(bits)
    return (stream.reshape(*packed.shape[:-1], size, bits) * weights).sum(-1).astype(np.uint8)


def decode(stream, size):
    """uint8[size]: the codes in a stream, by tables of asymmetric numeral systems."""
    assert stream.dtype == np.uint8
    data = stream.tobytes()
    assert data[0] == 4
    assert data[1] >= 1
    at = 2
    codes = []
    for start in range(0, size, 2**22):
        bits = _Bits(data, at)
        assert bits.read(8) == 0
        table, width = _table(bits)
        at = bits.end()
        for page in range(start, min(start + 2**22, size), 2**18):
            bits = _Bits(data, at)
            states = [bits.read(width) for _ in range(4)]
            bits = _Bits(data, bits.end())
            for batch in range(page, min(page + 2**18, size), 256):
                found = []
                for i in range(min(256, size - batch)):
                    lower, extra, base, n = table[states[i % 4]]
                    states[i % 4] = base + bits.read(n)
                    found.append((lower, extra))
                codes += [(lower + bits.read(extra)) % 256 for lower, extra in found]
            at = bits.end()
    assert at == len(data)
    return np.array(codes, np.uint8)


def _table(bits):
    """For each state the lowest code, the bits of what is added to it, and the next state's."""
    width, count = bits.read(4), bits.read(15)
    size = 1 << width
    assert width <= 14
    assert 1 <= count <= size
    bins = [(bits.read(width) + 1, bits.read(8), bits.read(4)) for _ in range(count)]
    assert sum(weight for weight, _, _ in bins) == size
    assert all(extra <= 8 for _, _, extra in bins)
    step, place, bin_of = 3 * size // 5 | 1, 0, [0] * size
    for number, (weight, _, _) in enumerate(bins):
        for _ in range(weight):
            bin_of[place] = number
            place = (place + step) % size
    seen = [weight for weight, _, _ in bins]
    table = []
    for number in bin_of:
        n = width + 1 - seen[number].bit_length()
        table.append((*bins[number][1:], (seen[number] << n) - size, n))
        seen[number] += 1
    return table, width


class _Bits:
    """Whole numbers in a little-endian stream of bits, from a byte on."""

    def __init__(self, data, at):
        self.data, self.at = data, 8 * at

    def read(self, n):
        first, last = self.at // 8, (self.at + n + 7) // 8
        assert last <= len(self.data)
        number = int.from_bytes(self.data[first:last], "little") >> self.at % 8
        self.at += n
        return number % (1 << n)

    def end(self):
        """The next whole byte; the bits before it are 0."""
        assert self.read(-self.at % 8) == 0
        return self.at // 8


def decode_version_1(frequencies, stream, size):
    """uint8[size]: the codes in a stream, by asymmetric numeral systems in whole numbers."""
    f = [int(n) for n in frequencies]
    limit = {1: 255, 2: 65535, 4: 2**24}[frequencies.dtype.itemsize]
    assert frequencies.dtype.kind == "u"
    assert max(f) <= limit
    assert sum(f) == size or (max(f) == limit and sum(f) < size)
    assert stream.dtype == np.uint8
    used = [i for i, n in enumerate(f) if n]
    if len(used) < 2:
        assert not stream.size
        return np.full(size, used[0] if used else 0, np.uint8)
    scale = (2**24 - len(f)) / sum(f)
    low = [int(sum(f[:i]) * scale) + i for i in range(len(f))] + [2**24]
    data = stream.tobytes()
    assert not data.endswith(b"\0")
    words = list(np.frombuffer(data + b"\0" * (-len(data) % 4), "<u4"))
    state = 0
    codes = np.zeros(size, np.uint8)
    for i in range(size):
        while state < 2**32 and words:
            state = state << 32 | int(words.pop())
        if not state:
            break  # codes 0 take nothing any more
        at = state % 2**24
        code = bisect.bisect_right(low, at) - 1
        codes[i] = code
        state = (state >> 24) * (low[code + 1] - low[code]) + at - low[code]
    assert not state
    assert not words
    return codes


def _tree(leaves, containers):
    root = {}
    for name in sorted([*containers, *leaves]):
        node = root
        for key in name.split("/")[:-1] if name else []:
            node = node.setdefault(key, {})
        if name:
            node.setdefault(name.split("/")[-1], leaves.get(name, {}))
        elif name in leaves:  # a dictionary whose only key is empty is "~2": no leaf is called ""
            raise ValueError(name)
    return _rebuilt(root, "", containers)


def _rebuilt(node, name, containers):
    if not isinstance(node, dict):
        return node
    kind = containers.get(name)
    if kind == "none":
        return None
    below = {k: _rebuilt(v, f"{name}/{k}" if name else k, containers) for k, v in node.items()}
    if kind in ("list", "tuple"):
        items = [below[str(i)] for i in range(len(below))]
        return items if kind == "list" else tuple(items)
    if kind == "int":
        return {int(k): v for k, v in below.items()}
    return {k.replace("~2", "").replace("~1", "/").replace("~0", "~"): v for k, v in below.items()}
