"""The index of a folder that `corrq_jax.save_sharded` wrote: files, parts of arrays, checksums.

docs/format.md has the format.
"""

import json
import pathlib
import zlib
from typing import Any

from corrq_jax.errors import FileFormatError
from corrq_jax.layout import CONTAINERS, DTYPES, are_sizes

INDEX = "index.json"
VERSION = 1
_NO_DIGITS = "0" * 8


def part_name(array: str, start: tuple[int, ...]) -> str:
    """The name in its file of the part of an array that begins at an index."""
    return f"{array}@{','.join(map(str, start))}"


def index_text(content: dict[str, Any]) -> str:
    """The text of an index, its own checksum at the end."""
    text = json.dumps({"version": VERSION, **content, "crc32": _NO_DIGITS}, indent=1)
    return _with_digits(text, f"{zlib.crc32(text.encode()):08x}")


def _with_digits(text: str, digits: str) -> str:
    """The text of an index with other digits in its last entry."""
    head, mark, _ = text.rpartition('"crc32": "')
    return f'{head}{mark}{digits}"\n}}'


def broken(root: pathlib.Path, what: str) -> FileFormatError:
    """The error of a damaged folder."""
    return FileFormatError(f"{root}: {what}; the folder is damaged, make or fetch it again")


def read_index(root: pathlib.Path) -> dict[str, Any]:
    """The index of a folder, its checksum verified.

    Raises:
        FileNotFoundError: there is none.
        FileFormatError: it is damaged or of a newer version.
    """
    try:
        text = (root / INDEX).read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(
            f"{root}: there is no {INDEX}; give a folder that corrq_jax.save_sharded wrote"
        ) from None
    except ValueError:
        raise broken(root, f"its {INDEX} is not text") from None
    if f"{zlib.crc32(_with_digits(text, _NO_DIGITS).encode()):08x}" != text[-11:-3]:
        raise broken(root, f"the checksum of its {INDEX} does not fit it")
    try:
        index = json.loads(text)
        version = index["version"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise broken(root, f"its {INDEX} is unreadable") from None
    if version != VERSION:
        raise FileFormatError(
            f"{root}: format version {version!r}, and this corrq_jax reads version "
            f"{VERSION}; upgrade corrq_jax"
        )
    if not _is_whole(index):
        raise broken(root, f"its {INDEX} lacks what belongs there")
    return index


def _is_whole(index: dict[str, Any]) -> bool:
    """Whether files, arrays and their parts are all there; tensors are for who reads them."""
    files, arrays = index.get("files"), index.get("arrays")
    tensors, containers = index.get("tensors"), index.get("containers")
    return (
        isinstance(files, list)
        and all(map(_is_file, files))
        and isinstance(arrays, dict)
        and all(_is_array(array, len(files)) for array in arrays.values())
        and isinstance(tensors, dict)
        and isinstance(containers, dict)
        and all(kind in CONTAINERS for kind in containers.values())
    )


def _is_file(file: Any) -> bool:
    """Whether it names a file of the folder itself."""
    if not isinstance(file, dict) or not isinstance(file.get("crc32"), str):
        return False
    name = file.get("name")
    return isinstance(name, str) and name not in ("", "..") and pathlib.PurePath(name).name == name


def _is_array(array: Any, files: int) -> bool:
    """Whether all of its parts lie inside of it, each in one of so many files."""
    if not (
        isinstance(array, dict)
        and are_sizes(array.get("shape"))
        and isinstance(array.get("dtype"), str)
        and array["dtype"] in DTYPES
        and isinstance(array.get("parts"), list)
    ):
        return False
    return all(_is_part(part, array["shape"], files) for part in array["parts"])


def _is_part(part: Any, whole: list[int], files: int) -> bool:
    if not (isinstance(part, list) and len(part) == 3 and type(part[0]) is int):
        return False
    number, start, shape = part
    return (
        0 <= number < files
        and are_sizes(start)
        and are_sizes(shape)
        and len(start) == len(shape) == len(whole)
        and all(a + n <= most for a, n, most in zip(start, shape, whole, strict=True))
    )
