"""Half-quadratic quantization: affine codes whose zero points minimize a sparse error.

Badri and Shaji, Half-Quadratic Quantization of Large Machine Learning Models (2023), and its
library hqq 0.2, with the defaults that it has for linear layers on a CPU.
"""

import numpy as np

from corrq_jax.peers.base import Groups, to_float16

LP_NORM = 0.7
BETA = 10.0
ITERATIONS = 20
_NARROW = 1e-4
_LARGEST_SCALE = 2e4
_CHUNK = 1 << 10  # groups at a time: their intermediate arrays stay in cache


def half_quadratic(
    groups: Groups, bits: int, *, iterations: int = ITERATIONS
) -> tuple[np.ndarray, int]:
    """Codes ``q = round(w s + z)`` from 0 to ``2**bits - 1``, decoded as ``(q - z) / s``.

    ``s`` is from the smallest and largest weight of the group. ``z`` minimizes the sum of ``|w -
    (q - z) / s|**0.7`` by half-quadratic splitting: with the errors ``e = shrink(w - (q - z) /
    s)``, where ``shrink(x) = sign(x) max(|x| - |x|**(0.7 - 1) / beta, 0)``, the best zero point is
    the mean of ``q - (w - e) s``. Iterations end when the tensor's mean absolute error no longer
    falls; as in the library, the zero points of that last step are kept, and beta stays 10 (the
    paper lets it grow by 1.01 a step, which the library's default solver does not).

    Also as in the library: zero points start rounded with 4 bits; a group narrower than 1e-4 gets
    s = 1, and no s exceeds 20,000. So other than for all other peers the outcome depends on the
    unit of the weights. 1 / s and z are stored in float16; the decoding itself is in float32, more
    exact than the library's. Codes are counted packed, which there the 3-, 5- and 6-bit ones
    are not entirely. The library cuts blocks of 64 from the flattened (out, in) matrix, and refuses
    tensors that are no multiple of 64.

    Args:
        groups: the weights.
        bits: 1 to 8.
        iterations: the most; 0 leaves the plain min-max quantizer.

    Returns:
        Decoded weights, and the bytes of the scales and zero points.

    >>> w = np.float32([[-0.5, 0.0, 0.1, 2.5]])
    >>> decoded, nbytes = half_quadratic(Groups(w, np.array([4])), bits=2)
    >>> decoded.astype(float).round(2).tolist(), nbytes
    ([[-0.56, 0.44, 0.44, 2.44]], 4)
    """
    w, top = groups.weights, 2**bits - 1
    padding = np.nonzero(np.arange(w.shape[1]) >= groups.counts[:, None])
    if padding[0].size:
        w = w.copy()
        w[padding] = w[padding[0], 0]  # changes no minimum and no maximum
    low = w.min(axis=1, keepdims=True)
    span = w.max(axis=1, keepdims=True) - low
    scale = np.where(span <= _NARROW, 1, top / np.maximum(span, _NARROW))
    scale = np.minimum(scale, _LARGEST_SCALE).astype(np.float32)
    zero = -low * scale
    if bits == 4:
        zero = np.rint(zero)
    best = np.inf
    for _ in range(iterations):
        error, zero = _iterate(w, scale, zero, top, padding, groups.counts)
        if not error < best:
            break
        best = error
    codes = _codes(w, scale, zero, top)
    decoded = (codes - to_float16(zero)) * to_float16(1 / scale)
    return decoded, 2 * scale.size + 2 * zero.size


def _codes(w: np.ndarray, scale: np.ndarray, zero: np.ndarray, top: int) -> np.ndarray:
    codes = w * scale
    codes += zero
    np.rint(codes, out=codes)
    return np.clip(codes, 0, top, out=codes)


def _iterate(w, scale, zero, top: int, padding, counts) -> tuple[float, np.ndarray]:
    """The mean absolute error with these zero points, and the next zero points."""
    new = np.empty_like(zero)
    total = 0.0
    for start in range(0, len(w), _CHUNK):
        part = slice(start, start + _CHUNK)
        inside = (padding[0] >= start) & (padding[0] < start + _CHUNK)
        blank = padding[0][inside] - start, padding[1][inside]
        sums, target = _step(w[part], scale[part], zero[part], top, blank)
        total += sums
        new[part, 0] = target / counts[part]
    return total / counts.sum(), new


def _step(w, scale, zero, top: int, blank) -> tuple[float, np.ndarray]:
    """The sum of absolute errors, and for each group the sum whose mean is the new zero point."""
    codes = _codes(w, scale, zero, top)
    residual = w - (codes - zero) / scale
    magnitude = np.abs(residual)
    magnitude[blank] = 0
    total = float(magnitude.sum(dtype=np.float64))
    with np.errstate(divide="ignore"):  # no error at all: shrunk by infinity, to zero
        shrunk = magnitude - magnitude ** np.float32(LP_NORM - 1) / np.float32(BETA)
    np.maximum(shrunk, 0, out=shrunk)
    np.copysign(shrunk, residual, out=shrunk)
    target = codes - (w - shrunk) * scale
    target[blank] = 0
    return total, target.sum(axis=1)
