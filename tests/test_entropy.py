"""Entropy coding: codes come back, take what the entropy says, and damage is an error."""

import sys

import numpy as np
import pytest
import spec_reader
from hypothesis import given, settings
from hypothesis import strategies as st

from corrq_jax import entropy
from corrq_jax.errors import InputError, MissingDependencyError

pytest.importorskip("pcodec")
PIECE, CHUNK = entropy.PIECE, entropy.CHUNK


def samples(size, bits, seed=0, kind="normal"):
    """Codes whose entropy is about so many bits: rounded samples."""
    x = getattr(np.random.default_rng(seed), kind)(size=size) * 2**bits / np.sqrt(2 * np.pi * np.e)
    x = np.clip(np.round(x) + 128, 0, 255).astype(np.uint8)
    return x - x.min()


def round_trip(codes):
    stream = entropy.encode(codes)
    again = entropy.decode(stream, codes.size)
    assert again.dtype == stream.dtype == np.uint8
    np.testing.assert_array_equal(again, codes)
    return stream


@st.composite
def coded(draw, most=300):
    """Codes of all kinds of distributions, down to single codes and none."""
    levels = draw(st.integers(1, 256))
    size = draw(st.integers(0, most))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    concentration = draw(st.sampled_from([0.01, 0.1, 1.0, 100.0]))
    weights = rng.gamma(concentration, size=levels) + 1e-300
    return rng.choice(levels, size, p=weights / weights.sum()).astype(np.uint8)


@given(coded(most=20_000))
@settings(max_examples=100)
def test_codes_come_back_from_an_independent_decoder_too(codes):
    stream = round_trip(codes)
    np.testing.assert_array_equal(spec_reader.decode(stream, codes.size), codes)


@given(coded(), st.lists(st.integers(0, 300), max_size=5))
@settings(max_examples=100)
def test_where_codes_are_cut_does_not_matter(codes, cuts):
    pieces = np.split(codes, sorted(cuts))
    np.testing.assert_array_equal(entropy.encode_pieces(pieces), entropy.encode(codes))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(entropy, "CHUNK", 64)
        chunks = list(entropy._chunks(pieces))
    assert [len(c) for c in chunks] == [min(64, len(codes) - s) for s in range(0, len(codes), 64)]
    np.testing.assert_array_equal(np.concatenate([*chunks, codes[:0]]), codes)


def test_the_stream_is_of_the_version_that_the_page_on_the_format_has():
    """A library that wrote a later one would make files that older installations cannot read."""
    assert round_trip(np.array([3, 1, 1], np.uint8))[:2].tolist() == [4, 1]


@pytest.mark.parametrize(
    "codes",
    [
        [],
        [0],
        [255],
        [7] * 1000,
        [0] * 999 + [1],
        [1] + [0] * 999,
        [1] * 999 + [0],
        range(256),
        [0, 255] * 5000,
    ],
    ids=str,
)
def test_edge_cases_come_back(codes):
    codes = np.array(codes, np.uint8)
    stream = round_trip(codes)
    np.testing.assert_array_equal(spec_reader.decode(stream, codes.size), codes)
    if len(set(codes.tolist())) < 2:
        assert stream.size <= 7


@pytest.mark.parametrize(
    "size", [PIECE - 1, PIECE, PIECE + 1, 2 * PIECE, CHUNK, CHUNK + 1, CHUNK + PIECE + 1]
)
def test_pages_and_chunks_come_back(size):
    codes = samples(size, 4)
    stream = round_trip(codes)
    pieces = [len(piece) for piece in entropy.decode_pieces(stream, size)]
    assert pieces == [min(PIECE, size - start) for start in range(0, size, PIECE)]


def test_a_chunk_has_a_table_of_its_own():
    codes = np.r_[np.full(CHUNK, 3, np.uint8), samples(1000, 3)]
    assert round_trip(codes).size < entropy.encode(codes[CHUNK:]).size + 20


def test_codes_need_not_be_contiguous_or_writable():
    codes = np.repeat(samples(1000, 3), 2)[::2]
    codes.flags.writeable = False
    stream = entropy.encode(codes)
    stream.flags.writeable = False
    np.testing.assert_array_equal(entropy.decode(stream, 1000), codes)
    twice = np.repeat(stream, 2)[::2]
    np.testing.assert_array_equal(entropy.decode(twice, 1000), codes)


@pytest.mark.parametrize("kind", ["normal", "laplace"])
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("size", [1000, 20_000, 100_000, 1_000_000])
def test_size_is_the_entropy(size, bits, kind):
    codes = samples(size, bits, kind=kind)
    counts = np.bincount(codes)
    stream = round_trip(codes)
    least = entropy.entropy(counts) * size / 8
    # 1 % is what is asked for. A table has at most 26 bits for each code, which small ones feel,
    # and codes so rare that they have none of their own have their bits in the stream: it can be
    # shorter than the entropy and the table are together.
    table = min(26 / 8 * np.count_nonzero(counts), 0.05 * least)
    assert least <= stream.size <= 1.01 * least + (table if size < 20_000 else 0) + 20
    predicted = entropy.predicted_nbytes(counts)
    assert abs(predicted - stream.size) <= 0.002 * stream.size + 50


def test_predicted_size_of_huge_and_of_uniform_tensors():
    counts = np.array([1, 2**31, 2**30])
    least = entropy.entropy(counts) * counts.sum() / 8
    assert least < entropy.predicted_nbytes(counts) < 1.002 * least
    assert entropy.predicted_nbytes(np.array([0, 5000])) < 30
    assert entropy.predicted_nbytes(np.zeros(4, int)) == 20
    codes = samples(5_000_000, 2)
    stream = entropy.encode(codes)
    assert entropy.predicted_nbytes(np.bincount(codes)) == pytest.approx(stream.size, rel=0.002)


def test_entropy():
    assert entropy.entropy(np.array([0, 7, 0])) == 0
    assert entropy.entropy(np.zeros(3, int)) == 0
    assert entropy.entropy(np.full(256, 5)) == 8
    p = np.array([0.7, 0.2, 0.1])
    np.testing.assert_allclose(entropy.entropy(np.array([7, 0, 2, 1])), -(p * np.log2(p)).sum())


@given(coded(most=3000), st.data())
@settings(max_examples=200)
def test_a_damaged_stream_is_an_error_or_other_codes(codes, data):
    """And what is not an error reads as the page on the format says."""
    bad = entropy.encode(codes).copy()
    size = data.draw(st.just(codes.size) | st.integers(0, 5000))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, max(bad.size - 1, 0)))
        match data.draw(st.sampled_from(["flip", "flip", "cut", "append"])):
            case "flip" if bad.size:
                bad[at] ^= data.draw(st.integers(1, 255))
            case "cut":
                bad = bad[:at].copy()
            case _:
                bad = np.append(bad, np.uint8(data.draw(st.integers(0, 255))))
    try:
        again = entropy.decode(bad, size)
    except ValueError:
        return
    np.testing.assert_array_equal(again, spec_reader.decode(bad, size))


STREAM = entropy.encode(samples(100_000, 3))


@pytest.mark.parametrize(
    ("stream", "size", "message"),
    [
        (np.append(STREAM, np.uint8(0)), 100_000, "does not end after 100000 codes"),
        (STREAM[:-1], 100_000, "cannot be decoded"),
        (STREAM, 99_000, "cannot be decoded .* trailing"),
        (STREAM, 0, "does not end after 0 codes"),
        (STREAM, 400_000, "cannot be decoded"),
        (STREAM[:0], 100_000, "does not begin as version"),
        (np.r_[STREAM[:1], np.uint8(0), STREAM[2:]], 100_000, "does not begin as version"),
        (STREAM[:2], 100_000, "another kind"),
        (np.r_[np.uint8(99), STREAM[1:]], 100_000, "cannot be decoded .*upgrading"),
        (np.r_[STREAM[:2], np.uint8(1), STREAM[3:]], 100_000, "another kind"),
        (np.r_[STREAM[:2], np.uint8(16), STREAM[3:]], 100_000, "another kind"),
        (STREAM, -1, "stream .* of -1 codes"),
        (STREAM.astype(np.uint32), 100_000, "has to be flat uint8"),
        (STREAM[None], 100_000, "has to be flat uint8"),
    ],
    ids=str,
)
def test_what_does_not_belong_together_is_an_error(stream, size, message):
    with pytest.raises(ValueError, match=message):
        entropy.decode(stream, size)


@pytest.mark.parametrize("codes", [np.zeros(3, np.int32), np.zeros((3, 1), np.uint8)], ids=str)
def test_codes_that_cannot_be_coded(codes):
    with pytest.raises(InputError, match="flat uint8"):
        entropy.encode(codes)


def test_the_library_is_asked_for_by_name(monkeypatch):
    monkeypatch.setitem(sys.modules, "pcodec", None)
    with pytest.raises(MissingDependencyError, match=r"corrq_jax\[files\]"):
        entropy.encode(np.array([0, 1], np.uint8))
    with pytest.raises(MissingDependencyError, match=r"corrq_jax\[files\]"):
        entropy.decode(STREAM, 100_000)
    assert entropy.predicted_nbytes(np.array([1, 1])) > 2
