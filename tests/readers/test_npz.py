"""What NumPy writes and reads in .npz files, and what is refused in them."""

import io
import zipfile

import numpy as np
import pytest
from weight_arrays import ARRAYS, BFLOAT16, assert_equal

import corrq_jax
from corrq_jax.readers import read_weights, write_weights


def test_numpys_own_files_are_read(tmp_path):
    for name, save in (("a.npz", np.savez), ("b.npz", np.savez_compressed)):
        arrays = {key: array for key, array in ARRAYS.items() if key != "file"}
        save(tmp_path / name, **arrays)
        assert_equal(read_weights(tmp_path / name), arrays)


def test_numpy_reads_what_is_written(tmp_path):
    write_weights(tmp_path / "a.npz", ARRAYS)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as loaded:
        assert_equal(dict(loaded), ARRAYS)


def test_damaged_values_in_npz_are_noticed(tmp_path):
    path = tmp_path / "a.npz"
    write_weights(path, {"a": np.zeros(100)})
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[whole.index(b"\n", whole.index(b"NUMPY")) + 100] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(corrq_jax.FileFormatError, match="CRC"):
        read_weights(path)


@pytest.mark.parametrize("before", [b"##", b"PK"])
def test_an_npz_archive_behind_other_bytes_is_refused(tmp_path, before):
    """numpy.load takes such a file for a pickle, while zipfile finds the archive in it."""
    path = tmp_path / "a.npz"
    write_weights(path, ARRAYS)
    path.write_bytes(before + path.read_bytes())
    with pytest.raises(corrq_jax.FileFormatError, match="does not begin as a zip archive does"):
        read_weights(path)


def test_npz_refuses_what_is_no_number(tmp_path):
    cases = {
        "objects": ({"good": np.zeros(2), "a": np.array([{}], object)}, "'a' holds Python obj"),
        "text": ({"a": np.array(["text"])}, "'a' has dtype <U4"),
        "records": ({"a": np.zeros(2, [("x", "f4"), ("y", "f4")])}, "'a' has dtype"),
        "bfloat16": ({"a": BFLOAT16["bf"].view("V2")}, "'a' is of an unnamed 2-byte type"),
    }
    for name, (arrays, message) in cases.items():
        np.savez(tmp_path / f"{name}.npz", **arrays)
        with pytest.raises(corrq_jax.FileFormatError, match=message):
            read_weights(tmp_path / f"{name}.npz")


def npy(header: str, data: bytes) -> bytes:
    body = header.encode("latin1")
    return b"\x93NUMPY\x01\x00" + len(body).to_bytes(2, "little") + body + data


@pytest.mark.parametrize(
    ("member", "message"),
    [
        (("a.txt", b"text"), "member 'a.txt' is not a .npy array"),
        (("a.npy", b"text"), "not an .npz file"),
        (
            ("a.npy", npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,)}\n",
             bytes(8))),
            "claims 8000000000000 bytes and holds 8",
        ),
        (("a.npy", npy("{'descr': '<f8', 'shape': (1,\n", bytes(8))), "EOF in multi-line"),
        (
            ("a.npy", npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1,)}\n", bytes(16))),
            "claims 8 bytes and holds 16",
        ),
    ],
)  # fmt: skip
def test_npz_members_that_lie(tmp_path, member, message):
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(*member)
    with pytest.raises(corrq_jax.FileFormatError, match=message):
        read_weights(path)


def test_npz_with_a_name_twice(tmp_path):
    out = io.BytesIO()
    np.save(out, np.zeros(2))
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("a.npy", out.getvalue())
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a.npy", out.getvalue())
    with pytest.raises(corrq_jax.FileFormatError, match=r"'a.npy' is there twice"):
        read_weights(tmp_path / "a.npz")
