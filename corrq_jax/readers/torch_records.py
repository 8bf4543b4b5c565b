"""What the pickle in a PyTorch file is allowed to build: inert records of tensors and storages.

The storages' bytes come later in the file, so a tensor is first a record of where its values will
be. All sizes in a record have been checked against the storage, and all storages against the file.
"""

import dataclasses
import math
from typing import Any

import ml_dtypes
import numpy as np

from corrq_jax.readers.restricted_unpickle import Global, UnpickleError

STORAGE_DTYPES = {
    "torch.DoubleStorage": np.dtype(np.float64),
    "torch.FloatStorage": np.dtype(np.float32),
    "torch.HalfStorage": np.dtype(np.float16),
    "torch.BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "torch.LongStorage": np.dtype(np.int64),
    "torch.IntStorage": np.dtype(np.int32),
    "torch.ShortStorage": np.dtype(np.int16),
    "torch.CharStorage": np.dtype(np.int8),
    "torch.ByteStorage": np.dtype(np.uint8),
    "torch.BoolStorage": np.dtype(np.bool_),
    "torch.ComplexFloatStorage": np.dtype(np.complex64),
    "torch.ComplexDoubleStorage": np.dtype(np.complex128),
}


@dataclasses.dataclass(frozen=True)
class Storage:
    """A row of equal elements in the file."""

    key: str
    dtype: np.dtype
    size: int  # elements


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A strided view of a storage."""

    storage: Storage
    offset: int  # elements, as are the strides
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def contiguous(self) -> bool:
        """Whether the elements lie one after the other, in C order."""
        step = 1
        for size, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if size != 1 and stride != step:
                return False
            step *= size
        return True


def _rebuild_tensor(storage, offset, shape, strides, *rest) -> Tensor:
    """A view of a storage; `rest` is requires_grad, hooks and, where there are some, metadata."""
    if not isinstance(storage, Storage):
        raise UnpickleError("a tensor refers to something that is not a storage")
    if len(rest) > 3:
        raise UnpickleError("a tensor has more fields than are known")
    metadata = rest[2] if len(rest) == 3 and isinstance(rest[2], dict) else {}
    if metadata.get("neg") or metadata.get("conj"):
        raise UnpickleError(
            "a tensor is a view with all signs turned or conjugated, which its storage is not "
            "(resolve_neg and resolve_conj make plain tensors of them)"
        )
    shape, strides = _sizes(shape), _sizes(strides)
    (offset,) = _sizes((offset,))
    if len(shape) != len(strides):
        raise UnpickleError(f"a tensor of shape {shape} has strides {strides}")
    last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    count = math.prod(shape)
    # An empty tensor is in no storage; NumPy still multiplies its other sizes.
    too_large = math.prod(n or 1 for n in shape) >= 2**58
    if too_large or (count and (last >= storage.size or count > storage.size)):
        raise UnpickleError(
            f"a tensor of shape {shape}, strides {strides} and offset {offset} does not fit its "
            f"storage of {storage.size} elements (an expanded tensor must be made contiguous)"
        )
    return Tensor(storage, offset, shape, strides)


def _rebuild_parameter(tensor, *rest) -> Tensor:
    if not isinstance(tensor, Tensor) or len(rest) > 2:
        raise UnpickleError("a parameter is not a plain tensor")
    return tensor


def _sizes(values) -> tuple[int, ...]:
    if type(values) is not tuple or len(values) > 32:
        raise UnpickleError("a tensor's shape or strides are not a tuple of at most 32 sizes")
    if not all(type(v) is int and 0 <= v < 2**62 for v in values):
        raise UnpickleError("a tensor's shape, strides or offset are not whole numbers >= 0")
    return values


def _ordered_dict(items=()) -> dict:
    if items != ():
        raise UnpickleError("an OrderedDict is built from something unexpected")
    return {}


FUNCTIONS = {
    "collections.OrderedDict": _ordered_dict,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch.Size": _sizes,
}


class StorageTable:
    """The storages that the pickle refers to; their declared sizes must fit into the file."""

    def __init__(self, file_bytes: int):
        self.by_key: dict[str, Storage] = {}
        self._bytes_left = file_bytes

    def load(self, persistent_id: Any) -> Storage:
        """The storage that a persistent id describes; the same one for the same key."""
        if type(persistent_id) is not tuple or len(persistent_id) not in (5, 6):
            raise UnpickleError("it refers to a storage in an unknown way")
        kind, cls, key, _, size, *view = persistent_id
        if kind != "storage" or not isinstance(cls, Global) or cls.name not in STORAGE_DTYPES:
            raise UnpickleError("it refers to something that is not a plain tensor storage")
        if type(key) is not str or type(size) is not int or size < 0 or view not in ([], [None]):
            raise UnpickleError("a storage's key, size or view is malformed")
        storage = Storage(key, STORAGE_DTYPES[cls.name], size)
        known = self.by_key.get(key)
        if known is None:
            self._bytes_left -= storage.size * storage.dtype.itemsize
            if self._bytes_left < 0:
                raise UnpickleError("it is cut short: its tensors are larger than the file")
            self.by_key[key] = known = storage
        if known != storage:
            raise UnpickleError(f"the storage {key!r} is declared with two sizes or dtypes")
        return known
