"""Entropy-coded streams of files of version 1, which are read still."""

import numpy as np
import pytest
import spec_reader
from hypothesis import given, settings
from hypothesis import strategies as st

from corrq_jax import streams_version_1
from corrq_jax.streams_version_1 import LIMITS


def decode(frequencies, stream, size, piece=1 << 18):
    pieces = list(streams_version_1.decode_pieces(frequencies, stream, size, piece))
    return np.concatenate([np.empty(0, np.uint8), *pieces])


def frequencies_of(codes, levels, dtype="uint8"):
    """As version 1 made them: counts, or what is left of them where they exceed the limit."""
    counts, limit = np.bincount(codes, minlength=levels), LIMITS[np.dtype(dtype)]
    if counts.max() > limit:
        counts = np.maximum((counts * limit + counts.max() // 2) // counts.max(), counts > 0)
    return counts.astype(dtype)


def encode(codes, frequencies):
    """The coder of version 1, after Duda et al. (2015), in Python's integers and floats."""
    f = [int(n) for n in frequencies]
    if sum(n > 0 for n in f) < 2:
        return np.zeros(0, np.uint8)
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
    return np.frombuffer(data.rstrip(b"\0"), np.uint8)


@st.composite
def coded(draw, most=300):
    """(codes, frequencies, stream) of all kinds of distributions, down to none."""
    levels = draw(st.integers(1, 256))
    size = draw(st.integers(0, most))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    weights = rng.gamma(draw(st.sampled_from([0.01, 0.1, 1.0, 100.0])), size=levels) + 1e-300
    codes = rng.choice(levels, size, p=weights / weights.sum()).astype(np.uint8)
    frequencies = frequencies_of(codes, levels, draw(st.sampled_from(["u1", "u2", "u4"])))
    return codes, frequencies, encode(codes, frequencies)


@given(coded(most=3000), st.integers(1, 400))
@settings(max_examples=100)
def test_codes_come_back_in_pieces(case, piece):
    codes, frequencies, stream = case
    np.testing.assert_array_equal(decode(frequencies, stream, codes.size, piece), codes)


def test_literal_bytes():
    """What the coder of version 1 made of these."""
    codes = [3, 1, 1, 0, 2, 1, 2, 1, 1, 2, 2, 0, 1, 1, 2, 1, 3, 1, 1, 2]
    stream = np.frombuffer(bytes.fromhex("5edae748a1ae90"), np.uint8)
    assert decode(np.array([2, 10, 6, 2, 0], np.uint8), stream, 20).tolist() == codes


@pytest.mark.parametrize("damaged", [False, True])
def test_a_size_far_too_large_takes_no_time(damaged):
    """Codes 0 at the end take nothing, so that one that ends otherwise could go on for hours."""
    frequencies, size = np.array([255, 7], np.uint8), 1 << 27
    stream = encode(np.array([1, 0, 1, 1, 0], np.uint8), frequencies) ^ np.uint8(damaged)
    pieces = streams_version_1.decode_pieces(frequencies, stream, size, 1 << 26)
    if damaged:
        with pytest.raises(ValueError, match="does not end after"):
            list(pieces)
    else:
        assert [np.flatnonzero(piece).tolist() for piece in pieces] == [[0, 2, 3], []]


@given(coded(), st.data())
@settings(max_examples=150)
def test_damage_is_an_error_or_other_codes(case, data):
    """And what is not an error reads as the page on the format says."""
    codes, frequencies, stream = case
    size = data.draw(st.just(codes.size) | st.integers(-1, 3000))
    if data.draw(st.booleans()):
        at = data.draw(st.integers(0, frequencies.size - 1))
        frequencies = frequencies.copy()
        frequencies[at] = data.draw(st.integers(0, 255))
    bad = stream.copy()
    at = data.draw(st.integers(0, max(stream.size - 1, 0)))
    match data.draw(st.sampled_from(["none", "flip", "cut", "append"])):
        case "flip" if bad.size:
            bad[at] ^= data.draw(st.integers(1, 255))
        case "cut":
            bad = stream[:at]
        case "append":
            bad = np.append(stream, np.uint8(data.draw(st.integers(0, 255))))
    try:
        again = decode(frequencies, bad, size)
    except ValueError:
        return
    np.testing.assert_array_equal(again, spec_reader.decode_version_1(frequencies, bad, size))


FREQUENCIES = np.array([1, 2, 1], np.uint8)
STREAM = encode(np.array([0, 1, 2, 1], np.uint8), FREQUENCIES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((FREQUENCIES, STREAM, 5), "do not fit 5 codes"),
        ((FREQUENCIES, STREAM, 3), "do not fit 3 codes"),
        ((FREQUENCIES, STREAM, -1), "do not fit -1 codes"),
        ((FREQUENCIES, np.append(STREAM, np.uint8(1)), 4), "does not end after 4 codes"),
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
        decode(*arguments)
