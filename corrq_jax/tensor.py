"""`QuantizedTensor`: packed codes and levels in place of an array."""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec

from corrq_jax import on_device
from corrq_jax.codings import along_trellis
from corrq_jax.core import coding, trellis
from corrq_jax.core.density import CHUNK
from corrq_jax.core.shards import join
from corrq_jax.rows import Rows, Spread
from corrq_jax.sharding import sharding_of


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["codes", "levels", "scales"],
    meta_fields=["shape", "dtype", "bits", "rows", "coding", "blocks"],
)
@dataclasses.dataclass(frozen=True, eq=False)
class QuantizedTensor:
    """An array of weights as packed codes and a table of levels; a pytree.

    Leading axes that the two arrays share are a stack of tensors, as `jax.vmap`, `jax.lax.scan`
    and `jax.tree.map(jnp.stack, ...)` make and take apart.

    Invariants: ``codes`` is a little-endian stream of ``size`` codes of ``bits`` bits
    (`corrq_jax.core.coding`), each code less than the number of levels; ``levels`` ascends. With
    ``blocks`` each block is such a stream of its own, over its own weights in row-major order. With
    coding "trellis" there are ``2**(bits + spread)`` levels, 1 to 4 bits more than in a code, of
    which codes select one together (`corrq_jax.core.trellis`); with "entropy-trellis" at most
    ``2**(bits + 1)``, a multiple of 4, and codes are less than half their number.

    Attributes:
        codes: uint8[..., ceil(size * bits / 8)]; with ``blocks`` ``uint8[..., *blocks, bytes]``.
        levels: float32[..., at most 2**bits] (float64 for a float64 tensor), the gain and offset
            of the quantizer included.
        scales: float16[..., groups, channels] that the levels are multiplied by; None if one table
            of levels serves the whole tensor as it is.
        shape: shape of the array that this stands for (of one tensor of a stack); static.
        dtype: name of its dtype, such as "float32"; static.
        bits: bits of a code, 1 to 8; static.
        rows: which weights share a scale; None without scales; static.
        coding: "packed"; "entropy": packed here, entropy-coded in a file; "trellis": packed,
            and to be followed along the trellis; "entropy-trellis": both; static.
        blocks: into how many equal parts the tensor is cut along each of its axes, so that each
            device can hold the codes of its own part (docs/sharding.md); None for one stream;
            static.
    """

    codes: jax.Array | np.ndarray
    levels: jax.Array | np.ndarray
    shape: tuple[int, ...]
    dtype: str
    bits: int
    scales: jax.Array | np.ndarray | None = None
    rows: Rows | None = None
    coding: str = "packed"
    blocks: tuple[int, ...] | None = None

    @property
    def is_along_trellis(self) -> bool:
        """Whether the level of a weight follows from the codes before it, too."""
        return along_trellis(self.coding)

    @property
    def spread(self) -> int:
        """Bits that an index of a level has beyond those of a code; 0 without a trellis."""
        if not self.is_along_trellis:
            return 0
        return trellis.spread_of(self.bits, int(self.levels.shape[-1]))

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

        Works under jit, vmap, scan and `jax.shard_map`, where a shard of the codes gives the shard
        of the array. Outside of them it decodes in pieces of one fixed size, so that no shape
        compiles anew; a float64 tensor is then a numpy array if jax has float64 switched off. What
        lies on an accelerator or a mesh of devices is decoded there, on a mesh by each device its
        own blocks.
        """
        sharding = sharding_of(self.codes)
        if isinstance(self.codes, Tracer) or isinstance(self.levels, Tracer) or _staged():
            return self._traced(sharding, sharding_of(self.levels))
        if sharding is not None or (self.dtype != "float64" and on_device.holds(self.codes)):
            return _decoded(self, sharding, sharding_of(self.levels))
        if self.levels.ndim > 1:
            layers = [self._at(i).dequantize() for i in range(self.codes.shape[0])]
            return (np if isinstance(layers[0], np.ndarray) else jnp).stack(layers)
        return self.whole()._in_pieces()

    def whole(self) -> "QuantizedTensor":
        """The same tensor with its codes in one stream, in host memory if it is cut into blocks."""
        if self.blocks is None:
            return self
        if self.levels.ndim > 1:
            codes = np.stack([self._at(i).whole().codes for i in range(self.codes.shape[0])])
        else:
            codes = np.asarray(coding.pack(self.unpacked(), self.bits))
        return dataclasses.replace(self, codes=codes, blocks=None)

    def _at(self, index: int) -> "QuantizedTensor":
        parts = jax.tree.map(lambda a: a[index], (self.codes, self.levels, self.scales))
        return dataclasses.replace(self, codes=parts[0], levels=parts[1], scales=parts[2])

    def unpacked_pieces(self) -> Sequence[np.ndarray]:
        """The codes of one tensor, a byte each, in pieces that are unpacked when asked for."""
        if self.blocks is not None:
            return [self.unpacked()]
        return UnpackedPieces(np.asarray(self.codes), self.size, self.bits)

    def unpacked(self) -> np.ndarray:
        """uint8[size]: the codes of one tensor, a byte each."""
        if self.blocks is None:
            codes, start = np.empty(self.size, np.uint8), 0
            for piece in self.unpacked_pieces():
                codes[start : start + piece.size] = piece
                start += piece.size
            return codes
        streams = np.asarray(self.codes).reshape(math.prod(self.blocks), -1)
        block = dataclasses.replace(self, shape=self.block_shape, blocks=None)
        codes = [dataclasses.replace(block, codes=stream).unpacked() for stream in streams]
        return join(np.reshape(codes, (*self.blocks, *self.block_shape)), self.ndim).reshape(-1)

    def level_indices(self) -> np.ndarray:
        """uint8[size]: which of its levels each weight of one tensor has."""
        if not self.is_along_trellis:
            return self.unpacked()
        return np.concatenate([np.empty(0, np.uint8), *self._indices_in_pieces()])

    def _indices_in_pieces(self) -> Iterator[np.ndarray]:
        for codes in self.unpacked_pieces():
            yield trellis.indices_of_piece(codes, self.spread) if self.spread else codes

    @property
    def block_shape(self) -> tuple[int, ...]:
        """Shape of one block; that of the tensor if it is not cut."""
        blocks = self.blocks or (1,) * self.ndim
        return tuple(n // count for n, count in zip(self.shape, blocks, strict=True))

    def _traced(
        self, codes: NamedSharding | None = None, levels: NamedSharding | None = None
    ) -> jax.Array:
        """The array; where the shardings are given, each device decodes its own blocks."""
        decode = self._arrays_decoded
        if codes is not None:
            # The axes of the stack and the blocks: the bytes of a block are for one device.
            ahead = PartitionSpec(*codes.spec[: self.levels.ndim - 1 + len(self.blocks or ())])
            specs = (ahead, PartitionSpec() if levels is None else levels.spec, ahead)
            decode = jax.shard_map(decode, mesh=codes.mesh, in_specs=specs, out_specs=ahead)
        return decode(*jax.tree.map(jnp.asarray, (self.codes, self.levels, self.scales)))

    def _arrays_decoded(
        self, codes: jax.Array, levels: jax.Array, scales: jax.Array | None
    ) -> jax.Array:
        """The array of codes, levels and scales like the tensor's, or of shards of them."""

        def one(codes: jax.Array, scales: jax.Array | None, levels: jax.Array) -> jax.Array:
            index = coding.unpack(codes, math.prod(self.block_shape), self.bits)
            if self.is_along_trellis:
                index = trellis.level_indices(index, self.spread)
            w = coding.decode(index, levels)
            if self.rows is not None and scales is not None:
                w = self.rows.view(w) * self.rows.expand(scales).astype(w.dtype)
            return w.reshape(self.block_shape).astype(jax.dtypes.canonicalize_dtype(self.dtype))

        def all_blocks(codes: jax.Array, scales: jax.Array | None, levels: jax.Array) -> jax.Array:
            if self.blocks is None:
                return one(codes, scales, levels)
            each = partial(one, levels=levels)
            for _ in self.blocks:
                each = jax.vmap(each)
            return join(each(codes, scales), self.ndim)

        decode = all_blocks
        for _ in range(levels.ndim - 1):
            decode = jax.vmap(decode)
        return decode(codes, scales, levels)

    def _in_pieces(self) -> jax.Array | np.ndarray:
        dtype, levels = jnp.dtype(self.dtype), np.asarray(self.levels)
        spread = None
        if self.rows is not None and self.scales is not None:
            spread = Spread(self.rows, np.asarray(self.scales).astype(levels.dtype), CHUNK)
        table = levels.astype(dtype) if spread is None else levels
        out = empty_to_hand_over(self.size, dtype)
        start = 0
        for index in self._indices_in_pieces():
            part = out[start : start + index.size]
            if spread is None:
                np.take(table, index, out=part, mode="clip")
            else:  # rounded once, as under jit
                part[:] = np.take(table, index, mode="clip") * spread(start, index.size)
            start += index.size
        out = out.reshape(self.shape)
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


@dataclasses.dataclass(frozen=True, eq=False)
class UnpackedPieces(Sequence[np.ndarray]):
    """The codes of one tensor, a byte each, in pieces of one fixed size: no shape compiles anew.

    Each is unpacked when it is asked for.

    Attributes:
        packed: uint8[ceil(size * bits / 8)].
        size: how many codes there are.
        bits: bits of each.
    """

    packed: np.ndarray
    size: int
    bits: int

    def __len__(self) -> int:
        return -(-self.size // CHUNK)

    def __getitem__(self, index: Any) -> Any:
        i, piece = range(len(self))[index], CHUNK * self.bits // 8
        part = self.packed[i * piece : (i + 1) * piece]
        part = np.pad(part, (0, piece - part.size))
        return np.asarray(coding.unpack(part, CHUNK, self.bits))[: self.size - i * CHUNK]


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
    pieces = (part for one in tensors for part in UnpackedPieces(one, size, bits))
    return max((int(part.max()) for part in pieces), default=-1)


@partial(jax.jit, static_argnames=("codes", "levels"))
def _decoded(
    tensor: QuantizedTensor, codes: NamedSharding | None, levels: NamedSharding | None
) -> jax.Array:
    return tensor._traced(codes, levels)


def blocked(
    codes: Any,
    levels: Any,
    shape: tuple[int, ...],
    dtype: str,
    bits: int,
    blocks: tuple[int, ...] | None,
) -> QuantizedTensor:
    """The tensor of codes uint8[*blocks, bytes]; without blocks these axes are 1, and go."""
    codes = codes.reshape(-1) if blocks is None else codes
    return QuantizedTensor(codes, levels, shape, dtype, bits, blocks=blocks)


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
