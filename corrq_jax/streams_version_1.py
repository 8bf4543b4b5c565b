"""The entropy-coded streams of files of version 1, to be read still.

They are arrays of two kinds: ``frequencies`` says how often each code occurs, and ``stream`` are
the 32-bit words of a coder with one state (docs/format.md). One code after another in Python, about
a microsecond each: such a file is best loaded and saved again once.
"""

import bisect
from collections.abc import Iterator
from itertools import accumulate

import numpy as np

LIMITS = {np.dtype(np.uint8): 2**8 - 1, np.dtype(np.uint16): 2**16 - 1, np.dtype(np.uint32): 2**24}
"""Dtypes of frequencies, and the largest frequency."""

_PRECISION = 24


def decode_pieces(
    frequencies: np.ndarray, stream: np.ndarray, size: int, piece: int
) -> Iterator[np.ndarray]:
    """Codes of a stream, some at a time.

    Args:
        frequencies: of the codes, of a dtype in `LIMITS`.
        stream: uint8[any].
        size: how many codes there are.
        piece: how many codes at a time.

    Raises:
        ValueError: the arguments do not belong together.

    >>> stream = np.array([7, 171, 42, 34], np.uint8)
    >>> list(decode_pieces(np.array([1, 4, 0, 1], np.uint8), stream, 6, 4))
    [array([1, 1, 0, 1], dtype=uint8), array([3, 1], dtype=uint8)]
    """
    _check(frequencies, stream, size)
    sizes = (min(piece, size - start) for start in range(0, size, piece))
    used = np.flatnonzero(frequencies)
    if used.size < 2:
        if stream.size:
            raise ValueError("a stream of codes is there although fewer than two codes occur")
        yield from (np.full(n, used.sum(), np.uint8) for n in sizes)
        return
    words = np.frombuffer(stream.tobytes() + bytes(-stream.size % 4), "<u4").tolist()
    counts = frequencies.tolist()
    scale = (2**_PRECISION - len(counts)) / sum(counts)
    starts = [int(n * scale) + i for i, n in enumerate(accumulate(counts[:-1], initial=0))]
    widths = [b - a for a, b in zip(starts, [*starts[1:], 2**_PRECISION], strict=True)]
    state = 0
    for n in sizes:
        codes = np.zeros(n, np.uint8)
        for i in range(n):
            while state < 2**32 and words:
                state = state << 32 | words.pop()
            if state < widths[0] and not words:
                break  # from here on it stays: codes 0 at the end take nothing
            place = state % 2**_PRECISION
            code = bisect.bisect_right(starts, place) - 1
            codes[i] = code
            state = (state >> _PRECISION) * widths[code] + place - starts[code]
        yield codes
    if state or words:
        raise ValueError(f"the stream of codes does not end after {size} codes")


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
