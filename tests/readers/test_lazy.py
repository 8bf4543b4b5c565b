"""Files read one array at a time: values, memory, and safetensors' header beside its library."""

import json
import tracemalloc

import h5py
import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy

import corrq_jax
from corrq_jax.readers import open_weights, read_weights, write_weights
from corrq_jax.readers.safetensors_file import read_header, write_safetensors

LARGE = {f"w{i}": np.full((2000, 1000), i, np.float32) for i in range(4)}
ONE = 8e6  # bytes of each


def write(path, arrays):
    if path.suffix == ".h5":
        with h5py.File(path, "w") as file:
            for name, array in arrays.items():
                file.create_dataset(name, data=array, chunks=True, compression="gzip")
    elif path.suffix == ".zip":
        with path.open("wb") as file:
            np.savez_compressed(file, **arrays)
    else:
        write_weights(path, arrays)
    return path


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".h5", ".zip"])
def test_each_array_takes_the_memory_of_its_own(tmp_path, suffix):
    path = write(tmp_path / f"a{suffix}", LARGE)
    with open_weights(path) as arrays:
        assert {n: (a.shape, a.dtype) for n, a in arrays.items()} == {
            n: (a.shape, a.dtype) for n, a in LARGE.items()
        }
        tracemalloc.start()
        for name, array in arrays.items():
            assert (np.asarray(array) == LARGE[name]).all()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    # The booleans of the comparison are a quarter; zip files and HDF5 are read by 1 MB, which may
    # be held three times.
    assert peak < 1.25 * ONE + 3.5e6


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_lazy_arrays_are_written_one_by_one(tmp_path, suffix):
    source = write(tmp_path / "a.safetensors", LARGE)
    with open_weights(source) as arrays:
        tracemalloc.start()
        write_weights(tmp_path / f"b{suffix}", arrays)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    # numpy copies to a buffer of at most 16 MiB for a file that is inside another.
    assert peak < (2 if suffix == ".npz" else 1) * ONE + 1e6
    found = read_weights(tmp_path / f"b{suffix}")
    assert found.keys() == LARGE.keys()
    for name, array in LARGE.items():
        np.testing.assert_array_equal(found[name], array)


def test_fortran_order_and_scalars_in_npz(tmp_path):
    arrays = {"f": np.asfortranarray(np.arange(6.0).reshape(2, 3)), "s": np.array(3, np.int8)}
    np.savez(tmp_path / "a.npz", **arrays)
    found = read_weights(tmp_path / "a.npz")
    np.testing.assert_array_equal(found["f"], arrays["f"])
    assert found["s"].shape == ()


def test_a_file_that_becomes_shorter(tmp_path):
    path = write(tmp_path / "a.safetensors", LARGE)
    with open_weights(path) as arrays:
        path.write_bytes(path.read_bytes()[:-1])
        np.asarray(arrays["w0"])
        arrays["w3"].part(0, 1000)
        for read in (arrays["w3"].load, lambda: arrays["w3"].part(1_999_999, 1)):
            with pytest.raises(corrq_jax.FileFormatError, match=r"a\.safetensors.*become shorter"):
                read()


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".zip", ".h5"])
def test_parts_of_an_array(tmp_path, suffix):
    rng, path = np.random.default_rng(0), tmp_path / f"a{suffix}"
    dtypes = ("f2", "f4", "f8", "bfloat16" if suffix == ".safetensors" else ">f4")
    arrays = {d: rng.normal(size=(7, 5)).astype(d) for d in dtypes}
    if suffix == ".h5":
        with h5py.File(path, "w") as file:
            file.update(arrays)
    else:
        write(path, arrays)
    with open_weights(path) as found:
        for name, array in arrays.items():
            for first, size in ((11, 13), (24, 11), (30, 2), (0, 35), (0, 1)):  # in any order
                part = found[name].part(first, size)
                assert part.dtype == array.dtype.newbyteorder("=")
                np.testing.assert_array_equal(part, array.reshape(-1)[first : first + size])


def test_parts_of_npz_are_checked_at_the_end(tmp_path):
    path = write(tmp_path / "a.npz", LARGE)
    data = bytearray(path.read_bytes())
    data[len(data) // 8] ^= 1  # in the first of four arrays
    path.write_bytes(data)
    with open_weights(path) as arrays:
        arrays["w0"].part(0, 1000)
        with pytest.raises(corrq_jax.FileFormatError, match=r"a\.npz.*CRC"):
            arrays["w0"].part(1000, 1_999_000)
        arrays["w1"].part(0, 2_000_000)


def test_the_library_reads_what_is_written(tmp_path):
    path = tmp_path / "a.safetensors"
    arrays = {"b": np.ones(3, ml_dtypes.bfloat16), "e": np.zeros((0, 2)), "t": LARGE["w1"].T}
    write_safetensors(path, arrays, metadata={"format": "pt"})
    with safetensors.safe_open(path, "numpy") as file:
        assert file.metadata() == {"format": "pt"}
        assert set(file.keys()) == set(arrays)
        for name, array in arrays.items():
            found = file.get_tensor(name)
            assert (found.dtype, found.tobytes()) == (array.dtype, array.tobytes())


def changed(**fields):
    return lambda header: {**header, "a": {**header["a"], **fields}}


def with_another(**fields):
    other = {"dtype": "U8", "shape": [4], "data_offsets": [8, 12], **fields}
    return lambda header: {**header, "b": other}


HEADERS = [
    lambda header: header,
    changed(dtype="F16", shape=[4]),
    changed(dtype="F64", shape=[]),
    changed(shape=[2, 1, 1]),
    changed(shape=[3]),
    changed(shape=[-2]),
    changed(shape=[2.0]),
    changed(shape="2"),
    changed(dtype="F33"),
    changed(dtype=None),
    changed(data_offsets=[0, 4]),
    changed(data_offsets=[0, 8, 12]),
    changed(data_offsets=[4, 12]),
    changed(data_offsets=[8, 0]),
    changed(data_offsets=[0, 1 << 70]),
    changed(shape=[1 << 40, 1 << 40]),
    with_another(),
    with_another(shape=[3], data_offsets=[8, 11]),
    with_another(data_offsets=[4, 8]),
    with_another(data_offsets=[9, 13]),
    with_another(shape=[0], data_offsets=[8, 8]),
    lambda header: {**header, "a": []},
    lambda header: {**header, "a": {"dtype": "F32", "shape": [2]}},
    lambda header: {**header, "__metadata__": {"key": "text"}},
    lambda header: {**header, "__metadata__": {"key": 1}},
    lambda header: {**header, "__metadata__": "text"},
    lambda header: [header],
    lambda header: "text",
]


@pytest.mark.parametrize("extra", [0, 4])
@pytest.mark.parametrize("number", range(len(HEADERS)))
def test_accepts_what_the_library_accepts(tmp_path, number, extra):
    path = tmp_path / "a.safetensors"
    header = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
    text = json.dumps(HEADERS[number](header)).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(8 + extra))
    try:
        expected = {n: a.tobytes() for n, a in safetensors.numpy.load_file(path).items()}
    except (safetensors.SafetensorError, TypeError):
        expected = None
    try:
        found = {n: a.tobytes() for n, a in read_weights(path).items()}
    except corrq_jax.FileFormatError:
        found = None
    assert found == expected


@pytest.mark.parametrize("length", [0, 1, 2, 50, 64, 65, 10**9, 2**63, 2**64 - 1])
def test_a_length_of_the_header_that_lies(tmp_path, length):
    path = tmp_path / "a.safetensors"
    text = b'{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}'.ljust(64)
    path.write_bytes(length.to_bytes(8, "little") + text + bytes(4))
    if length == 64:
        assert list(read_header(path).entries) == ["a"]
    else:
        with pytest.raises(ValueError, match=r".+"):
            read_header(path)


def test_a_name_twice_and_deep_nesting(tmp_path):
    path = tmp_path / "a.safetensors"
    entry = '"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
    for text in (f"{{{entry},{entry}}}", '{"a":' + "[" * 100_000, '{"a":' * 100_000):
        path.write_bytes(len(text).to_bytes(8, "little") + text.encode())
        with pytest.raises(corrq_jax.FileFormatError, match=r"a\.safetensors"):
            read_weights(path)
        with pytest.raises(corrq_jax.FileFormatError, match=r"a\.safetensors"):
            corrq_jax.load(path)
