"""Files that are read by bands: the parts are those of the whole, and little is read twice."""

import collections
import contextlib
import io
import itertools
import math
import os
import tracemalloc
import zipfile

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import corrq_jax
from corrq_jax import lazy
from corrq_jax.readers import h5, npz, open_weights

SHAPES = st.lists(st.integers(1, 9), min_size=1, max_size=4).map(tuple)
SIZES = st.integers(1, 40)  # of parts


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("bands")


@pytest.fixture(scope="module", autouse=True)
def small_bands():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lazy, "BAND", 50)
        patch.setattr(npz, "_BLOCK", 100)
        yield


def values(shape, dtype=">f4"):
    return np.arange(math.prod(shape), dtype=dtype).reshape(shape)


def assert_same_in_parts(found, array, size):
    """In a pass, and then backwards."""
    starts = range(0, array.size, size)
    for start in itertools.chain(starts, reversed(starts)):
        expected = array.reshape(-1)[start : start + size]
        part = found.part(start, expected.size)
        assert part.dtype == found.dtype == array.dtype.newbyteorder("=")
        np.testing.assert_array_equal(part, expected)


@settings(max_examples=30)
@given(shape=SHAPES, size=SIZES, is_compressed=st.booleans())
def test_npz_with_columns_first(folder, shape, size, is_compressed):
    arrays = {"a": values(shape), "b": -values(shape)}
    save = np.savez_compressed if is_compressed else np.savez
    save(folder / "a.npz", **{n: np.asfortranarray(array) for n, array in arrays.items()})
    with open_weights(folder / "a.npz") as found:
        for name, array in arrays.items():
            assert_same_in_parts(found[name], array, size)
        assert found["b"].part(0, 1) == arrays["b"].reshape(-1)[0]
        assert found["a"].part(0, 1) == arrays["a"].reshape(-1)[0]


@settings(max_examples=30)
@given(data=st.data(), shape=SHAPES, size=SIZES)
def test_hdf5(folder, data, shape, size):
    chunks = data.draw(st.none() | st.tuples(*(st.integers(1, n) for n in shape)))
    with h5py.File(folder / "a.h5", "w") as file:
        file.create_dataset("a", data=values(shape), chunks=chunks)
        file["scalar"] = 1.0
        file["empty"] = np.zeros((0, 3))
    with open_weights(folder / "a.h5") as found:
        assert_same_in_parts(found["a"], values(shape), size)
        assert [name for name, array in found.items() if array.part is None] == ["empty", "scalar"]


@given(data=st.data(), shape=SHAPES)
def test_no_band_of_hdf5_is_large(data, shape):
    chunks = data.draw(st.none() | st.tuples(*(st.integers(1, n) for n in shape)))
    axis, lines = h5._cut(shape, chunks)
    assert lines * math.prod(shape[axis + 1 :]) <= max(50, math.prod(shape) / 4)


class Watched(io.FileIO):
    """A file that notes where it was read."""

    def __init__(self, path):
        super().__init__(path)
        self.places = collections.Counter()

    def readinto(self, buffer):
        self.places[self.tell()] += 1
        return super().readinto(buffer)


@pytest.mark.parametrize(
    ("shape", "chunks", "times"),
    [
        ((20, 10), (2, 3), 1),  # two chunks in a band
        ((40, 10), (10, 3), 1),  # one chunk has more than a band, but less than a quarter
        ((40, 10), (20, 3), 2),  # a chunk is half of all: ten rows at a time
        ((4, 90), (1, 7), 1),  # a row is a band
        ((3, 300), (1, 7), 1),  # seven chunks of a row
        ((300,), (7,), 1),
    ],
)
def test_how_often_a_chunk_is_read(tmp_path, shape, chunks, times):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("w", data=values(shape), chunks=chunks, compression="gzip")
        stored = file["w"].id
        chunk_places = {
            stored.get_chunk_info(i).byte_offset for i in range(stored.get_num_chunks())
        }
    with Watched(tmp_path / "a.h5") as file, h5._open("a.h5", file) as arrays:
        file.places.clear()
        for start in range(0, math.prod(shape), 20):
            arrays["w"].part(start, min(20, math.prod(shape) - start))
        assert {file.places[place] for place in chunk_places} == {times}


def test_one_band_is_in_memory(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name in "ab":
            file.create_dataset(name, data=values((1000, 1000), "<f4"), chunks=(250, 100))
    with open_weights(tmp_path / "a.h5") as arrays:
        with traced() as peak:
            for array in arrays.values():
                for start in range(0, 960_000, 30_000):
                    array.part(start, 30_000)
        assert 1e6 < peak() < 1.5e6  # a band has a quarter of 4 MB


@contextlib.contextmanager
def traced():
    """Gives the most bytes that were taken at a time."""
    found = []
    tracemalloc.start()
    try:
        yield lambda: found[0]
        found.append(tracemalloc.get_traced_memory()[1])
    finally:
        tracemalloc.stop()


def keras(folder, method, array):
    with h5py.File(folder / "a.h5", "w") as file:
        file["w"] = array
    with zipfile.ZipFile(folder / "a.keras", "w", method) as archive:
        archive.writestr("config.json", "{}")
        archive.write(folder / "a.h5", "model.weights.h5")
        archive.writestr("metadata.json", "{}")
    return folder / "a.keras"


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_keras_archives(tmp_path, method):
    array = values((100, 100))
    with open_weights(keras(tmp_path, method, array)) as arrays:
        assert_same_in_parts(arrays["w"], array, 999)
        np.testing.assert_array_equal(arrays["w"].load(), array)


def test_a_keras_archive_is_not_read_into_memory(tmp_path):
    path = keras(tmp_path, zipfile.ZIP_STORED, np.zeros((4000, 1000)))
    with traced() as peak, open_weights(path) as arrays:
        arrays["w"].part(0, 10)
    assert peak() < 5e6  # the file has 32 MB


def test_damaged_keras_archives(tmp_path):
    path = keras(tmp_path, zipfile.ZIP_STORED, values((100, 100)))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(corrq_jax.FileFormatError, match=r"a\.keras.*CRC"), open_weights(path):
        pass


def test_a_keras_archive_that_becomes_shorter(tmp_path):
    path = keras(tmp_path, zipfile.ZIP_STORED, values((100, 100)))
    with open_weights(path) as arrays:
        os.truncate(path, path.stat().st_size // 2)
        with pytest.raises(corrq_jax.FileFormatError, match=r"a\.keras.*become shorter"):
            arrays["w"].part(9_000, 1000)


def test_damaged_columns_are_noticed_at_the_first_part(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, w=np.asfortranarray(values((100, 100))), other=np.eye(2))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with open_weights(path) as arrays:
        for _ in range(2):
            with pytest.raises(corrq_jax.FileFormatError, match=r"a\.npz.*CRC"):
                arrays["w"].part(0, 1)
        assert arrays["other"].part(0, 1) == 1
