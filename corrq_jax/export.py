"""Quantized trees as plain NumPy arrays and numbers, for programs that know nothing of this one.

How a tensor is decoded, in full:

1. Code i is bits ``i * bits`` to ``i * bits + bits - 1`` of ``codes``, lowest first; bit j of that
   stream is bit ``j % 8`` of byte ``j // 8``, counted from the lowest.
2. The weight is ``levels[code]``. Weights are in row-major order of ``shape``. If ``trellis`` is
   true, the index of the level follows from the code and those before it, in segments of 1,024
   weights: with u the lowest bits of the segment's codes, 0 before it, and code i,
   ``4 * (code >> 1) + 2 * (u[i] ^ u[i-2] ^ u[i-5]) + u[i-3]`` if there are at most
   ``2**(bits + 1)`` levels. Of ``2**(bits + s)`` levels, s being 2, 3 or 4, it is
   ``(code << s) + (157 * g % 256 >> (8 - s))``, g being the sum of ``u[i-j] << (8 - j)`` for j from
   1 to 8, and the weights are counted in another order, in each block of 2**20 for itself, the last
   of which may be shorter: the one at turn t of a block of n is its weight ``t * p % n``, p being
   the first number from ``max(1, floor(n * (sqrt(5) - 1) / 2))`` on that is coprime to n.
3. With ``scales`` the tensor is seen as [before, channels, after], row-major. The
   ``before * after`` weights of a channel, in order, are cut into groups of ``group``, of which the
   last may be shorter; those of group g of channel c are multiplied by ``scales[g, c]``, in the
   levels' dtype.
4. The result is rounded to ``dtype``.

Leading axes that codes, levels and scales share are a stack: decode each, and stack the results.
"""

from typing import Any, TypedDict

import numpy as np

from corrq_jax import paths
from corrq_jax.errors import InputError
from corrq_jax.tensor import QuantizedTensor, is_quantized

__all__ = ["Encoded", "Rows", "to_numpy", "unpacked_codes"]


class Rows(TypedDict):
    """Which weights share a scale: a tensor seen as [before, channels, after], in groups."""

    before: int
    channels: int
    after: int
    group: int


class Encoded(TypedDict):
    """A quantized tensor.

    Attributes:
        codes: uint8[..., ceil(size * bits / 8)].
        levels: float32[..., at most 2**bits], ascending; float64 for a float64 tensor; with a
            trellis at most 256.
        scales: float16[..., groups, channels], or None.
        rows: which weights share a scale; None without scales.
        shape: of the tensor.
        dtype: its name, such as "float32" or "bfloat16".
        bits: of a code, 1 to 8.
        trellis: whether codes are to be followed along a trellis.
    """

    codes: np.ndarray
    levels: np.ndarray
    scales: np.ndarray | None
    rows: Rows | None
    shape: tuple[int, ...]
    dtype: str
    bits: int
    trellis: bool


def to_numpy(params: Any) -> dict[str, np.ndarray | Encoded]:
    """Every leaf of a tree by its path.

    Args:
        params: a tree with `corrq_jax.QuantizedTensor` leaves, from `corrq_jax.quantize` or a file.

    Returns:
        For each path an `Encoded` dictionary of plain arrays and numbers, or, for what was not
        quantized, a NumPy array.

    Raises:
        InputError: a leaf is neither quantized nor an array.

    >>> import corrq_jax as corrq
    >>> qparams, _ = corrq.quantize({"kernel": np.linspace(-1, 1, 12).reshape(3, 4)}, bits=2)
    >>> kernel = to_numpy(qparams)["kernel"]
    >>> kernel["codes"], kernel["shape"], kernel["bits"]
    (array([ 64, 165, 254], dtype=uint8), (3, 4), 2)
    >>> kernel["levels"].round(2)
    array([-0.82, -0.27,  0.27,  0.82])
    """
    return {path: _plain(path, leaf) for path, leaf in paths.flatten(params)[0]}


def _plain(path: str, leaf: Any) -> np.ndarray | Encoded:
    if is_quantized(leaf):
        return _encoded(leaf)
    array = np.asarray(leaf)
    if array.dtype.hasobject:
        raise InputError(f"{path}: {type(leaf).__name__} is not an array of numbers")
    return array


def _encoded(tensor: QuantizedTensor) -> Encoded:
    rows, tensor = tensor.rows, tensor.whole()
    return {
        "codes": np.asarray(tensor.codes),
        "levels": np.asarray(tensor.levels),
        "scales": None if tensor.scales is None else np.asarray(tensor.scales),
        "rows": None
        if rows is None
        else {
            "before": rows.before,
            "channels": rows.channels,
            "after": rows.after,
            "group": rows.group,
        },
        "shape": tensor.shape,
        "dtype": tensor.dtype,
        "bits": tensor.bits,
        "trellis": tensor.is_along_trellis,
    }


def unpacked_codes(encoded: Encoded) -> np.ndarray:
    """The codes a byte each, in the tensor's shape, for runtimes that look levels up by bytes.

    Args:
        encoded: one of `to_numpy`.

    Returns:
        ``uint8[..., *shape]``, the axes of a stack first.

    >>> kernel = {"codes": np.array([33, 3], np.uint8), "bits": 4, "shape": (3,)}
    >>> unpacked_codes(kernel)
    array([1, 2, 3], dtype=uint8)
    """
    bits, shape = encoded["bits"], encoded["shape"]
    codes, size = encoded["codes"], int(np.prod(shape))
    stream = np.unpackbits(codes, axis=-1, count=size * bits, bitorder="little")
    each = stream.reshape(*codes.shape[:-1], *shape, bits)
    return np.packbits(each, axis=-1, bitorder="little")[..., 0]
