"""Which weights share a scale: the channels of a layer by its layout, or groups along them.

Also the pass from a flat piece of a tensor to the values of its rows: `fold` reduces the weights of
each row, as `corrq_jax.rows.Spread` gives every weight the value of its row. Neither makes anything
much larger than a piece, and neither compiles.
"""

import math
import re
from collections.abc import Iterable
from itertools import pairwise
from operator import index
from typing import Any

import numpy as np

from corrq_jax.errors import InputError
from corrq_jax.rows import Rows, in_columns, runs

_EMBEDDINGS = {"embedding", "embeddings"}
_TORCH = re.compile(r"(.*_)?weight(_.*)?")
_ATTENTION_INPUTS = {"query", "key", "value"}
_DEPTHWISE = re.compile(r".*(depthwise|dwconv)|(.*_)?dw(_.*)?")
_LARGEST_MULTIPLIER = 8  # of a depthwise layer of Keras: more are taken for output channels


def channel_axes(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The axes of a tensor that count its output channels, from its name and its shape.

    | tensor | layout | axes |
    |---|---|---|
    | Flax and Keras kernels: dense, convolution (grouped as well) | [..., in, out] | last |
    | query, key and value of an attention | [in, heads, features] | last two |
    | depthwise kernels of Keras | [..., in, multiplier] | last two |
    | embedding tables: a channel is a token | [tokens, features] | first |
    | PyTorch's ``weight`` | [out, ...] | first |

    Neither name nor shape tells a transposed convolution of PyTorch, or one of Flax with
    ``transpose_kernel=True``: their channels are the axis before the last or the second.

    Args:
        path: keys joined by "/" or ".".
        shape: shape of the tensor.

    Returns:
        Ascending indices; none below rank 2, where all weights are one channel.

    >>> channel_axes("conv/kernel", (3, 3, 16, 32)), channel_axes("embed/embedding", (1000, 64))
    ((3,), (0,))
    """
    rank = len(shape)
    if rank < 2:
        return ()
    parents, name = _names(path)
    parent = parents[-1] if parents else ""
    if name in _EMBEDDINGS or _TORCH.fullmatch(name):
        return (0,)
    pairs = parent in _ATTENTION_INPUTS and name == "kernel" and rank > 2
    if pairs or _is_depthwise_of_keras(parent, name, shape):
        return (rank - 2, rank - 1)
    return (rank - 1,)


def _names(path: str) -> tuple[list[str], str]:
    """Keys above a leaf, and its name; without ":0" and "vars" of Keras, and "value" of NNX."""
    keys = [key.split(":")[0] for key in path.replace(".", "/").split("/")]
    if len(keys) > 1 and keys[-1] == "value":  # elsewhere a projection of an attention
        keys.pop()
    return [key for key in keys[:-1] if key != "vars"], keys[-1]


def _is_depthwise_of_keras(parent: str, name: str, shape: tuple[int, ...]) -> bool:
    if len(shape) < 3:
        return False
    if name == "depthwise_kernel":
        return True
    # Flax's are [..., 1, channels]: theirs is the other way around.
    looks_so = shape[-2] > shape[-1] and shape[-1] <= _LARGEST_MULTIPLIER
    return looks_so and _DEPTHWISE.match(parent) is not None


def rows_of(
    path: str,
    shape: tuple[int, ...],
    granularity: str | int,
    axes: Iterable[int] | int | None = None,
) -> Rows | None:
    """The weights of a tensor that share a scale.

    Args:
        path: of the tensor; tells the channel axes, and names it in messages.
        shape: of the tensor.
        granularity: "tensor", "channel", or the number of consecutive weights of a channel, 2 or
            more, in a group.
        axes: the channel axes, neighbours, negative ones from the end; none for a single channel.
            By default those of `channel_axes`.

    Returns:
        The `Rows`; None where one scale serves all: for "tensor", for a single row, and where a
        row is a single weight, whose scale would store it.

    Raises:
        InputError: the granularity or the axes are not allowed.

    >>> rows_of("dense/kernel", (64, 10), "channel")
    Rows(before=64, channels=10, after=1, group=64)
    >>> rows_of("dense/kernel", (64, 10), 32).shape
    (2, 10)
    """
    wanted = _group(path, granularity)
    chosen = channel_axes(path, shape) if axes is None else _checked_axes(path, shape, axes)
    # Without channel axes all weights lie before them.
    first, end = (chosen[0], chosen[-1] + 1) if chosen else (len(shape), len(shape))
    before, channels, after = (
        math.prod(part) for part in (shape[:first], shape[first:end], shape[end:])
    )
    length = before * after
    group = length if wanted is None else min(wanted, length)
    if granularity == "tensor" or group < 2 or channels == 0:
        return None
    rows = Rows(before, channels, after, group)
    return rows if rows.shape != (1, 1) else None


def _group(path: str, granularity: str | int) -> int | None:
    """Weights in a group; None for all of the channel."""
    if isinstance(granularity, str) and granularity in ("tensor", "channel"):
        return None
    if isinstance(granularity, int | np.integer) and int(granularity) >= 2:
        return int(granularity)
    raise InputError(
        f"{path}: granularity={granularity!r}: give 'tensor', 'channel', or the number of weights "
        "in a group, 2 or more"
    )


def _checked_axes(path: str, shape: tuple[int, ...], axes: Iterable[int] | int) -> tuple[int, ...]:
    rank = len(shape)
    try:
        given = [index(a) for a in (axes if isinstance(axes, Iterable) else (axes,))]
    except TypeError:
        given = [rank]
    found = sorted(a % rank for a in given if -rank <= a < rank)
    if len(found) != len(given) or any(b - a != 1 for a, b in pairwise(found)):
        raise InputError(
            f"{path}: channel axes {axes!r} of a tensor of shape {shape}: give distinct neighbours "
            f"from {-rank} to {rank - 1}"
        )
    return tuple(found)


def lengths(rows: Rows) -> np.ndarray:
    """int64[groups, 1]: weights in each row, the last group of a channel being what is left.

    >>> lengths(Rows(10, 3, 1, 4)).ravel().tolist()
    [4, 4, 2]
    """
    starts = np.arange(rows.shape[0]) * rows.group
    return np.minimum(rows.group, rows.before * rows.after - starts)[:, None]


def fold(ufunc: Any, table: np.ndarray, rows: Rows, x: np.ndarray, start: int) -> None:
    """Reduce a flat piece of a tensor into its rows, in place.

    Args:
        ufunc: `numpy.add`, `numpy.minimum` or `numpy.maximum`.
        table: [groups, channels], what the pieces before have left.
        rows: of the tensor.
        x: the piece.
        start: index of its first weight.

    >>> table = np.zeros((1, 2))
    >>> fold(np.add, table, Rows(2, 2, 1, 2), np.array([1.0, 2.0, 3.0, 4.0]), 0)
    >>> table
    array([[4., 6.]])
    """
    if in_columns(rows):
        _fold_columns(ufunc, table, rows, x, start)
        return
    row, begin = runs(rows, start, x.size)
    ufunc.at(table.reshape(-1), row, ufunc.reduceat(x, begin).astype(table.dtype))


def _fold_columns(ufunc: Any, table: np.ndarray, rows: Rows, x: np.ndarray, start: int) -> None:
    line, column = divmod(start, rows.channels)
    if column or x.size < rows.channels:  # the piece begins, or ends, within a line
        head = x[: rows.channels - column]
        part = table[line // rows.group, column : column + head.size]
        ufunc(part, head, out=part)
        x, line = x[head.size :], line + 1
        if not x.size:
            return
    body = x[: x.size // rows.channels * rows.channels].reshape(-1, rows.channels)
    done = 0
    while done < len(body):  # a group, or as many whole ones as there are, at a time
        group, inside = divmod(line + done, rows.group)
        whole = (len(body) - done) // rows.group if inside == 0 else 0
        count = whole * rows.group or min(rows.group - inside, len(body) - done)
        lines = body[done : done + count].reshape(max(whole, 1), -1, rows.channels)
        part = table[group : group + max(whole, 1)]
        ufunc(part, ufunc.reduce(lines, axis=1), out=part)
        done += count
    if body.size < x.size:
        _fold_columns(ufunc, table, rows, x[body.size :], (line + done) * rows.channels)
