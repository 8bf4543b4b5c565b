"""Rounding to integers, symmetric and affine, with the conventions of qwix 0.1 (Google, JAX).

Both use all 2**bits codes. A scale is a float32; where it would be below the square root of the
smallest normal float32 it is 1, and the weights become zero.

Quotients are products with a rounded reciprocal, since XLA compiles qwix's divisions so. It matters
for the weights of largest magnitude, which lie halfway between two codes: rounding errors decide.
"""

import numpy as np

from corrq_jax.peers.base import Groups

_SMALLEST_SCALE = np.sqrt(np.finfo(np.float32).tiny)


def absmax(groups: Groups, bits: int) -> tuple[np.ndarray, int]:
    """Symmetric integers without a zero point: qwix's ``absmax`` for int2 to int8.

    The largest magnitude lies half a step beyond the largest code, ``scale = absmax / (2**(bits -
    1) - 0.5)``: each weight is within half a step of its level. The codes are rounded half to even
    and clipped to ``[-2**(bits - 1), 2**(bits - 1) - 1]``. (With one bit every weight would be
    rounded to zero, so that is not offered.)

    Args:
        groups: the weights.
        bits: 2 to 8.

    Returns:
        Decoded weights, and the bytes of the scales.

    >>> w = np.float32([[-1.5, 0.4, 0.6, 1.5]])
    >>> decoded, nbytes = absmax(Groups(w, np.array([4])), bits=2)
    >>> decoded.tolist(), nbytes
    ([[-2.0, 0.0, 1.0, 1.0]], 4)
    """
    half = 2 ** (bits - 1)
    scale = _usable(_largest_magnitude(groups.weights) * _reciprocal(half - 0.5))
    codes = np.rint(groups.weights * (1 / scale))
    np.clip(codes, -half, half - 1, out=codes)
    return codes * scale, scale.nbytes


def min_max(groups: Groups, bits: int) -> tuple[np.ndarray, int]:
    """Affine integers between the smallest and the largest weight: qwix's ``minmax``.

    The range is widened to contain zero, which the rounded zero point makes a level. qwix has this
    for 4 and 8 bits; other widths are the same formulas. Its zero points have the type of the
    codes, and are counted with as many bits.

    Args:
        groups: the weights.
        bits: 2 to 8.

    Returns:
        Decoded weights, and the bytes of the scales and zero points.

    >>> w = np.float32([[-1.0, 0.1, 0.6, 2.0]])
    >>> decoded, nbytes = min_max(Groups(w, np.array([4])), bits=2)
    >>> decoded.tolist(), nbytes
    ([[-1.0, 0.0, 1.0, 2.0]], 5)
    """
    lowest, highest = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    # Zeros that fill a ragged group up change neither end, as the range contains zero anyway.
    low = np.minimum(groups.weights.min(axis=1, keepdims=True), 0)
    high = np.maximum(groups.weights.max(axis=1, keepdims=True), 0)
    scale = _usable((high - low) * _reciprocal(highest - lowest))
    zero = np.clip(np.rint(np.float32(lowest) - low / scale), lowest, highest)
    codes = np.rint(groups.weights * (1 / scale) + zero)
    np.clip(codes, lowest, highest, out=codes)
    return (codes - zero) * scale, scale.nbytes + -(-zero.size * bits // 8)


def _largest_magnitude(w: np.ndarray) -> np.ndarray:
    return np.maximum(w.max(axis=1, keepdims=True), -w.min(axis=1, keepdims=True))


def _reciprocal(steps: float) -> np.float32:
    return np.float32(1) / np.float32(steps)


def _usable(scale: np.ndarray) -> np.ndarray:
    return np.where(scale < _SMALLEST_SCALE, np.float32(1), scale)
