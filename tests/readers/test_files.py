"""read_weights and write_weights: dispatch, round trips, damage, full disks."""

import subprocess
import sys
import textwrap
import zipfile

import ml_dtypes
import numpy as np
import pytest
from weight_arrays import ARRAYS, BFLOAT16, assert_equal

import corrq_jax
from corrq_jax.readers import read_weights, write_weights

SUFFIXES = [".npz", ".safetensors"]


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


def test_a_library_that_is_not_installed(files, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(corrq_jax.MissingDependencyError, match=r"corrq_jax\[files\]"):
        read_weights(files[".h5"])
