"""`QuantizedTensor`: packed codes and levels in place of an array."""

import dataclasses
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from corrq_jax.core import coding
from corrq_jax.core.density import CHUNK


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["codes", "levels"],
    meta_fields=["shape", "dtype", "bits"],
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
        shape: shape of the array that this stands for (of one tensor of a stack); static.
        dtype: name of its dtype, such as "float32"; static.
        bits: bits of a code, 1 to 8; static.
    """

    codes: jax.Array | np.ndarray
    levels: jax.Array | np.ndarray
    shape: tuple[int, ...]
    dtype: str
    bits: int

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
        """Bytes of codes and levels."""
        return int(self.codes.nbytes + self.levels.nbytes)

    def dequantize(self) -> jax.Array | np.ndarray:
        """The array: ``levels[codes]`` in its shape and dtype, a stack's axes first.

        Works under jit, vmap and scan. Outside of them it decodes in pieces of one fixed size, so
        that no shape compiles anew; a float64 tensor is then a numpy array if jax has float64
        switched off.
        """
        if isinstance(self.codes, Tracer) or isinstance(self.levels, Tracer):
            return self._traced()
        if self.codes.ndim > 1:
            return jnp.stack([self._at(i).dequantize() for i in range(self.codes.shape[0])])
        return self._in_pieces()

    def _at(self, index: int) -> "QuantizedTensor":
        return dataclasses.replace(self, codes=self.codes[index], levels=self.levels[index])

    def _traced(self) -> jax.Array:
        def one(codes: jax.Array, levels: jax.Array) -> jax.Array:
            index = coding.unpack(codes, self.size, self.bits)
            dtype = jax.dtypes.canonicalize_dtype(self.dtype)
            return coding.decode(index, levels).reshape(self.shape).astype(dtype)

        for _ in range(self.codes.ndim - 1):
            one = jax.vmap(one)
        return one(jnp.asarray(self.codes), jnp.asarray(self.levels))

    def _in_pieces(self) -> jax.Array | np.ndarray:
        dtype = jnp.dtype(self.dtype)
        codes, levels = np.asarray(self.codes), np.asarray(self.levels)
        out = empty_to_hand_over(self.size, dtype)
        piece = CHUNK * self.bits // 8
        for i, start in enumerate(range(0, self.size, CHUNK)):
            packed = codes[i * piece : (i + 1) * piece]
            packed = np.pad(packed, (0, piece - packed.size))
            index = np.asarray(coding.unpack(packed, CHUNK, self.bits))
            part = out[start : start + CHUNK]
            np.take(levels.astype(dtype), index[: part.size], out=part, mode="clip")
        out = out.reshape(self.shape)
        narrowed = jax.dtypes.canonicalize_dtype(dtype) != dtype
        return out if narrowed else jax.device_put(out)

    def __repr__(self) -> str:
        return (
            f"QuantizedTensor(shape={self.shape}, dtype={self.dtype}, bits={self.bits}, "
            f"levels={jnp.shape(self.levels)[-1:]})"
        )


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
