"""`QuantizedTensor`: packed codes and levels in place of an array."""

import dataclasses
import math
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from corrq_jax.core import coding
from corrq_jax.core.density import CHUNK


@dataclasses.dataclass(frozen=True)
class Rows:
    """Which weights of a tensor share a scale: those of one channel, or a group of them.

    The tensor is seen as [before, channels, after], the channel axes in the middle; the weights of
    a channel, in row-major order, are cut into groups, of which the last may be shorter.

    Attributes:
        before: product of the axes before the channel axes.
        channels: product of the channel axes.
        after: product of the axes after them.
        group: weights in a group.
    """

    before: int
    channels: int
    after: int
    group: int

    @property
    def shape(self) -> tuple[int, int]:
        """(groups in a channel, channels): the shape of the scales."""
        return -(-self.before * self.after // self.group), self.channels

    def expand(self, scales: Any) -> Any:
        """Scales [groups, channels] to an array that broadcasts to [before, channels, after]."""
        if self.shape[0] == 1:
            return scales.reshape(1, self.channels, 1)
        weights = self.before * self.after
        each = scales.repeat(self.group, axis=0)[:weights]
        return each.reshape(self.before, self.after, self.channels).swapaxes(1, 2)

    def view(self, w: Any) -> Any:
        """A tensor, of any shape, as [before, channels, after]."""
        return w.reshape(self.before, self.channels, self.after)


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["codes", "levels", "scales"],
    meta_fields=["shape", "dtype", "bits", "rows", "coding"],
)
@dataclasses.dataclass(frozen=True, eq=False)
class QuantizedTensor:
    """An array of weights as packed codes and a table of levels; a pytree.

    Leading axes that the two arrays share are a stack of tensors, as `jax.vmap`, `jax.lax.scan`
    and `jax.tree.map(jnp.stack, ...)` make and take apart.

    Invariants: ``codes`` is a little-endian stream of ``size`` codes of ``bits`` bits
    (`corrq_jax.core.coding`), each code less than the number of levels; ``levels`` ascends.

    Attributes:
        codes: uint8[..., ceil(size * bits / 8)].
        levels: float32[..., at most 2**bits] (float64 for a float64 tensor), the gain and offset
            of the quantizer included.
        scales: float16[..., groups, channels] that the levels are multiplied by; None if one table
            of levels serves the whole tensor as it is.
        shape: shape of the array that this stands for (of one tensor of a stack); static.
        dtype: name of its dtype, such as "float32"; static.
        bits: bits of a code, 1 to 8; static.
        rows: which weights share a scale; None without scales; static.
        coding: how the codes lie in a file: "packed" as here, or "entropy"; static.
    """

    codes: jax.Array | np.ndarray
    levels: jax.Array | np.ndarray
    shape: tuple[int, ...]
    dtype: str
    bits: int
    scales: jax.Array | np.ndarray | None = None
    rows: Rows | None = None
    coding: str = "packed"

    @property
    def size(self) -> int:
        """Number of weights of one tensor."""
        return math.prod(self.shape)

    @property
    def ndim(self) -> int:
        """Rank of one tensor."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of codes, levels and scales in memory."""
        scales = 0 if self.scales is None else self.scales.nbytes
        return int(self.codes.nbytes + self.levels.nbytes + scales)

    def dequantize(self) -> jax.Array | np.ndarray:
        """The array: ``levels[codes]``, times the scales if any, in its shape and dtype.

        The axes of a stack come first.

        Works under jit, vmap and scan. Outside of them it decodes in pieces of one fixed size, so
        that no shape compiles anew; a float64 tensor is then a numpy array if jax has float64
        switched off.
        """
        if isinstance(self.codes, Tracer) or isinstance(self.levels, Tracer) or _staged():
            return self._traced()
        if self.codes.ndim > 1:
            return jnp.stack([self._at(i).dequantize() for i in range(self.codes.shape[0])])
        return self._in_pieces()

    def _at(self, index: int) -> "QuantizedTensor":
        parts = jax.tree.map(lambda a: a[index], (self.codes, self.levels, self.scales))
        return dataclasses.replace(self, codes=parts[0], levels=parts[1], scales=parts[2])

    def unpacked(self) -> np.ndarray:
        """uint8[size]: the codes of one tensor, a byte each."""
        codes, start = np.empty(self.size, np.uint8), 0
        for piece in unpacked_pieces(np.asarray(self.codes), self.size, self.bits):
            codes[start : start + piece.size] = piece
            start += piece.size
        return codes

    def _traced(self) -> jax.Array:
        def one(codes: jax.Array, levels: jax.Array, scales: jax.Array | None) -> jax.Array:
            index = coding.unpack(codes, self.size, self.bits)
            w = coding.decode(index, levels)
            if self.rows is not None and scales is not None:
                w = self.rows.view(w) * self.rows.expand(scales).astype(w.dtype)
            return w.reshape(self.shape).astype(jax.dtypes.canonicalize_dtype(self.dtype))

        for _ in range(self.codes.ndim - 1):
            one = jax.vmap(one)
        return one(*jax.tree.map(jnp.asarray, (self.codes, self.levels, self.scales)))

    def _in_pieces(self) -> jax.Array | np.ndarray:
        dtype, levels = jnp.dtype(self.dtype), np.asarray(self.levels)
        # The product with the scales is rounded once, as under jit.
        wide = dtype if self.scales is None else levels.dtype
        out = empty_to_hand_over(self.size, wide)
        start = 0
        for index in unpacked_pieces(np.asarray(self.codes), self.size, self.bits):
            part = out[start : start + index.size]
            np.take(levels.astype(wide), index, out=part, mode="clip")
            start += index.size
        if self.rows is not None and self.scales is not None:
            view = self.rows.view(out)
            np.multiply(view, self.rows.expand(np.asarray(self.scales)).astype(wide), out=view)
        out = out.astype(dtype, copy=False).reshape(self.shape)
        narrowed = jax.dtypes.canonicalize_dtype(dtype) != dtype
        return out if narrowed else jax.device_put(out)

    def __repr__(self) -> str:
        return (
            f"QuantizedTensor(shape={self.shape}, dtype={self.dtype}, bits={self.bits}, "
            f"levels={jnp.shape(self.levels)[-1:]})"
        )


def _staged() -> bool:
    """Whether jit is tracing: then arrays that are constants to it are decoded inside, too."""
    return isinstance(jnp.zeros(()), Tracer)


def unpacked_pieces(packed: np.ndarray, size: int, bits: int) -> Iterator[np.ndarray]:
    """The codes of one tensor, a byte each, in pieces of one fixed size: no shape compiles anew."""
    piece = CHUNK * bits // 8
    for i, start in enumerate(range(0, size, CHUNK)):
        part = packed[i * piece : (i + 1) * piece]
        part = np.pad(part, (0, piece - part.size))
        yield np.asarray(coding.unpack(part, CHUNK, bits))[: size - start]


def packed_from(pieces: Iterable[np.ndarray], piece: int, size: int, bits: int) -> np.ndarray:
    """uint8[ceil(size * bits / 8)]: codes that come ``piece``, a multiple of 8, at a time."""
    packed = np.empty(coding.packed_size(size, bits), np.uint8)
    start = 0
    for codes in pieces:
        end = start + coding.packed_size(codes.size, bits)
        padded = np.pad(codes, (0, piece - codes.size))  # no shape compiles anew
        packed[start:end] = np.asarray(coding.pack(padded, bits))[: end - start]
        start = end
    return packed


def largest_code(packed: np.ndarray, size: int, bits: int) -> int:
    """The largest code of a tensor, or of a stack of tensors; -1 if there are none."""
    tensors = packed.reshape(math.prod(packed.shape[:-1]), packed.shape[-1])
    pieces = (part for one in tensors for part in unpacked_pieces(one, size, bits))
    return max((int(part.max()) for part in pieces), default=-1)


def empty_to_hand_over(size: int, dtype: np.dtype | type) -> np.ndarray:
    """A flat numpy array to fill and give to `jax.device_put`, which does not copy it on a CPU.

    XLA takes over host memory that is aligned to 64 bytes, and numpy's own is not.
    """
    itemsize = np.dtype(dtype).itemsize
    raw = np.empty(size * itemsize + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size * itemsize].view(dtype)


def is_quantized(leaf: object) -> bool:
    """Whether a node of a tree is a `QuantizedTensor`; the ``is_leaf`` of tree functions."""
    return isinstance(leaf, QuantizedTensor)
