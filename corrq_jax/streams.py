"""A tensor's codes as the entropy-coded stream of a file, and back.

What is coded are the codes as they are, or along the trellis of `corrq_jax.core.ungerboeck` their
symbols.
"""

import dataclasses
import weakref
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from corrq_jax import entropy, streams_version_1
from corrq_jax.codings import along_trellis
from corrq_jax.core import ungerboeck
from corrq_jax.tensor import QuantizedTensor, packed_from

_streams: weakref.WeakKeyDictionary[QuantizedTensor, Any]
_streams = weakref.WeakKeyDictionary()  # coding takes time, and a report, a plan and a file want it


def keep_stream(tensor: QuantizedTensor, stream: Any) -> None:
    """Let a file of a tensor have this stream, which is that of its codes."""
    _streams[tensor] = stream


def stream_of(tensor: QuantizedTensor) -> Any:
    """The stream of one tensor, no stack."""
    if tensor not in _streams:
        _streams[tensor] = entropy.encode_pieces(symbols_in_pieces(tensor))
    return _streams[tensor]


def symbols_in_pieces(tensor: QuantizedTensor) -> Sequence[np.ndarray]:
    """What is entropy-coded of one tensor, in pieces that are made when asked for.

    Codes along the trellis of long histories, which has no symbols, are never entropy-coded: they
    are given as they are.
    """
    pieces = tensor.unpacked_pieces()
    if tensor.spread != 1:
        return pieces
    return _Symbols(pieces, int(tensor.levels.shape[-1]))


def symbols_of_levels(levels: int, coding: str) -> int:
    """How many symbols there are of so many levels."""
    return levels // 2 if along_trellis(coding) else levels


def packed_codes(
    stream: np.ndarray,
    size: int,
    bits: int,
    levels: int,
    coding: str,
    frequencies: np.ndarray | None = None,
) -> np.ndarray:
    """uint8[ceil(size * bits / 8)]: the codes of a stream, packed.

    Args:
        stream: as `stream_of` makes it, or that of a file of version 1.
        size: how many weights there are.
        bits: bits of a packed code.
        levels: how many levels there are; a multiple of 4 along a trellis.
        coding: "entropy" or "entropy-trellis".
        frequencies: of the symbols, in a file of version 1.

    Raises:
        ValueError: the arguments do not belong together, or the stream is damaged.
    """
    count = symbols_of_levels(levels, coding)
    if frequencies is None:
        pieces = _below(count, entropy.decode_pieces(stream, size))
    elif frequencies.shape != (count,):
        raise ValueError(f"{count} codes, and frequencies {frequencies.shape}")
    else:
        pieces = streams_version_1.decode_pieces(frequencies, stream, size, entropy.PIECE)
    if along_trellis(coding):
        pieces = (ungerboeck.codes_of_symbols(piece, levels) for piece in pieces)
    return packed_from(pieces, entropy.PIECE, size, bits)


def _below(count: int, pieces: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    for piece in pieces:
        if (largest := int(piece.max())) >= count:
            raise ValueError(f"the stream has a code {largest}, and there are {count} codes")
        yield piece


@dataclasses.dataclass(frozen=True, eq=False)
class _Symbols(Sequence[np.ndarray]):
    """The symbols of pieces of codes, each of which begins with a segment."""

    pieces: Sequence[np.ndarray]
    levels: int

    def __len__(self) -> int:
        return len(self.pieces)

    def __getitem__(self, index: Any) -> Any:
        return ungerboeck.symbols_of_codes(self.pieces[index], self.levels)
