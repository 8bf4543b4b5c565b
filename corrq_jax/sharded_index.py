"""The index of a folder that `corrq_jax.save_sharded` wrote: files, parts of arrays, checksums.

docs/format.md has the format.
"""

import json
import pathlib
import zlib
from typing import Any

from corrq_jax.errors import FileFormatError

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
    index = json.loads(text)
    if index["version"] != VERSION:
        raise FileFormatError(
            f"{root}: format version {index['version']!r}, and this corrq_jax reads version "
            f"{VERSION}; upgrade corrq_jax"
        )
    return index
