"""numpy's `.npz`: a zip archive of `.npy` files."""

import collections
import io
import math
import os
import zipfile
from collections.abc import Mapping

import numpy as np

from corrq_jax.atomic import atomic_write
from corrq_jax.errors import FileFormatError, InputError
from corrq_jax.readers.arrays import BFLOAT16, checked, reading, to_write


def read_npz(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads every array of an `.npz` file by its name, without running pickled code.

    Raises:
        FileFormatError: the file is damaged, is another kind of zip archive, or holds objects,
            text or bfloat16 (which npz stores without its name).
    """
    with reading(path, "an .npz file"), zipfile.ZipFile(path) as archive:
        return {
            _array_name(path, info): _read_member(path, archive, info)
            for info in _members(path, archive)
        }


def write_npz(
    path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray], *, overwrite: bool = False
) -> None:
    """Writes arrays to an uncompressed `.npz` file; equal arrays give equal bytes.

    Raises:
        InputError: there are no arrays, or a name or dtype cannot be written; npz has no name
            for bfloat16.
        OSError: as `atomic_write`.
    """
    ready = to_write(arrays)
    for name, array in ready.items():
        if array.dtype == BFLOAT16:
            raise InputError(
                f"array {name!r} is bfloat16, which .npz has no name for; write .safetensors, "
                "or convert it to float32 first (which loses nothing)"
            )
    with (
        atomic_write(path, overwrite=overwrite) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive,
    ):
        # numpy.savez cannot name an array 'file', and stamps the time into the file.
        for name, array in ready.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def _members(path: str | os.PathLike[str], archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    infos = archive.infolist()
    counts = collections.Counter(info.filename for info in infos)
    if repeated := [name for name, count in counts.items() if count > 1]:
        raise FileFormatError(
            f"{os.fspath(path)}: array {repeated[0]!r} is there twice; save the file again"
        )
    return infos


def _array_name(path: str | os.PathLike[str], info: zipfile.ZipInfo) -> str:
    if not info.filename.endswith(".npy"):
        raise FileFormatError(
            f"{os.fspath(path)}: a zip archive, but its member {info.filename!r} is not a .npy "
            "array; give a file written by numpy.savez"
        )
    return info.filename.removesuffix(".npy")


def _read_member(
    path: str | os.PathLike[str], archive: zipfile.ZipFile, info: zipfile.ZipInfo
) -> np.ndarray:
    """One array. The member is read whole first, for only then its checksum is compared."""
    data = io.BytesIO(archive.read(info))
    name = _array_name(path, info)
    shape, dtype = _header(data)
    if dtype.hasobject:
        raise FileFormatError(
            f"{os.fspath(path)}: array {name!r} holds Python objects, which are pickled code and "
            "are not read; save it as an array of numbers"
        )
    if dtype == np.dtype("V2"):
        raise FileFormatError(
            f"{os.fspath(path)}: array {name!r} is of an unnamed 2-byte type, as bfloat16 becomes "
            "in .npz; save it as float32, or as .safetensors"
        )
    # Before numpy allocates what the header claims.
    claimed, held = math.prod(shape) * dtype.itemsize, len(data.getbuffer()) - data.tell()
    if claimed != held:
        raise ValueError(f"array {name!r} claims {claimed} bytes and holds {held}")
    data.seek(0)
    return checked(path, name, np.lib.format.read_array(data, allow_pickle=False))


def _header(data: io.BytesIO) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype in a .npy header; leaves `data` at the array's first byte."""
    version = np.lib.format.read_magic(data)
    read = np.lib.format.read_array_header_1_0
    if version != (1, 0):  # Versions 2 and 3 differ in the header's text encoding only.
        read = np.lib.format.read_array_header_2_0
    shape, _, dtype = read(data)
    return shape, dtype
