"""read_weights and write_weights: dispatch, round trips, damage, full disks."""

import io
import subprocess
import sys
import textwrap
import zipfile

import ml_dtypes
import numpy as np
import pytest

import corrq_jax
from corrq_jax.readers import read_weights, write_weights

ARRAYS = {
    "conv/kernel": np.arange(24, dtype=np.float32).reshape(2, 3, 4) / 7,
    "file": np.array([0.1, -0.0, 5e-324, 1.7e308]),
    "half": np.array([[1.5, -2.0]], np.float16),
    "int8": np.array([-128, 127], np.int8),
    "step": np.array(7, np.int64),
    "mask": np.array([True, False]),
    "empty": np.zeros((0, 3), np.float32),
    "transposed": np.arange(6, dtype=np.uint16).reshape(2, 3).T,
    "strided": np.arange(10, dtype=np.int32)[::3],
}
BFLOAT16 = {"bf": np.array([[1.0, -0.5, 3e38]], ml_dtypes.bfloat16)}
SUFFIXES = [".npz", ".safetensors"]


def assert_equal(read, written):
    assert set(read) == set(written)
    for name, array in written.items():
        assert read[name].dtype == array.dtype, name
        assert read[name].shape == array.shape, name
        assert read[name].tobytes() == np.asarray(array, order="C").tobytes(), name


@pytest.fixture
def files(tmp_path):
    """A file of every format, by name."""
    import h5py

    for suffix in SUFFIXES:
        write_weights(tmp_path / f"a{suffix}", ARRAYS)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name, array in ARRAYS.items():
            file[name] = array
        chunked = np.arange(4000, dtype=np.float32).reshape(40, 100)
        file.create_dataset("gzip", data=chunked, chunks=(10, 50), compression="gzip")
    with zipfile.ZipFile(tmp_path / "a.keras", "w") as archive:
        archive.writestr("config.json", "{}")
        archive.write(tmp_path / "a.h5", "model.weights.h5")
    return {path.suffix: path for path in tmp_path.iterdir()}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_round_trip(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    write_weights(path, ARRAYS)
    assert_equal(read_weights(path), ARRAYS)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_other_byte_order_is_read_natively(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    write_weights(path, {"a": np.array([1.5, 2.0], ">f4"), "b": np.array([1, 2], "<i2")})
    native = {"a": np.array([1.5, 2.0], np.float32), "b": np.array([1, 2], np.int16)}
    assert_equal(read_weights(path), native)


def test_bfloat16_in_safetensors(tmp_path):
    write_weights(tmp_path / "a.safetensors", BFLOAT16)
    assert_equal(read_weights(tmp_path / "a.safetensors"), BFLOAT16)


def test_jax_arrays_are_written(tmp_path):
    import jax.numpy as jnp

    for suffix in SUFFIXES:
        write_weights(tmp_path / f"a{suffix}", {"a": jnp.arange(3.0)})
        assert_equal(read_weights(tmp_path / f"a{suffix}"), {"a": np.arange(3, dtype=np.float32)})


def test_equal_arrays_give_equal_bytes(tmp_path):
    for suffix in SUFFIXES:
        for name in "ab":
            write_weights(tmp_path / f"{name}{suffix}", ARRAYS)
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:  # No time of writing is in there.
        assert {info.date_time[0] for info in archive.infolist()} == {1980}


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".h5", ".keras"])
@pytest.mark.parametrize("wrong", [".npz", ".safetensors", ".h5", ".pth", ".bin", ""])
def test_content_goes_before_suffix(files, suffix, wrong):
    renamed = files[suffix].rename(files[suffix].with_name(f"renamed{wrong}"))
    read = read_weights(renamed)
    read.pop("gzip", None)
    assert_equal(read, ARRAYS)


def test_torch_archives_are_told_from_npz(tmp_path):
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}.")
    with pytest.raises(corrq_jax.FileFormatError) as caught:
        read_weights(path)
    assert "numpy.savez" not in str(caught.value)


def test_old_torch_files_are_told_by_their_first_byte(tmp_path):
    path = tmp_path / "a.npz"
    path.write_bytes(b"\x80\x02not a checkpoint")
    with pytest.raises(corrq_jax.FileFormatError) as caught:
        read_weights(path)
    assert ".npz file" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    for name in ("a.npz", "a.h5", "a.safetensors", "a.pth", "a"):
        with pytest.raises(FileNotFoundError, match=f"no such weight file.*{name}"):
            read_weights(tmp_path / name)


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(IsADirectoryError, match="folder where a weight file is needed"):
        read_weights(tmp_path)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".h5", ".keras", ".pth", ".pt", ""])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS pointer"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"\x93NUMPY\x01\x00v\x00", "single unnamed .npy"),
        (b"\x1f\x8b\x08\x00", "gzip"),
        (b"PK\x03\x04 and no more", "damaged or truncated zip"),
        (b"hello, I am a text of some length", "weights"),
        (bytes(600), "weights"),
    ],
)
def test_foreign_files(tmp_path, suffix, content, message):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(corrq_jax.FileFormatError, match=message) as caught:
        read_weights(path)
    assert str(path) in str(caught.value)


def test_an_unknown_suffix_says_what_is_allowed(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"hello, I am a text")
    with pytest.raises(corrq_jax.FileFormatError, match=r"suffix '\.bin'.*\.npz, \.safetensors"):
        read_weights(path)
    with pytest.raises(corrq_jax.InputError, match=r"'\.bin'; name the file \.npz or \.safe"):
        write_weights(tmp_path / "b.bin", ARRAYS)


def test_files_without_arrays(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w"):
        pass
    (tmp_path / "a.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    import h5py

    with h5py.File(tmp_path / "a.h5", "w"):
        pass
    for path in tmp_path.iterdir():
        with pytest.raises(corrq_jax.FileFormatError, match=r"no arrays|not a \.safetensors file"):
            read_weights(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "no arrays to write"),
        ({"a": np.array([None, 1], object)}, "'a' has dtype object"),
        ({"a": np.array(["x"])}, "'a' has dtype <U1"),
        ({"a": np.array([1 + 2j])}, "'a' has dtype complex128"),
        ({"a": np.zeros(2, ml_dtypes.int4)}, "'a' has dtype int4"),
        ({"": np.zeros(2)}, "array name ''"),
        ({3: np.zeros(2)}, "array name 3"),
        ({"a\0b": np.zeros(2)}, "array name"),
        ({"\ud800": np.zeros(2)}, "array name"),
        ({"n" * 5000: np.zeros(2)}, "4,096 bytes"),
    ],
)
def test_what_cannot_be_written_is_named(tmp_path, suffix, arrays, message):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"old")
    with pytest.raises(corrq_jax.InputError, match=message):
        write_weights(path, arrays, overwrite=True)
    assert path.read_bytes() == b"old"


def test_format_specific_refusals(tmp_path):
    with pytest.raises(corrq_jax.InputError, match=r"'bf' is bfloat16.*safetensors"):
        write_weights(tmp_path / "a.npz", BFLOAT16)
    with pytest.raises(corrq_jax.InputError, match="reserved"):
        write_weights(tmp_path / "a.safetensors", {"__metadata__": np.zeros(2)})
    with pytest.raises(corrq_jax.InputError, match=r"float128|longdouble"):
        write_weights(tmp_path / "a.safetensors", {"a": np.zeros(2, np.longdouble)})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_existing_file_is_kept_unless_told(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    write_weights(path, ARRAYS)
    with pytest.raises(FileExistsError, match="exists already"):
        write_weights(path, {"b": np.zeros(2)})
    assert_equal(read_weights(path), ARRAYS)
    write_weights(path, {"b": np.zeros(2)}, overwrite=True)
    assert_equal(read_weights(path), {"b": np.zeros(2)})


@pytest.mark.skipif(sys.platform == "win32", reason="no file size limits")
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_full_disk_leaves_the_old_file(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    write_weights(path, ARRAYS)
    code = """
        import resource, sys
        import numpy as np
        from corrq_jax.readers import write_weights
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
        try:
            write_weights(sys.argv[1], {"a": np.zeros(100_000)}, overwrite=True)
        except OSError as error:
            print(type(error).__name__, "File too large" in str(error))
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "OSError True\n"
    assert_equal(read_weights(path), ARRAYS)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_interrupted_writer_leaves_the_old_file(tmp_path, monkeypatch, suffix):
    path = tmp_path / f"a{suffix}"
    write_weights(path, ARRAYS)

    def fail(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("numpy.lib.format.write_array", fail)
    monkeypatch.setattr("corrq_jax.readers.safetensors_file._write_values", fail)
    with pytest.raises(KeyboardInterrupt):
        write_weights(path, {"a": np.zeros(10)}, overwrite=True)
    assert_equal(read_weights(path), ARRAYS)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".h5", ".keras"])
def test_truncated_files(files, suffix):
    whole = files[suffix].read_bytes()
    random = np.random.default_rng(0).integers(1, len(whole), 60)
    for length in {*range(1, 80), *random.tolist(), len(whole) - 1, len(whole) - 2}:
        files[suffix].write_bytes(whole[:length])
        with pytest.raises(corrq_jax.FileFormatError) as caught:
            read_weights(files[suffix])
        assert str(files[suffix]) in str(caught.value)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".h5", ".keras"])
def test_flipped_bytes_give_arrays_or_a_format_error(files, suffix):
    """Half of the flips are in the first kilobyte, where the headers are."""
    whole = files[suffix].read_bytes()
    random = np.random.default_rng(1)
    refused = 0
    for attempt in range(300):
        damaged = bytearray(whole)
        at = int(random.integers(len(whole) if attempt % 2 else min(len(whole), 1024)))
        damaged[at] ^= int(random.integers(1, 256))
        files[suffix].write_bytes(damaged)
        try:
            arrays = read_weights(files[suffix])
        except corrq_jax.FileFormatError:
            refused += 1
        else:
            assert all(isinstance(array, np.ndarray) for array in arrays.values())
    assert refused > 30


def test_damaged_values_in_npz_are_noticed(tmp_path):
    path = tmp_path / "a.npz"
    write_weights(path, {"a": np.zeros(100)})
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[whole.index(b"\n", whole.index(b"NUMPY")) + 100] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(corrq_jax.FileFormatError, match="CRC"):
        read_weights(path)


def test_numpys_own_files_are_read(tmp_path):
    for name, save in (("a.npz", np.savez), ("b.npz", np.savez_compressed)):
        arrays = {key: array for key, array in ARRAYS.items() if key != "file"}
        save(tmp_path / name, **arrays)
        assert_equal(read_weights(tmp_path / name), arrays)


def test_numpy_reads_what_is_written(tmp_path):
    write_weights(tmp_path / "a.npz", ARRAYS)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as loaded:
        assert_equal(dict(loaded), ARRAYS)


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


def test_safetensors_by_its_bytes(tmp_path):
    """The format's specification: a length, a JSON header, the values."""
    path = tmp_path / "a.safetensors"
    header = b'{"w":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\x80\x3f\x00\xc0")
    assert_equal(read_weights(path), {"w": np.array([1.0, -2.0], ml_dtypes.bfloat16)})


def test_safetensors_whose_length_begins_like_a_pickle(tmp_path):
    path = tmp_path / "a.bin"
    header = b'{"w":{"dtype":"I8","shape":[3],"data_offsets":[0,3]}}'.ljust(0x80)
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\1\2\3")
    assert_equal(read_weights(path), {"w": np.array([1, 2, 3], np.int8)})


def test_safetensors_with_a_dtype_that_numpy_lacks(tmp_path):
    path = tmp_path / "a.safetensors"
    header = b'{"w":{"dtype":"F8_E4M3","shape":[2],"data_offsets":[0,2]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0\0")
    with pytest.raises(corrq_jax.FileFormatError, match=r"'w' has dtype F8_E4M3.*BF16"):
        read_weights(path)


def test_a_library_that_is_not_installed(files, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(corrq_jax.MissingDependencyError, match=r"corrq_jax\[files\]"):
        read_weights(files[".h5"])
