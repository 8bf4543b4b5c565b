"""The layers in a Keras weight file, in the model's order: what `open_h5`'s names do not tell.

Older files ('.h5') list the layers by name, in order, each with the names of its arrays. Keras 3's
('.weights.h5', and inside '.keras') number the layers of each class, in order: conv2d, conv2d_1.
"""

import io
import os
import re
import zipfile
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from corrq_jax.errors import FileFormatError, require
from corrq_jax.readers.arrays import reading
from corrq_jax.readers.h5 import read_dataset, root_group


class StoredLayer(NamedTuple):
    """A layer that has weights.

    Attributes:
        name: in an older file the layer's own name; in Keras 3's the class with a number.
        kind: in Keras 3's files the class, such as 'conv2d'; None in older ones.
        arrays: in Keras's order, such as kernel and bias.
    """

    name: str
    kind: str | None
    arrays: tuple[np.ndarray, ...]


def read_keras_layers(path: str | os.PathLike[str]) -> tuple[StoredLayer, ...]:
    """Reads a '.h5', '.weights.h5' or '.keras' file of a model whose layers are not nested.

    Args:
        path: the file. What `corrq_jax.readers.h5.open_h5` says of damaged files holds here, too.

    Returns:
        The layers with weights: older files in the model's order, Keras 3's by class and number.

    Raises:
        FileFormatError: the file is damaged, or no Keras weight file.
        MissingDependencyError: h5py is not installed.
    """
    if zipfile.is_zipfile(path):
        with reading(path, "a .keras archive"), zipfile.ZipFile(path) as archive:
            return _read(path, io.BytesIO(archive.read("model.weights.h5")))
    return _read(path, os.fspath(path))


def _read(path: str | os.PathLike[str], source: str | BinaryIO) -> tuple[StoredLayer, ...]:
    h5py = require("h5py", "files")
    with reading(path, "a Keras HDF5 file"), h5py.File(source, "r") as file:
        root = root_group(h5py, file)
        if "layer_names" in root.attrs or "layer_names0" in root.attrs:
            layers = [_older(h5py, path, root, name) for name in _strings(root, "layer_names")]
        elif isinstance(root.get("layers"), h5py.Group):
            layers = [_numbered(h5py, path, root, name) for name in _by_number(root["layers"])]
        else:
            raise FileFormatError(
                f"{os.fspath(path)}: neither 'layer_names' nor 'layers' is in it; give weights "
                "that Keras saved"
            )
    return tuple(layer for layer in layers if layer.arrays)


def _older(h5py: Any, path: str | os.PathLike[str], root: Any, name: str) -> StoredLayer:
    group = _child(h5py, path, root, name, h5py.Group)
    arrays = [
        read_dataset(path, f"{name}/{weight}", _child(h5py, path, group, weight, h5py.Dataset))
        for weight in _strings(group, "weight_names")
    ]
    return StoredLayer(name, None, tuple(arrays))


def _numbered(h5py: Any, path: str | os.PathLike[str], root: Any, name: str) -> StoredLayer:
    variables = _child(h5py, path, root["layers"], name, h5py.Group).get("vars", {})
    arrays = [
        read_dataset(
            path, f"layers/{name}/vars/{n}", _child(h5py, path, variables, n, h5py.Dataset)
        )
        for n in sorted(variables, key=int)
    ]
    return StoredLayer(name, _split(name)[0], tuple(arrays))


def _by_number(layers: Any) -> list[str]:
    return sorted(layers, key=_split)


def _split(name: str) -> tuple[str, int]:
    """'conv2d_12' as ('conv2d', 12), 'conv2d' as ('conv2d', 0)."""
    found = re.fullmatch(r"(.*?)(?:_(\d+))?", name)
    assert found is not None  # the pattern matches every name
    return found[1], int(found[2] or 0)


def _strings(group: Any, attribute: str) -> list[str]:
    """A list of names; long ones are cut into `attribute0`, `attribute1`, and so on."""
    if attribute in group.attrs:
        parts = [group.attrs[attribute]]
    else:
        parts = []
        while f"{attribute}{len(parts)}" in group.attrs:
            parts.append(group.attrs[f"{attribute}{len(parts)}"])
    return [n.decode() if isinstance(n, bytes) else str(n) for part in parts for n in part]


def _child(h5py: Any, path: str | os.PathLike[str], group: Any, name: str, kind: type) -> Any:
    # Only what is in this very file: links elsewhere are not followed.
    parts = name.split("/")
    for index in range(len(parts)):
        if not isinstance(group.get("/".join(parts[: index + 1]), getlink=True), h5py.HardLink):
            raise FileFormatError(
                f"{os.fspath(path)}: {name!r} is listed but not in the file; save the weights again"
            )
    item = group[name]
    if not isinstance(item, kind):
        raise FileFormatError(f"{os.fspath(path)}: {name!r} is not a {kind.__name__.lower()}")
    return item
