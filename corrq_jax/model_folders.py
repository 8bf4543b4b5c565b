"""A quantized network in a folder: one file in place of the weights, all else as it was.

`corrq.safetensors` has the weights of all the files together, `corrq.json` says which tensors were
in which file, and what those files said in their headers, so that they can be written again.
"""

import json
import pathlib
import shutil
from typing import NamedTuple

from corrq_jax.errors import FileFormatError
from corrq_jax.readers.arrays import reading
from corrq_jax.readers.model_folder import weight_files
from corrq_jax.readers.safetensors_file import read_header

QUANTIZED = "corrq.safetensors"
_LAYOUT = "corrq.json"
_VERSION = 1

# Weights in other formats, which would be copies of those that are quantized.
_OTHER_WEIGHTS = (".safetensors", ".bin", ".h5", ".msgpack", ".ot", ".pt", ".pth", ".ckpt", ".gguf")
_OTHER_FOLDERS = ("onnx", "openvino")


class Shard(NamedTuple):
    """A file of weights.

    Attributes:
        name: of the file.
        tensors: the names of its tensors, in its order.
        metadata: of its header; None if it has none.
    """

    name: str
    tensors: list[str]
    metadata: dict[str, str] | None


def write_layout(source: pathlib.Path, target: pathlib.Path) -> None:
    """Record in the folder ``target`` how the weights lie in the files of ``source``.

    Raises:
        FileFormatError: a file is damaged.
    """
    shards = []
    for file in weight_files(source):
        with reading(file, "a .safetensors file"):
            header = read_header(file)
        shards.append(Shard(file.name, list(header.entries), header.metadata or None))
    record = {"version": _VERSION, "weights": [shard._asdict() for shard in shards]}
    text = json.dumps(record, indent=1, ensure_ascii=True)
    (target / _LAYOUT).write_text(text, encoding="utf-8")


def read_layout(folder: pathlib.Path) -> list[Shard]:
    """The files that the weights of a quantized folder were in.

    Raises:
        FileFormatError: the record is missing, damaged, or of a newer version.
    """
    file = folder / _LAYOUT
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        version = record["version"]
        shards = [Shard(**item) for item in record["weights"]] if version == _VERSION else []
        whole = version != _VERSION or all(map(_is_whole, shards))
    except FileNotFoundError:
        raise FileFormatError(
            f"{folder}: a folder without {_LAYOUT}; give one that corrq quantize wrote, or a file"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        whole, version, shards = False, _VERSION, []
    if not whole:
        raise FileFormatError(f"{file}: it is damaged; make or fetch it again")
    if version != _VERSION:
        raise FileFormatError(
            f"{file}: version {version!r}, and this corrq_jax reads {_VERSION}; upgrade corrq_jax"
        )
    return shards


def _is_whole(shard: Shard) -> bool:
    metadata = {} if shard.metadata is None else shard.metadata
    return (
        isinstance(shard.name, str)
        and pathlib.PurePath(shard.name).name == shard.name
        and shard.name not in (QUANTIZED, _LAYOUT)
        and isinstance(shard.tensors, list)
        and all(isinstance(name, str) for name in shard.tensors)
        and isinstance(metadata, dict)
        and all(isinstance(value, str) for value in metadata.values())
    )


def copy_rest(source: pathlib.Path, target: pathlib.Path) -> None:
    """Copy all but the weights from a folder to a new one; links are followed.

    Raises:
        OSError: a file cannot be copied, such as a link to nothing.
    """
    out = {source / name for name in (*_weights(source), QUANTIZED, _LAYOUT)}

    def ignored(folder: str, names: list[str]) -> list[str]:
        return [name for name in names if pathlib.Path(folder) / name in out or name[0] == "."]

    try:
        shutil.copytree(source, target, ignore=ignored, dirs_exist_ok=True)
    except shutil.Error as error:  # a list of all files, each with a temporary name
        file, _, why = error.args[0][0]
        raise OSError(f"{file}: it cannot be copied ({why}); put this right, run again") from None


def left_out(source: pathlib.Path) -> list[str]:
    """The files and folders of weights that are neither quantized nor copied."""
    taken = {file.name for file in weight_files(source)}
    return [name for name in _weights(source) if name not in taken]


def _weights(folder: pathlib.Path) -> list[str]:
    return sorted(
        item.name
        for item in folder.iterdir()
        if item.name.endswith(_OTHER_WEIGHTS) or item.name in _OTHER_FOLDERS
    )
