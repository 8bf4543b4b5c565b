"""How a tensor's weights are spread, and the cells that a quantizer cuts them into."""

import math
from typing import Any

import numpy as np

from corrq_jax.details import Histogram, LevelTable
from corrq_jax.streams import symbols_in_pieces
from corrq_jax.tensor import QuantizedTensor

BINS = 96
MOST_LEVELS = 64  # of a table that is recorded; more are closer together than a figure's lines
_TAIL = 5e-4  # The share of weights at either end that may be outliers.
_SAMPLE = 1 << 18  # weights that tell where the tails begin
_PIECE = 1 << 20  # weights that are worked on at a time


def histogram(weights: np.ndarray) -> Histogram:
    """The histogram of finite weights of any shape, at least one.

    The bins span all but about a thousandth of the weights, and all of them where that is less than
    one and a half times as wide.
    """
    flat = np.asarray(weights).reshape(-1)
    least, most = float(flat.min()), float(flat.max())
    sample = np.sort(flat[:: -(-flat.size // _SAMPLE)].astype(np.float64))
    skip = int(_TAIL * sample.size)
    low, high = float(sample[skip]), float(sample[sample.size - 1 - skip])
    if most - least <= 1.5 * (high - low) or low == high:
        low, high = least, most
    if low == high:
        margin = abs(low) / 2 or 1.0
        low, high = low - margin, high + margin
    counts = np.zeros(BINS, np.int64)
    for start in range(0, flat.size, _PIECE):
        piece = flat[start : start + _PIECE].astype(np.float64)
        counts += np.histogram(piece, BINS, (low, high))[0]
    return Histogram(low, high, tuple(counts.tolist()), least, most, flat.size)


def level_table(weights: np.ndarray, tensor: QuantizedTensor) -> LevelTable | None:
    """The cells of a quantized tensor as its weights show them; None if there are too many.

    Args:
        weights: the float tensor, in its shape.
        tensor: its quantized form, no stack.
    """
    levels = np.asarray(tensor.levels, np.float64)
    if tensor.codes.ndim > 1 or levels.size > MOST_LEVELS or not tensor.size:
        return None
    flat, of = _in_units_of_scales(weights, tensor)
    codes = tensor.level_indices()[of]
    first, last = np.full(levels.size, np.inf), np.full(levels.size, -np.inf)
    for start in range(0, flat.size, _PIECE):
        piece, code = flat[start : start + _PIECE].astype(np.float64), codes[start : start + _PIECE]
        np.minimum.at(first, code, piece)
        np.maximum.at(last, code, piece)
    used = np.flatnonzero(first <= last)
    boundaries = (last[used[:-1]] + first[used[1:]]) / 2
    if tensor.is_along_trellis:  # where neighbouring levels share weights
        boundaries = (levels[used[:-1]] + levels[used[1:]]) / 2
    own = None if tensor.scales is None else histogram(flat)
    return LevelTable(_rounded(levels[used]), _rounded(boundaries), own)


def entropy_of_codes(tensor: QuantizedTensor) -> float:
    """The entropy in bits of what an entropy coder would code of a tensor: codes, or symbols."""
    if not tensor.size:
        return 0.0
    counts = np.zeros(256, np.int64)
    for piece in symbols_in_pieces(tensor):
        counts += np.bincount(piece, minlength=256)
    shares = counts[counts > 0] / max(tensor.size, 1)
    return float(-(shares * np.log2(shares)).sum()) + 0.0  # no minus zero


def _in_units_of_scales(weights: np.ndarray, tensor: QuantizedTensor) -> tuple[np.ndarray, Any]:
    """Flat weights, each divided by its scale, and which of all they are: those with a scale."""
    if tensor.rows is None or tensor.scales is None:
        return np.asarray(weights).reshape(-1), slice(None)
    view = tensor.rows.view(np.asarray(weights, np.float64))
    scales = tensor.rows.expand(np.asarray(tensor.scales, np.float64))
    scales = np.broadcast_to(scales, view.shape).reshape(-1)
    alive = scales > 0
    return view.reshape(-1)[alive] / scales[alive], alive


def _rounded(values: np.ndarray) -> Any:
    """Six digits, as a list."""
    return [float(f"{value:.6g}") for value in values if math.isfinite(value)]
