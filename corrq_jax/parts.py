"""Finished tensors in a folder beside the file that they will be part of.

Each is a file of its own, which appears whole or not at all, named by all that its content follows
from. A run that was killed therefore finds what it had done, and nothing of another run.
"""

import dataclasses
import hashlib
import json
import pathlib
from typing import Any

import jax
import numpy as np

from corrq_jax import menu, storage, tree
from corrq_jax.archive import Archive
from corrq_jax.atomic import atomic_write, lock_folder, remove_left, remove_locked
from corrq_jax.config import Config
from corrq_jax.core import density as core
from corrq_jax.errors import FileFormatError
from corrq_jax.leaf import Leaf, Scales
from corrq_jax.memory import give_back
from corrq_jax.menu import Measured, Option
from corrq_jax.tensor import QuantizedTensor, Rows

_VERSION = 1  # of what the parts are and of how they are named
_SOURCE = "source.json"
_SUFFIX = ".part.safetensors"

# The density of a smaller tensor is sooner taken anew than read.
_LARGE = core.CHUNK


class Parts:
    """The parts of one target; `measure` and `encode` are passes of `corrq_jax.tree.Passes`.

    Args:
        folder: where they are kept. What is there from another source is removed.
        source: what the tensors are read from, as a text that changes whenever they may.

    Raises:
        BlockingIOError: another process is at work on them.
    """

    def __init__(self, folder: pathlib.Path, source: str) -> None:
        self.folder = folder
        record = json.dumps({"version": _VERSION, "jax": jax.__version__, "source": source})
        self._lock = lock_folder(folder)
        if not _is_for(folder, record):
            self.remove()
            self._lock = lock_folder(folder)
            with atomic_write(folder / _SOURCE, overwrite=True) as file:
                file.write_text(record, encoding="utf-8")

    def remove(self) -> None:
        """Remove the folder, if it is there; an error if there is something else in it."""
        if self.folder.exists():
            for file in (*self.folder.glob(f"*{_SUFFIX}"), self.folder / _SOURCE):
                file.unlink(missing_ok=True)
            remove_left(self.folder)
            remove_locked(self.folder, self._lock)

    def close(self) -> None:
        """Let other processes have them."""
        if self._lock is not None:
            self._lock.close()

    def measure(self, path: str, array: Any, config: Config) -> list[Measured]:
        """`corrq_jax.tree.measure`, kept if the tensor is large."""
        if array.size < _LARGE:
            return tree.measure(path, array, config)
        file = self._file("measured", path, config.granularity, config.axes_of(path))
        kept = _load(file)
        if kept is not None:
            return [_restored(path, array, record) for record in kept]
        give_back()
        found = tree.measure(path, array, config)
        storage.save(file, [_record(item) for item in found])
        return found

    def encode(self, option: Option) -> tuple[QuantizedTensor, float]:
        """`corrq_jax.menu.encode`; the arrays of the tensor are on disk."""
        file = self._file("encoded", *_what_it_follows_from(option))
        kept = _load(file, lazy=True)
        if kept is None:
            give_back()
            tensor, noise = menu.encode(option)
            storage.save(file, {"tensor": tensor, "noise": np.float64(noise)})
            del tensor
            kept = Archive(file).tree(lazy=True)
        return kept["tensor"], float(np.asarray(kept["noise"]))

    def _file(self, *parts: Any) -> pathlib.Path:
        """A file named by all of these: arrays by their bytes, others by how they are written."""
        digest = hashlib.sha256()
        for part in parts:
            is_array = isinstance(part, np.ndarray | jax.Array)
            data = np.asarray(part).tobytes() if is_array else repr(part).encode()
            digest.update(len(data).to_bytes(8, "little") + data)
        return self.folder / (digest.hexdigest()[:32] + _SUFFIX)


def _is_for(folder: pathlib.Path, record: str) -> bool:
    try:
        return (folder / _SOURCE).read_text(encoding="utf-8") == record
    except FileNotFoundError:
        return False


def _load(file: pathlib.Path, *, lazy: bool = False) -> Any:
    """What is in a part; None if it is not there or damaged."""
    try:
        return Archive(file).tree(lazy=lazy)
    except (FileNotFoundError, FileFormatError):
        return None


def _what_it_follows_from(option: Option) -> tuple[Any, ...]:
    leaf, scales = option.leaf, option.leaf.scales
    quantizer = () if option.quantizer is None else tuple(map(np.asarray, option.quantizer))
    norm = tuple(map(float, option.norm))
    rows = () if scales is None else (scales.rows, scales.unit, scales.values)
    price = () if option.price is None else (option.price,)
    return leaf.path, leaf.factor, *rows, norm, *quantizer, *price, option.bits, option.coding


def _record(item: Measured) -> dict[str, Any]:
    """What `_restored` needs, as a tree that can be saved."""
    leaf, norm = item.leaf, item.norm
    record: dict[str, Any] = {
        "counts": np.asarray(item.density.counts),
        "norm": [np.asarray(norm.center), np.asarray(norm.scale)],
        "leaf": np.array([leaf.factor, leaf.lo, leaf.hi]),
    }
    scales = leaf.scales
    if scales is not None:
        record["rows"] = np.array(dataclasses.astuple(scales.rows))
        record["scales"] = scales.values
        numbers = (scales.unit, scales.mean, scales.variance, *scales.lost, scales.variance_ratio)
        record["numbers"], record["dead"] = np.array(numbers), np.array(scales.dead)
    return record


def _restored(path: str, array: Any, record: dict[str, Any]) -> Measured:
    scales = None
    if "scales" in record:
        unit, mean, variance, *lost, ratio = record["numbers"].tolist()
        scales = Scales(
            rows=Rows(*record["rows"].tolist()),
            values=record["scales"],
            unit=unit,
            mean=mean,
            variance=variance,
            dead=int(record["dead"]),
            lost=(lost[0], lost[1]),
            variance_ratio=ratio,
        )
    factor, lo, hi = record["leaf"].tolist()
    leaf = Leaf(path, array, array, factor, lo, hi, scales)
    center, scale = record["norm"]
    return Measured(leaf, core.binned(record["counts"]), core.Normalization(center, scale))
