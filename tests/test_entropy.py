"""Entropy coding: codes come back, take what the entropy says, and damage is an error."""

import sys
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from corrq_jax import entropy
from corrq_jax.errors import InputError, MissingDependencyError

pytest.importorskip("constriction")
CHUNK = entropy.PIECE


def gaussian(size, bits, seed=0):
    """Codes whose entropy is about so many bits: rounded Gaussian samples."""
    x = np.random.default_rng(seed).normal(size=size) * 2**bits / np.sqrt(2 * np.pi * np.e)
    x = np.clip(np.round(x) + 128, 0, 255).astype(np.uint8)
    return x - x.min()


def round_trip(codes, levels):
    frequencies, stream = entropy.encode(codes, levels)
    again = entropy.decode(frequencies, stream, codes.size)
    assert again.dtype == np.uint8
    np.testing.assert_array_equal(again, codes)
    assert frequencies.shape == (levels,)
    assert stream.dtype == np.uint8
    return frequencies, stream


def oracle(codes, frequencies):
    """The same coder, after Duda et al. (2015), in Python's integers and floats."""
    f = [int(n) for n in frequencies]
    if sum(n > 0 for n in f) < 2:
        return b""
    scale = (2**24 - len(f)) / sum(f)
    cumulative = [int(sum(f[:i]) * scale) + i for i in range(len(f))] + [2**24]
    state, words = 0, []
    for code in reversed(codes.tolist()):
        low = cumulative[code]
        width = cumulative[code + 1] - low
        if state >> 40 >= width:
            words.append(state % 2**32)
            state >>= 32
        state = ((state // width) << 24) + state % width + low
    data = b"".join(word.to_bytes(4, "little") for word in words) + state.to_bytes(8, "little")
    return data.rstrip(b"\0")


@st.composite
def coded(draw, most=300):
    """(codes, levels) of all kinds of distributions, down to single codes and none."""
    levels = draw(st.integers(1, 256))
    size = draw(st.integers(0, most))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    concentration = draw(st.sampled_from([0.01, 0.1, 1.0, 100.0]))
    weights = rng.gamma(concentration, size=levels) + 1e-300
    return rng.choice(levels, size, p=weights / weights.sum()).astype(np.uint8), levels


@given(coded(most=20_000))
@settings(max_examples=150)
def test_codes_come_back(case):
    codes, levels = case
    frequencies, stream = round_trip(codes, levels)
    assert ((frequencies > 0) == (np.bincount(codes, minlength=levels) > 0)).all()
    counts = np.bincount(codes, minlength=levels)
    assert frequencies.nbytes + stream.nbytes <= entropy.coded_nbytes(counts)


@given(coded())
@settings(max_examples=150)
def test_the_stream_is_that_of_an_independent_coder(case):
    codes, levels = case
    frequencies, stream = entropy.encode(codes, levels)
    assert stream.tobytes() == oracle(codes, frequencies)


@given(coded(), st.lists(st.integers(0, 300), max_size=5))
@settings(max_examples=100)
def test_where_codes_are_cut_does_not_matter(case, cuts):
    codes, levels = case
    whole = entropy.encode(codes, levels)
    pieces = np.split(codes, sorted(cuts))
    for held in (0, len(pieces)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(entropy, "HELD", held)
            cut = entropy.encode_pieces(pieces, levels)
        for a, b in zip(whole, cut, strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("held", "asked"), [(3, [0, 1, 2]), (2, [0, 1, 2, 2, 1, 0])])
def test_few_pieces_are_made_once(monkeypatch, held, asked):
    class Pieces(Sequence):
        def __len__(self):
            return 3

        def __getitem__(self, index):
            found.append(range(3)[index])
            return np.array([0, 1, 2], np.uint8)

    found = []
    monkeypatch.setattr(entropy, "HELD", held)
    entropy.encode_pieces(Pieces(), 3)
    assert found == asked


@pytest.mark.parametrize("bits", [1, 4, 6])
def test_so_is_a_long_one_of_scaled_frequencies(bits):
    codes = gaussian(100_000, bits)
    frequencies, stream = entropy.encode(codes, int(codes.max()) + 1)
    assert frequencies.sum(dtype=np.int64) < codes.size
    assert stream.tobytes() == oracle(codes, frequencies)


def test_literal_bytes():
    """What the format is: a library that coded otherwise could not read older files."""
    codes = np.array([3, 1, 1, 0, 2, 1, 2, 1, 1, 2, 2, 0, 1, 1, 2, 1, 3, 1, 1, 2], np.uint8)
    frequencies, stream = round_trip(codes, 5)
    assert frequencies.dtype == np.uint8
    assert frequencies.tolist() == [2, 10, 6, 2, 0]
    assert stream.tobytes().hex() == "5edae748a1ae90"


@pytest.mark.parametrize(
    ("codes", "levels"),
    [
        ([], 1),
        ([], 256),
        ([0], 1),
        ([255], 256),
        ([7] * 1000, 8),
        ([0] * 999 + [1], 2),
        ([1] + [0] * 999, 2),
        ([1] * 999 + [0], 256),
        (range(256), 256),
        ([0, 255] * 5000, 256),
    ],
    ids=str,
)
def test_edge_cases_come_back(codes, levels):
    codes = np.array(codes, np.uint8)
    _, stream = round_trip(codes, levels)
    if len(set(codes.tolist())) < 2:
        assert stream.size == 0


@pytest.mark.parametrize("size", [CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 3_000_000])
def test_chunks_come_back(size):
    codes = gaussian(size, 4)
    # Codes 0 at the end leave the coder empty before the last chunk.
    codes[-CHUNK - 5 :] = 0
    frequencies, stream = round_trip(codes, int(codes.max()) + 1)
    counts = np.bincount(codes)
    assert frequencies.nbytes + stream.nbytes <= entropy.coded_nbytes(counts)


def test_predicted_size_allows_for_codes_that_do_not_occur():
    """Each takes 2**-24 of the probability: much beside almost no entropy."""
    codes = np.full(3_000_000, 7, np.uint8)
    codes[::600_000] = 3
    frequencies, stream = round_trip(codes, 256)
    counts = np.bincount(codes, minlength=256)
    assert frequencies.nbytes + stream.nbytes <= entropy.coded_nbytes(counts)


@pytest.mark.parametrize("damaged", [False, True])
def test_a_size_far_too_large_takes_no_time(monkeypatch, damaged):
    real, decoded = entropy._coder, []

    class Coder:
        def __init__(self, words):
            self.coder = real(words)
            self.is_empty, self.pos = self.coder.is_empty, self.coder.pos

        def decode(self, model, size):
            decoded.append(size)
            return self.coder.decode(model, size)

    monkeypatch.setattr(entropy, "_coder", Coder)
    frequencies, size = np.array([255, 7], np.uint8), 100 * CHUNK
    stream = np.frombuffer(oracle(np.array([1, 0, 1, 1, 0], np.uint8), frequencies), np.uint8)
    if damaged:
        with pytest.raises(ValueError, match=f"does not end after {size} codes"):
            entropy.decode(frequencies, stream ^ 1, size)
    else:
        assert np.flatnonzero(entropy.decode(frequencies, stream, size)).tolist() == [0, 2, 3]
    assert decoded == [CHUNK, CHUNK]


def test_codes_need_not_be_contiguous_or_writable():
    codes = np.repeat(gaussian(1000, 3), 2)[::2]
    codes.flags.writeable = False
    frequencies, stream = entropy.encode(codes, 256)
    for array in (frequencies, stream):
        array.flags.writeable = False
    np.testing.assert_array_equal(entropy.decode(frequencies, stream, 1000), codes)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("size", [1000, 10_000, 100_000, 1_000_000])
def test_size_is_the_entropy(size, bits):
    codes = gaussian(size, bits)
    counts = np.bincount(codes)
    frequencies, stream = round_trip(codes, counts.size)
    least = entropy.entropy(counts) * size / 8
    # 24 bits to begin with and one byte to round up; 1 % is what is asked for.
    assert least <= stream.nbytes <= 1.01 * least + 4
    predicted = entropy.coded_nbytes(counts)
    assert 0 <= predicted - frequencies.nbytes - stream.nbytes <= 0.0006 * stream.nbytes + 4


@given(st.lists(st.integers(0, 2**31), min_size=1, max_size=256))
@example([1, 182054594])
def test_predicted_size_of_huge_tensors(counts):
    counts = np.array(counts)
    predicted = entropy.coded_nbytes(counts)
    least = entropy.entropy(counts) * counts.sum() / 8
    # Rare codes of huge tensors cost the others up to 2**-24 each, once by the least frequency, 1
    # of 2**24, and once more by the room that the model keeps for every code.
    rare = 2 * counts.size * int(counts.sum()) * 1.45 / 2**24 / 8
    assert least <= predicted <= 1.001 * least + rare + 4 * counts.size + 5


@given(st.lists(st.integers(0, 2**31), min_size=1, max_size=256))
def test_frequencies_of_huge_tensors_fit(counts):
    counts = np.array(counts)
    frequencies = entropy._frequencies(counts)
    assert frequencies.dtype in entropy.LIMITS
    assert frequencies.max() <= entropy.LIMITS[frequencies.dtype]
    np.testing.assert_array_equal(frequencies > 0, counts > 0)
    entropy._check(frequencies, np.zeros(0, np.uint8), int(counts.sum()))


@pytest.mark.parametrize(("count", "dtype"), [(9, "uint8"), (10**5, "uint16"), (10**8, "uint32")])
def test_rare_codes_of_large_tensors_get_wider_frequencies(count, dtype):
    assert entropy._frequencies(np.array([count, 9 * count, 3])).dtype == dtype


def test_entropy():
    assert entropy.entropy(np.array([0, 7, 0])) == 0
    assert entropy.entropy(np.zeros(3, int)) == 0
    assert entropy.entropy(np.full(256, 5)) == 8
    p = np.array([0.7, 0.2, 0.1])
    np.testing.assert_allclose(entropy.entropy(np.array([7, 0, 2, 1])), -(p * np.log2(p)).sum())


@given(coded().filter(lambda case: np.unique(case[0]).size > 1), st.data())
@settings(max_examples=150)
def test_a_damaged_stream_is_an_error_or_other_codes(case, data):
    codes, levels = case
    frequencies, stream = entropy.encode(codes, levels)
    bad = stream.copy()
    at = data.draw(st.integers(0, max(stream.size - 1, 0)))
    kind = data.draw(st.sampled_from(["flip", "cut", "append"]))
    if kind == "append" or not stream.size:
        bad = np.append(stream, np.uint8(data.draw(st.integers(0, 255))))
    elif kind == "cut":
        bad = stream[:at]
    else:
        bad[at] ^= data.draw(st.integers(1, 255))
    try:
        again = entropy.decode(frequencies, bad, codes.size)
    except ValueError:
        return
    assert again.shape == codes.shape
    assert (again != codes).any()


@given(coded(), st.data())
@settings(max_examples=150)
def test_damaged_frequencies_or_sizes_do_not_hang(case, data):
    codes, levels = case
    frequencies, stream = entropy.encode(codes, levels)
    at = data.draw(st.integers(0, levels - 1))
    frequencies[at] = data.draw(st.integers(0, 255))
    size = data.draw(st.just(codes.size) | st.integers(-1, 10**6))
    try:
        again = entropy.decode(frequencies, stream, size)
    except ValueError:
        return
    assert again.shape == (size,)


def test_a_stream_cut_in_the_middle_is_an_error():
    codes = gaussian(100_000, 3)
    frequencies, stream = entropy.encode(codes, 256)
    with pytest.raises(ValueError, match="does not end after 100000 codes"):
        entropy.decode(frequencies, np.append(stream, np.uint8(1)), codes.size)
    with pytest.raises(ValueError, match="does not end after 90000 codes"):
        entropy.decode(frequencies, stream, 90_000)


FREQUENCIES, STREAM = entropy.encode(np.array([0, 1, 2, 1], np.uint8), 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((FREQUENCIES, STREAM, 5), "do not fit 5 codes"),
        ((FREQUENCIES, STREAM, 3), "do not fit 3 codes"),
        ((FREQUENCIES, STREAM, -1), "do not fit -1 codes"),
        ((FREQUENCIES.astype(np.float32), STREAM, 4), "have to be"),
        ((FREQUENCIES.astype(np.int64), STREAM, 4), "have to be"),
        ((FREQUENCIES[None], STREAM, 4), "have to be"),
        ((FREQUENCIES[:0], STREAM, 4), "have to be"),
        ((np.ones(257, np.uint8), STREAM, 257), "have to be"),
        ((FREQUENCIES, STREAM.astype(np.uint32), 4), "have to be"),
        ((FREQUENCIES, STREAM[None], 4), "have to be"),
        ((np.array([2**25, 1], np.uint32), STREAM, 2**26), "largest 33554432"),
        ((FREQUENCIES, np.append(STREAM, np.uint8(0)), 4), "zero byte"),
        ((np.array([0, 4], np.uint8), STREAM, 4), "fewer than two"),
        ((np.zeros(3, np.uint8), STREAM, 0), "fewer than two"),
    ],
    ids=str,
)
def test_what_does_not_belong_together_is_an_error(arguments, message):
    with pytest.raises(ValueError, match=message):
        entropy.decode(*arguments)


@pytest.mark.parametrize(
    ("codes", "levels", "message"),
    [
        (np.zeros(3, np.int32), 4, "flat uint8"),
        (np.zeros((3, 1), np.uint8), 4, "flat uint8"),
        (np.zeros(3, np.uint8), 0, "1 to 256"),
        (np.zeros(3, np.uint8), 257, "1 to 256"),
        (np.array([1, 4], np.uint8), 4, "a code is 4, and levels is 4"),
    ],
    ids=str,
)
def test_codes_that_cannot_be_coded(codes, levels, message):
    with pytest.raises(InputError, match=message):
        entropy.encode(codes, levels)


def test_the_library_is_asked_for_by_name(monkeypatch):
    monkeypatch.setitem(sys.modules, "constriction", None)
    with pytest.raises(MissingDependencyError, match=r"corrq_jax\[files\]"):
        entropy.encode(np.array([0, 1], np.uint8), 2)
    assert entropy.coded_nbytes(np.array([1, 1])) > 2
