"""Folders with a network as Hugging Face lays them out: weights in safetensors files.

`model.safetensors` alone, or shards that `model.safetensors.index.json` lists; beside them are the
configuration, the tokenizer and other files.
"""

import json
import pathlib

from corrq_jax.errors import FileFormatError, InputError
from corrq_jax.lazy import LazyArray
from corrq_jax.readers.arrays import reading
from corrq_jax.readers.safetensors_file import open_safetensors

_WEIGHTS = ".safetensors"
_INDEX = ".safetensors.index.json"


def weight_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """The files that hold a folder's weights, as `transformers` chooses them; of others none.

    Raises:
        FileFormatError: the index is damaged, or a file is missing that it names.
        InputError: there are several files, or indices, and nothing says which of them counts.
    """
    single = folder / f"model{_WEIGHTS}"
    found = sorted(folder.glob(f"*{_WEIGHTS}"))
    indices = sorted(folder.glob(f"*{_INDEX}"))
    if single in found:
        return [single]
    if len(indices) > 1 or (len(found) > 1 and not indices):
        names = ", ".join(file.name for file in indices or found)
        raise InputError(f"{folder}: nothing says which of {names} to take; give one of the files")
    return list(_shards(indices[0])) if indices else found


def open_folder(folder: pathlib.Path) -> dict[str, LazyArray]:
    """The tensors of all of a folder's weights by name.

    Raises:
        FileFormatError: a file is damaged, or does not hold what the index says.
        InputError: as `weight_files`.
    """
    indices = sorted(folder.glob(f"*{_INDEX}"))
    arrays: dict[str, LazyArray] = {}
    for file in weight_files(folder):
        own = open_safetensors(file)
        if twice := arrays.keys() & own.keys():
            raise FileFormatError(f"{folder}: {min(twice)!r} is in two files; fetch them again")
        if len(indices) == 1 and own.keys() != _shards(indices[0]).get(file, own.keys()):
            raise FileFormatError(
                f"{file}: its tensors are not those that {indices[0].name} says; fetch both again"
            )
        arrays |= own
    return arrays


def _shards(index: pathlib.Path) -> dict[pathlib.Path, set[str]]:
    """The files that an index names, each with its tensors."""
    with reading(index, "an index of safetensors files"):
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards: dict[pathlib.Path, set[str]] = {}
        for name, file in weight_map.items():
            if pathlib.PurePath(file).name != file or not file.endswith(_WEIGHTS):
                raise ValueError(f"{file!r} is not the name of a file beside it")
            shards.setdefault(index.parent / file, set()).add(name)
        if not shards:
            raise ValueError("it names no file")
    missing = [file.name for file in shards if not file.is_file()]
    if missing:
        raise FileFormatError(f"{index}: {missing[0]!r} is not there; fetch all files it names")
    return shards
