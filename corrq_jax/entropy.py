"""Entropy coding of codes, for files: each code takes about as many bits as the entropy says.

A coded tensor is two arrays. ``frequencies`` says how often each code occurs, and is the model of
the coder; ``stream`` holds the codes. The coder is one of asymmetric numeral systems (Duda et al.,
2015, https://doi.org/10.1109/PCS.2015.7170048), that of the library constriction, an optional
dependency; `tests/test_entropy.py` has it in a screen of plain Python, equal byte by byte.

``frequencies`` are unsigned integers of one of the dtypes in `LIMITS`: the counts themselves if
the largest is within the limit, else the counts scaled so that the largest is the limit, rounded
half up, and at least 1 for a code that occurs. Of the dtypes the one is taken that makes table and
stream shortest together: small tensors get exact counts of a byte each. ``stream`` are the words of
the coder, 32 bits each, as little-endian bytes without the zero bytes at the end. It is empty if
fewer than two codes occur.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from corrq_jax.errors import InputError, require

LIMITS = {np.dtype(np.uint8): 2**8 - 1, np.dtype(np.uint16): 2**16 - 1, np.dtype(np.uint32): 2**24}
"""Dtypes of a table of frequencies, and the largest frequency: the model has 24 bits anyway."""

_PRECISION = 24
PIECE = 1 << 18
"""Codes at a time: constriction takes and gives int32."""
HELD = 32
"""Pieces that are held while they are coded."""


def encode(codes: np.ndarray, levels: int) -> tuple[np.ndarray, np.ndarray]:
    """Code a tensor's codes.

    Args:
        codes: uint8[n], each below ``levels``.
        levels: how many codes there are, 1 to 256.

    Returns:
        frequencies: uint8[levels], uint16[levels] or uint32[levels].
        stream: uint8[m]. Both are what `decode` needs, with n.

    Raises:
        InputError: a code is not below ``levels``, or an argument is of another kind.
        MissingDependencyError: constriction is not installed.

    >>> frequencies, stream = encode(np.array([1, 1, 0, 1, 3, 1], np.uint8), 4)
    >>> frequencies, stream.dtype, stream.size
    (array([1, 4, 0, 1], dtype=uint8), dtype('uint8'), 4)
    >>> decode(frequencies, stream, 6)
    array([1, 1, 0, 1, 3, 1], dtype=uint8)
    """
    codes = np.asarray(codes)
    if codes.dtype != np.uint8 or codes.ndim != 1:
        raise InputError(f"codes are {codes.dtype}{codes.shape}; they have to be flat uint8")
    return encode_pieces([codes[s : s + PIECE] for s in range(0, codes.size, PIECE)], levels)


def encode_pieces(pieces: Sequence[np.ndarray], levels: int) -> tuple[np.ndarray, np.ndarray]:
    """As `encode`, of codes that are cut into pieces; where does not matter.

    They may be made when asked for: `HELD` are held at most, and those of more are asked for twice.

    >>> codes = np.array([1, 1, 0, 1, 3, 1], np.uint8)
    >>> encode_pieces([codes[:4], codes[4:]], 4)[1].tolist() == encode(codes, 4)[1].tolist()
    True
    """
    if not 1 <= levels <= 256:
        raise InputError(f"levels is {levels}; it has to be 1 to 256")
    if len(pieces) <= HELD:
        pieces = list(pieces)
    counts = np.zeros(256, np.int64)
    for piece in pieces:
        counts += np.bincount(piece, minlength=256)
    if counts[levels:].any():
        most = np.flatnonzero(counts).max()
        raise InputError(f"a code is {most}, and levels is {levels}; it has to be below")
    frequencies = _frequencies(counts[:levels])
    if np.count_nonzero(frequencies) < 2:
        return frequencies, np.zeros(0, np.uint8)
    coder, model = _coder(), _model(frequencies)
    words = np.empty(_nbytes(counts[:levels], frequencies) // 4 + 2, "<u4")
    end = 0
    # The coder is a stack: what goes in last comes out first. Its words are taken out after each
    # piece, but for the two of its state, on which it goes on.
    for piece in reversed(pieces):
        coder.encode_reverse(piece.astype(np.int32), model)
        done = coder.get_compressed()
        words[end : end + done.size] = done
        end += max(done.size - 2, 0)
        coder = _coder(done[-2:])
    end += coder.num_words()
    zeros = (4 - (int(words[end - 1]).bit_length() + 7) // 8) if end else 0
    return frequencies, words.view(np.uint8)[: 4 * end - zeros]


def decode(frequencies: np.ndarray, stream: np.ndarray, size: int) -> np.ndarray:
    """Codes that `encode` coded.

    Args:
        frequencies: as `encode` made them.
        stream: as `encode` made it.
        size: how many codes there are.

    Returns:
        uint8[size].

    Raises:
        ValueError: the arguments do not belong together. Most damage is found, since the coder has
            to end as it began, but not all: a checksum is needed beside it.
        MissingDependencyError: constriction is not installed.

    >>> decode(np.array([0, 3], np.uint8), np.zeros(0, np.uint8), 3)
    array([1, 1, 1], dtype=uint8)
    """
    return np.concatenate([np.empty(0, np.uint8), *decode_pieces(frequencies, stream, size)])


def decode_pieces(frequencies: np.ndarray, stream: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """As `decode`, `PIECE` codes at a time: a few bytes can stand for any number of codes.

    >>> [len(codes) for codes in decode_pieces(np.array([0, 255], np.uint8), np.zeros(0, np.uint8),
    ...                                        PIECE + 1)]
    [262144, 1]
    """
    _check(frequencies, stream, size)
    sizes = (min(PIECE, size - start) for start in range(0, size, PIECE))
    used = np.flatnonzero(frequencies)
    if used.size < 2:
        if stream.size:
            raise ValueError("a stream of codes is there although fewer than two codes occur")
        yield from (np.full(n, used.sum(), np.uint8) for n in sizes)
        return
    words = np.zeros(-(-stream.size // 4) * 4, np.uint8)
    words[: stream.size] = stream
    coder, model = _coder(words.view("<u4").astype(np.uint32, copy=False)), _model(frequencies)
    before = None
    for n in sizes:
        # Without words left the state falls until it gives code 0 for ever. Codes 0 at the end are
        # coded so, by nothing; with a wrong size it could go on for hours.
        if coder.pos() == before:
            yield np.zeros(n, np.uint8)
            continue
        before = coder.pos()
        yield coder.decode(model, n).astype(np.uint8)
    if not coder.is_empty():
        raise ValueError(f"the stream of codes does not end after {size} codes")


def entropy(counts: np.ndarray) -> float:
    """Entropy in bits a code: what no code of single symbols can do better than.

    Args:
        counts: how often each code occurs.

    >>> entropy(np.array([2, 1, 1]))
    1.5
    """
    counts = np.asarray(counts, np.int64)
    used = counts[counts > 0]
    return float(used @ np.log2(used.sum() / used) / used.sum()) if used.size else 0.0


def coded_nbytes(counts: np.ndarray) -> int:
    """Bytes that `encode` makes at most of codes that occur so often, without coding them.

    Too many by a few bytes and 0.05 %, and by up to a bit for each occurrence of a code that is one
    in millions.

    Args:
        counts: how often each of the levels' codes occurs, each below 2**39.

    >>> coded_nbytes(np.array([1, 4, 0, 1])), coded_nbytes(np.array([8, 0]))
    (9, 2)
    """
    counts = np.asarray(counts, np.int64)
    return _nbytes(counts, _frequencies(counts))


def _frequencies(counts: np.ndarray) -> np.ndarray:
    """The table of frequencies that makes table and stream shortest; the narrowest of equals."""
    tables = [_scaled(counts, limit).astype(dtype) for dtype, limit in LIMITS.items()]
    return min(tables, key=lambda table: _nbytes(counts, table))


def _scaled(counts: np.ndarray, limit: int) -> np.ndarray:
    largest = int(counts.max())
    if largest <= limit:
        return counts
    return np.maximum((counts * limit + largest // 2) // largest, counts > 0)


def _nbytes(counts: np.ndarray, frequencies: np.ndarray) -> int:
    """Upper bound of the bytes of a table and its stream.

    The model gives code i a probability p_i of more than ``f_i / sum(f) * (1 - levels / 2**24)``
    (see `_model`), which bounds the cross entropy. What the coder adds to it is bounded too.
    Coding takes a state s to ``s' = (s // w) * 2**24 + s % w + l`` with ``w = p 2**24``, l the sum
    of w of the codes before, so ``s' + 2**24 <= (s + 2**24) / p``, as ``(1 - p)**2 >= 0``: from
    s = 0 on, ``log2(s + 2**24)`` grows from 24 by no more than the code's bits. Only when a word
    of 32 bits leaves the state may it grow by more: then ``s >= w 2**8`` before and
    ``s' >= 2**32`` after, so l and 2**24 add ``2 log2(1 + 2**-8)`` bits, 0.035 % of the word.
    """
    used = frequencies > 0
    if np.count_nonzero(used) < 2:
        return frequencies.nbytes
    f = frequencies[used]
    bits = float(counts[used] @ np.log2(f.sum(dtype=np.int64) / f))
    bits -= float(counts.sum()) * np.log1p(-frequencies.size / 2**_PRECISION) / np.log(2)
    # Of the 25 bits, 24 are the beginning's; one is for rounding, here and in the model.
    return frequencies.nbytes + int((bits * (1 + 2**-11) + 25) // 8) + 1


def _coder(words: np.ndarray | None = None):
    return require("constriction", "files").stream.stack.AnsCoder(words)


def _model(frequencies: np.ndarray):
    """The coder's model of the frequencies, the same on every machine.

    With ``perfect=False`` code i begins at ``trunc(F_i * scale) + i`` of 2**24, F_i being the
    sum of the frequencies before it and ``scale = (2**24 - levels) / sum(f)``. Sums of integers are
    exact in float64, and division, multiplication and truncation are correctly rounded by IEEE 754,
    so there is nothing that a machine could do otherwise. (``perfect=True`` uses logarithms.)
    """
    model = require("constriction", "files").stream.model
    return model.Categorical(frequencies.astype(np.float64), perfect=False)


def _check(frequencies: np.ndarray, stream: np.ndarray, size: int) -> None:
    if (
        frequencies.dtype not in LIMITS
        or frequencies.ndim != 1
        or not 1 <= frequencies.size <= 256
        or stream.dtype != np.uint8
        or stream.ndim != 1
    ):
        raise ValueError(
            f"frequencies {frequencies.dtype}{frequencies.shape} and stream "
            f"{stream.dtype}{stream.shape} of codes; they have to be 1 to 256 of "
            f"{', '.join(map(str, LIMITS))}, and flat uint8"
        )
    largest, limit = int(frequencies.max()), LIMITS[frequencies.dtype]
    total = int(frequencies.sum(dtype=np.int64))
    # Below the limit the frequencies are counts; at the limit the counts may be larger.
    if largest > limit or size < total or (size > total and largest < limit):
        raise ValueError(
            f"the frequencies of codes (sum {total}, largest {largest}) do not fit {size} codes"
        )
    if stream.size and stream[-1] == 0:
        raise ValueError("the stream of codes ends in a zero byte")
