"""A member of a zip archive as a file in which any place can be read."""

import contextlib
import io
import os
import pathlib
import struct
import zipfile
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

_BLOCK = 1 << 20  # bytes read at a time


@contextlib.contextmanager
def open_member(path: str | os.PathLike[str], name: str) -> Iterator[BinaryIO]:
    """A member, its checksum compared; read in the archive if it is stored there as it is.

    Raises:
        zipfile.BadZipFile: the archive is damaged, or any other error of zipfile's.
        KeyError: it has no such member.
    """
    with pathlib.Path(path).open("rb") as file, zipfile.ZipFile(file) as archive:
        info = archive.getinfo(name)
        if info.compress_type != zipfile.ZIP_STORED:
            yield io.BytesIO(archive.read(info))
            return
        with archive.open(info) as member:
            size = sum(len(block) for block in iter(lambda: member.read(_BLOCK), b""))
        file.seek(info.header_offset)
        lengths = struct.unpack("<26x2H", file.read(30))  # of the name and of what else is there
        yield cast("BinaryIO", _Range(file, info.header_offset + 30 + sum(lengths), size))


class _Range(io.RawIOBase):
    """Some bytes of a file, as a file."""

    def __init__(self, file: io.BufferedReader, start: int, size: int) -> None:
        super().__init__()
        self._file, self._start, self._size, self._at = file, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        self._file.seek(self._start + self._at)
        wanted = memoryview(buffer).cast("B")[: max(self._size - self._at, 0)]
        if self._file.readinto(wanted) < len(wanted):
            raise OSError("it has become shorter while it was read")
        self._at += len(wanted)
        return len(wanted)
