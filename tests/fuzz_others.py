"""Damaged files of others, .npz, .safetensors, .pth and .h5, and readers of them by other means."""

import contextlib
import functools
import io
import json
import pickle
import sys
import zipfile

import h5py
import numpy as np
import safetensors.numpy
import spec_reader
import torch_files
from fuzz_mutations import damaged, damaged_json, to_json

import corrq_jax as corrq
from corrq_jax.readers import open_weights, read_weights
from corrq_jax.readers.keras_layers import read_keras_layers

CANARY = "canary"
"""A file that hostile pickles make, should they be run."""


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


def read_twice(path):
    """As wholes, and again in parts; these have to be the same."""
    arrays = read_weights(path)
    with open_weights(path) as found:
        for name, array in found.items():
            if array.part is not None:
                assert array.part(0, array.size).tobytes() == arrays[name].tobytes()
    return arrays


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
    arrays = read_twice(path)
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
