"""Keras's weights in HDF5: the older layout with layer names, and Keras 3's `.weights.h5`."""

import io
import os
import zipfile
from typing import Any, BinaryIO

import numpy as np

from corrq_jax.errors import FileFormatError, require
from corrq_jax.readers.arrays import BFLOAT16, checked, reading

# More than gzip can ever save; only a damaged or a hostile file claims it.
_MAX_COMPRESSION = 2000


def read_h5(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads every dataset of a Keras HDF5 file by its path in the file.

    The 'model_weights/' of a whole saved model is left out of the names, so that they are those
    of the weights-only file. Optimizer state is skipped: 'optimizer_weights/' beside
    'model_weights/' in the older layout, 'optimizer/' in Keras 3's. Links to other files are
    not followed. HDF5 has no checksums: damaged values go unnoticed, and the HDF5 library itself is
    not proof against files made to harm; convert files of unknown origin elsewhere.

    Raises:
        FileFormatError: the file is damaged, or holds a dataset that is not an array of numbers.
        MissingDependencyError: h5py is not installed.
    """
    return _read(path, os.fspath(path))


def read_keras(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads the weights in a `.keras` archive, as `read_h5` does; its code and config are unused.

    Raises:
        FileFormatError: the archive is damaged or holds no 'model.weights.h5'.
        MissingDependencyError: h5py is not installed.
    """
    with reading(path, "a .keras archive"), zipfile.ZipFile(path) as archive:
        weights = io.BytesIO(archive.read("model.weights.h5"))
    return _read(path, weights)


def _read(path: str | os.PathLike[str], source: str | BinaryIO) -> dict[str, np.ndarray]:
    h5py = require("h5py", "files")
    with reading(path, "a Keras HDF5 file"), h5py.File(source, "r") as file:
        root = root_group(h5py, file)
        return {
            name: read_dataset(path, name, dataset)
            for name, dataset in _datasets(h5py, root).items()
            if not _is_optimizer_state(root, name)
        }


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


def read_dataset(path: str | os.PathLike[str], name: str, dataset: Any) -> np.ndarray:
    """An HDF5 dataset that is called `name` in messages, if it can hold weights."""
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
    is_bfloat16 = dataset.dtype == np.dtype("V2") and dataset.attrs.get("dtype") == "bfloat16"
    array = np.asarray(dataset[()])
    return checked(path, name, array.view(BFLOAT16) if is_bfloat16 else array)
