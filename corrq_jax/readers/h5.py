"""Keras's weights in HDF5: the older layout with layer names, and Keras 3's `.weights.h5`."""

import contextlib
import math
import os
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from corrq_jax import lazy
from corrq_jax.errors import FileFormatError, require
from corrq_jax.lazy import LazyArray
from corrq_jax.readers.arrays import BFLOAT16, check_dtype, in_memory_order, reading
from corrq_jax.readers.zip_member import open_member

# More than gzip can ever save; only a damaged or a hostile file claims it.
_MAX_COMPRESSION = 2000


def open_h5(
    path: str | os.PathLike[str],
) -> contextlib.AbstractContextManager[dict[str, LazyArray]]:
    """The datasets of a Keras HDF5 file by their paths in it, none of them read yet.

    The 'model_weights/' of a whole saved model is left out of the names, so that they are those
    of the weights-only file. Optimizer state is skipped: 'optimizer_weights/' beside
    'model_weights/' in the older layout, 'optimizer/' in Keras 3's. Links to other files are
    not followed, and a dataset of several names is read by one of them. HDF5 has no checksums:
    damaged values go unnoticed, and the HDF5 library itself is not proof against files made to
    harm; convert files of unknown origin elsewhere.

    Raises:
        FileFormatError: the file is damaged, or holds a dataset that is not an array of numbers.
        MissingDependencyError: h5py is not installed.
    """
    return _open(path, os.fspath(path))


@contextlib.contextmanager
def open_keras(path: str | os.PathLike[str]) -> Iterator[dict[str, LazyArray]]:
    """The weights in a `.keras` archive, as `open_h5`; its code and config are unused.

    The HDF5 file in the archive is checked as a whole, and then read where it lies, as Keras stores
    it; only if it is compressed, it is unpacked in memory.

    Raises:
        FileFormatError: the archive is damaged or holds no 'model.weights.h5'.
        MissingDependencyError: h5py is not installed.
    """
    with contextlib.ExitStack() as stack:
        with reading(path, "a .keras archive"):
            weights = stack.enter_context(open_member(path, "model.weights.h5"))
        yield stack.enter_context(_open(path, weights))


@contextlib.contextmanager
def _open(path: str | os.PathLike[str], source: str | BinaryIO) -> Iterator[dict[str, LazyArray]]:
    h5py = require("h5py", "files")
    with contextlib.ExitStack() as stack:
        with reading(path, "a Keras HDF5 file"):
            # Whole chunks are read: to keep them, for each dataset, would only take memory.
            file = stack.enter_context(h5py.File(source, "r", rdcc_nbytes=0))
            root, bands = root_group(h5py, file), lazy.Bands()
            arrays = {
                name: _lazy(path, name, dataset, bands)
                for name, dataset in _datasets(h5py, root).items()
                if not _is_optimizer_state(root, name)
            }
        yield arrays


def _lazy(path: str | os.PathLike[str], name: str, dataset: Any, bands: lazy.Bands) -> LazyArray:
    dtype = dtype_of(path, name, dataset)

    def load() -> np.ndarray:
        with reading(path, "a Keras HDF5 file"):
            return read_dataset(path, name, dataset)

    def band(index: tuple[Any, ...]) -> np.ndarray:
        with reading(path, "a Keras HDF5 file"):
            return read_dataset(path, name, dataset, index)

    if dataset.ndim == 0 or dataset.size == 0:
        return LazyArray(dataset.shape, dtype, load)
    axis, lines = _cut(dataset.shape, dataset.chunks)
    part = bands.part(dataset.shape, dtype, axis, lines, band)
    return LazyArray(dataset.shape, dtype, load, part)


def _cut(shape: tuple[int, ...], chunks: tuple[int, ...] | None) -> tuple[int, int]:
    """The axis that a dataset is cut along, and how many lines to read at a time.

    Each chunk is in one band, and so is decompressed once in each pass, unless such a band would
    have more than a quarter of the dataset.
    """
    most = lazy.largest_band(math.prod(shape))
    line = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
    axis = next(i for i in range(len(shape)) if line[i] <= most)
    chunk = chunks[axis] if chunks else 1
    whole_chunks = max(lazy.BAND // (line[axis] * chunk), 1) * chunk
    return axis, min(whole_chunks, most // line[axis])


def root_group(h5py: Any, file: Any) -> Any:
    """Where the weights are: in 'model_weights' of this very file, or at the top."""
    is_inside = isinstance(file.get("model_weights", getlink=True), h5py.HardLink)
    group = file["model_weights"] if is_inside else file
    return group if isinstance(group, h5py.Group) else file


def _datasets(h5py: Any, root: Any) -> dict[str, Any]:
    """The datasets below `root` by path; visititems follows no link out of the file."""
    found = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            found[name] = item

    root.visititems(visit)
    return found


def _is_optimizer_state(root: Any, name: str) -> bool:
    """Whether a dataset is Keras 3's optimizer state; the older layout names its layers."""
    return name.startswith("optimizer/") and "layer_names" not in root.attrs


def dtype_of(path: str | os.PathLike[str], name: str, dataset: Any) -> np.dtype:
    """The dtype of an HDF5 dataset that is called `name` in messages.

    Raises:
        FileFormatError: the dataset cannot hold weights.
    """
    if dataset.shape is None or dataset.external or dataset.is_virtual:
        raise FileFormatError(
            f"{os.fspath(path)}: dataset {name!r} is empty or keeps its values elsewhere; "
            "save the weights again, with their values in the file"
        )
    stored = dataset.id.get_storage_size()
    if dataset.nbytes > _MAX_COMPRESSION * stored:
        raise FileFormatError(
            f"{os.fspath(path)}: dataset {name!r} claims {dataset.nbytes} bytes but stores "
            f"{stored}; the file is damaged: copy or download it again"
        )
    # Attributes are looked at only where they matter: damaged ones can hang the HDF5 library.
    if dataset.dtype == np.dtype("V2") and dataset.attrs.get("dtype") == "bfloat16":
        return BFLOAT16
    check_dtype(path, name, dataset.dtype)
    return dataset.dtype.newbyteorder("=")


def read_dataset(
    path: str | os.PathLike[str], name: str, dataset: Any, index: tuple[Any, ...] = ()
) -> np.ndarray:
    """An HDF5 dataset that is called `name` in messages, or what is at an index of it.

    Raises:
        FileFormatError: it cannot hold weights.
    """
    dtype = dtype_of(path, name, dataset)
    array = np.asarray(dataset[index])
    return array.view(BFLOAT16) if dtype == BFLOAT16 else in_memory_order(array)
