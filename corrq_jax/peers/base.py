"""What all peers share: how a tensor is cut into groups, how bytes are counted, and trees."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np

from corrq_jax import paths
from corrq_jax.core.correlation import correlation
from corrq_jax.errors import InputError
from corrq_jax.selection import default_select

_FLOATS = ("float16", "bfloat16", "float32", "float64")
_LARGEST = 1e37  # ranges and squares of what is below stay inside float32 and float64


class Groups(NamedTuple):
    """Weights that share their quantizer, a row for each group.

    Attributes:
        weights: float32[groups, size]; a group that has fewer weights ends in zeros.
        counts: int64[groups], how many weights each group has.
    """

    weights: np.ndarray
    counts: np.ndarray


Family = Callable[[Groups, int], tuple[np.ndarray, int]]
"""Groups and bits to decoded float32[groups, size] and the bytes beside the codes."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """Which weights share a quantizer.

    Attributes:
        per_channel: whether a group stays inside an output channel; if not, groups are cut from
            the flattened (channels, inputs) matrix.
        size: weights in a group; None for all. The last one may have fewer.
    """

    per_channel: bool = False
    size: int | None = None

    def split(self, w: np.ndarray, channel_axis: int = -1) -> Groups:
        """The groups of a float32 tensor.

        >>> groups = Layout(per_channel=True, size=2).split(np.arange(6, dtype=np.float32)[:, None])
        >>> groups.weights.tolist(), groups.counts.tolist()
        ([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]], [2, 2, 2])
        """
        channels = _channels_first(w, channel_axis)
        rows = channels.reshape(len(channels) if self.per_channel else 1, -1)
        width = rows.shape[1]
        size = min(self.size or width, width)
        groups = -(-width // size)
        spare = groups * size - width
        counts = np.full((len(rows), groups), size)
        counts[:, -1] -= spare
        padded = np.pad(rows, ((0, 0), (0, spare))) if spare else rows
        return Groups(np.ascontiguousarray(padded).reshape(-1, size), counts.reshape(-1))

    def join(self, decoded: np.ndarray, like: np.ndarray, channel_axis: int = -1) -> np.ndarray:
        """The tensor of decoded groups; ``like`` is what was split."""
        channels = _channels_first(like, channel_axis)
        rows = len(channels) if self.per_channel else 1
        width = like.size // rows
        flat = decoded.reshape(rows, -1)[:, :width].reshape(channels.shape)
        source, target = _axes(like.ndim, channel_axis)
        return np.ascontiguousarray(np.moveaxis(flat, target, source)).reshape(like.shape)


TENSOR = Layout()
"""One group for a tensor."""
CHANNEL = Layout(per_channel=True)
"""A group for each output channel."""


def _axes(rank: int, channel_axis: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    # Of Flax's (..., in, out) the peers, PyTorch libraries most of them, would see (out, in, ...).
    if channel_axis % max(rank, 1) == rank - 1 and rank > 1:
        return (rank - 1, rank - 2), (0, 1)
    return (channel_axis,), (0,)


def _channels_first(w: np.ndarray, channel_axis: int) -> np.ndarray:
    if w.ndim == 0:
        return w.reshape(1)
    return np.moveaxis(w, *_axes(w.ndim, channel_axis))


@dataclasses.dataclass(frozen=True)
class PeerRow:
    """One tensor that a peer quantized.

    Attributes:
        path: its path in the tree.
        size: number of weights.
        nbytes: bytes stored: packed codes, scales, zero points, codebook.
        noise: ``1 - rho**2`` in float64; 1 where rho is not positive or undefined.
    """

    path: str
    size: int
    nbytes: int
    noise: float


def stored_bits(rows: Iterable[PeerRow]) -> float:
    """Stored bits for each weight of all rows together; NaN if there is none.

    >>> stored_bits([PeerRow("a", 10, 5, 0.01), PeerRow("b", 6, 4, 0.02)])
    4.5
    """
    rows = tuple(rows)
    size = sum(row.size for row in rows)
    return 8 * sum(row.nbytes for row in rows) / size if size else float("nan")


@dataclasses.dataclass(frozen=True)
class Peer:
    """A quantizer of another library.

    Attributes:
        name: what tables and figures show.
        family: the mathematics, on groups.
        layout: which weights share a quantizer.
        bits: the widths that it has.
    """

    name: str
    family: Family
    layout: Layout
    bits: tuple[int, ...]

    def quantize(self, w: Any, bits: int, channel_axis: int = -1) -> tuple[np.ndarray, int]:
        """Quantize and decode one array.

        Args:
            w: at least one weight of any shape and float dtype; computed with in float32.
            bits: one of `bits`.
            channel_axis: the axis of the output channels; the last one in Flax's layouts.

        Returns:
            The decoded weights, float32 in the shape of ``w``, and the bytes that the codes and all
            that is needed to decode them take.

        Raises:
            InputError: the bits, the axis, the dtype or the weights cannot be used.
        """
        if bits not in self.bits:
            raise InputError(f"{self.name} has {_listed(self.bits)} bits, not {bits!r}")
        w = _as_float32(w)
        if w.ndim and not -w.ndim <= channel_axis < w.ndim:
            raise InputError(f"channel_axis={channel_axis}: the array has {w.ndim} axes")
        decoded, beside = self.family(self.layout.split(w, channel_axis), bits)
        w_hat = self.layout.join(decoded, w, channel_axis).astype(np.float32, copy=False)
        return w_hat, -(-w.size * bits // 8) + beside

    def quantize_tree(
        self, params: Any, bits: int, select: Callable[[str, Any], bool] = default_select
    ) -> tuple[Any, tuple[PeerRow, ...]]:
        """Quantize and decode the kernels of a parameter tree, output channels on the last axis.

        Args:
            params: a pytree of arrays.
            bits: one of `bits`.
            select: which leaves, by path and leaf. Of those, leaves that are no floats, empty or
                constant stay as they are, as with `corrq_jax.quantize`.

        Returns:
            The tree with decoded NumPy arrays of the same shapes and dtypes, and a row for each.

        Raises:
            InputError: as `quantize`; the message names the path.
        """
        entries, treedef = paths.flatten(params)
        leaves, rows = [], []
        for path, leaf in entries:
            if _is_float_array(leaf) and select(path, leaf) and not _is_constant(leaf):
                try:
                    w_hat, nbytes = self.quantize(leaf, bits)
                except InputError as error:
                    raise InputError(f"{path}: {error}") from error
                rows.append(PeerRow(path, w_hat.size, nbytes, _noise(leaf, w_hat)))
                leaf = _as_dtype(w_hat, np.asarray(leaf).dtype)
            leaves.append(leaf)
        return jax.tree_util.tree_unflatten(treedef, leaves), tuple(rows)


def _listed(bits: tuple[int, ...]) -> str:
    return ", ".join(map(str, bits))


def _as_float32(w: Any) -> np.ndarray:
    w = np.asarray(w)
    if w.dtype.name not in _FLOATS or w.size == 0:
        raise InputError(
            f"got {w.dtype}{list(w.shape)}; give at least one weight of {', '.join(_FLOATS)}"
        )
    with np.errstate(over="ignore"):
        w = w.astype(np.float32)
    if not (np.isfinite(w).all() and np.abs(w).max() <= _LARGEST):
        raise InputError(f"weights have to be finite and at most {_LARGEST:g} in magnitude")
    return w


def _as_dtype(w: np.ndarray, dtype: np.dtype) -> np.ndarray:
    if dtype == np.float16:
        w = to_float16(w)
    return w.astype(dtype)


def to_float16(x: np.ndarray) -> np.ndarray:
    """Rounded to float16 and back to float32; what is too large becomes the largest float16."""
    largest = float(np.finfo(np.float16).max)
    return np.clip(x, -largest, largest).astype(np.float16).astype(np.float32)


def _is_float_array(leaf: Any) -> bool:
    is_array = isinstance(leaf, np.ndarray | jax.Array | np.generic)
    return is_array and leaf.dtype.name in _FLOATS and leaf.size > 0


def _is_constant(leaf: Any) -> bool:
    leaf = np.asarray(leaf)
    return bool((leaf == leaf.flat[0]).all())


def _noise(w: Any, w_hat: np.ndarray) -> float:
    rho = correlation(w, w_hat)
    return 1 - rho**2 if rho > 0 else 1.0
