"""Files as torch.save writes them, without torch, and a plain reader of them to compare with.

Stand-ins for torch's classes are pickled under their names. `pickle` itself reads them back: it is
for files that are known to be well-behaved.
"""

import collections
import io
import math
import pickle
import struct
import sys
import types
import zipfile

import ml_dtypes
import numpy as np

MAGIC = 0x1950A86A20F9469CFC6C
STORAGES = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
    "ComplexFloatStorage": np.complex64,
    "ComplexDoubleStorage": np.complex128,
}


def stand_ins():
    """The modules that have to be in `sys.modules` while a file is made."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    for name in STORAGES:
        setattr(torch, name, type(name, (), {"__module__": "torch"}))
    for name in ("_rebuild_tensor_v2", "_rebuild_parameter"):
        function = types.FunctionType((lambda *a: None).__code__, {}, name)
        function.__module__, function.__qualname__ = "torch._utils", name
        setattr(utils, name, function)
    torch._utils = utils
    return {"torch": torch, "torch._utils": utils}


class Storage:
    def __init__(self, data, key, size=None):
        self.data = np.asarray(data)
        self.key = key
        self.size = self.data.size if size is None else size

    @property
    def cls(self):
        names = [n for n, d in STORAGES.items() if np.dtype(d) == self.data.dtype]
        return getattr(sys.modules["torch"], names[0])


class Tensor:
    """Pickles as torch's tensors do: _rebuild_tensor_v2(storage, offset, size, stride, ...)."""

    def __init__(self, storage, offset, shape, strides, *metadata):
        rest = (False, collections.OrderedDict(), *metadata)
        self.arguments = (storage, offset, shape, strides, *rest)

    def __reduce__(self):
        return sys.modules["torch._utils"]._rebuild_tensor_v2, self.arguments


class Parameter:
    def __init__(self, tensor):
        self.tensor = tensor

    def __reduce__(self):
        rebuild = sys.modules["torch._utils"]._rebuild_parameter
        return rebuild, (self.tensor, True, collections.OrderedDict())


class Pickler(pickle.Pickler):
    def __init__(self, file, legacy, protocol=2):
        super().__init__(file, protocol)
        self.storages = {}
        self.legacy = legacy

    def persistent_id(self, obj):
        if not isinstance(obj, Storage):
            return None
        self.storages[obj.key] = obj
        view = (None,) if self.legacy else ()
        return ("storage", obj.cls, obj.key, "cpu", obj.size, *view)


def raw(storage):
    return storage.data.tobytes()


def legacy_bytes(tree, header=(MAGIC, 1001, {"little_endian": True}), protocol=2):
    file = io.BytesIO()
    for item in header:
        pickle.dump(item, file, 2)
    pickler = Pickler(file, legacy=True, protocol=protocol)
    pickler.dump(tree)
    keys = sorted(pickler.storages)
    pickle.dump(keys, file, 2)
    for key in keys:
        storage = pickler.storages[key]
        file.write(struct.pack("<q", storage.size) + raw(storage))
    return file.getvalue()


def zip_bytes(tree, *, compression=zipfile.ZIP_STORED, byteorder=b"little", protocol=2):
    file, pickled = io.BytesIO(), io.BytesIO()
    pickler = Pickler(pickled, legacy=False, protocol=protocol)
    pickler.dump(tree)
    members = {
        "data.pkl": pickled.getvalue(),
        "byteorder": byteorder,
        **{f"data/{key}": raw(storage) for key, storage in pickler.storages.items()},
        "version": b"3\n",
    }
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in members.items():  # with no date: the same bytes on every day
            archive.writestr(zipfile.ZipInfo(f"net/{name}"), data, compression)
    return file.getvalue()


def example():
    shared = Storage(np.arange(24, dtype=np.float32), "7")
    return collections.OrderedDict(
        plain=Tensor(shared, 0, (4, 6), (6, 1)),
        transposed=Tensor(shared, 0, (6, 4), (1, 6)),
        corner=Parameter(Tensor(shared, 8, (2, 2), (6, 1))),
        steps=Tensor(Storage(np.array([5, 9]), "1"), 1, (), ()),
        half=Tensor(Storage(np.array([1.5, -2], ml_dtypes.bfloat16), "2"), 0, (2,), (1,)),
        mask=Tensor(Storage(np.array([True, False, True]), "3"), 0, (3,), (1,)),
        none=Tensor(Storage(np.zeros(0, np.float16), "4"), 0, (0, 3), (3, 1)),
    )


class View:
    """A tensor in a file, whose storage may come later in it."""

    def __init__(self, storage, offset, shape, strides, *rest):
        self.storage, self.offset, self.shape, self.strides = storage, offset, shape, strides

    def array(self, storages):
        (_, dtype, key, *_), step = self.storage, self.storage[1].itemsize
        data = np.frombuffer(storages[key], dtype)
        if not math.prod(self.shape):
            return np.zeros(self.shape, dtype)
        last = self.offset + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
        assert min(self.offset, *self.strides, 0) == 0
        assert last < data.size
        strides = [s * step for s in self.strides]
        return np.lib.stride_tricks.as_strided(data[self.offset :], self.shape, strides)


class Unpickler(pickle._Unpickler):
    """Reads the pickles of well-behaved files; the one in C makes room for any memo's number."""

    def find_class(self, module, name):
        if module == "torch" and name in STORAGES:
            return np.dtype(STORAGES[name])
        return {
            "torch._utils._rebuild_tensor": View,
            "torch._utils._rebuild_tensor_v2": View,
            "torch._utils._rebuild_parameter": lambda tensor, *rest: tensor,
            "torch.Size": tuple,
            "collections.OrderedDict": collections.OrderedDict,
        }[f"{module}.{name}"]

    def __init__(self, file):
        super().__init__(file)
        self.dtypes = {}

    def persistent_load(self, pid):
        self.dtypes[pid[2]] = pid[1]
        return pid


def read(data):
    """The tensors of a file by their dotted names, as `corrq_jax.readers` names them."""
    tree, storages = _read_zip(data) if data.startswith(b"PK") else _read_legacy(data)
    return {name: view.array(storages) for name, view in _flat(tree, ())}


def _read_zip(data):
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith("/data.pkl"))
        tree = Unpickler(io.BytesIO(archive.read(name))).load()
        root = name.removesuffix("data.pkl")
        members = [n for n in archive.namelist() if n.startswith(f"{root}data/")]
        return tree, {n.removeprefix(f"{root}data/"): archive.read(n) for n in members}


def _read_legacy(data):
    file = io.BytesIO(data)
    readers = [Unpickler(file) for _ in range(5)]
    magic, version, _, tree, keys = (reader.load() for reader in readers)
    assert (magic, version) == (MAGIC, 1001)
    storages = {}
    for key in keys:
        (size,) = struct.unpack("<q", file.read(8))
        storages[key] = file.read(size * readers[3].dtypes[key].itemsize)
    return tree, storages


def _flat(node, path):
    if isinstance(node, View):
        yield ".".join(path), node
    elif isinstance(node, dict | list | tuple):
        for key, child in node.items() if isinstance(node, dict) else enumerate(node):
            yield from _flat(child, (*path, str(key)))
