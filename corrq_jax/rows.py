"""Which weights of a tensor share a scale, and the scales of consecutive weights."""

import dataclasses
from typing import Any

import numpy as np


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


def in_columns(rows: Rows) -> bool:
    """Whether neighbouring weights belong to neighbouring channels, as in Flax's kernels."""
    return rows.after == 1 and rows.channels > 1


def runs(rows: Rows, start: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """(flat index of a row, where it begins) for each stretch of a piece that lies in one row."""
    after = rows.after if rows.channels > 1 else rows.before * rows.after
    line = np.arange(start // after, (start + size - 1) // after + 1)
    block, channel = np.divmod(line, rows.channels)
    shift = (line - block) * after  # from a place in the channel to one in the tensor
    begin = np.maximum(line * after, start) - shift
    end = np.minimum((line + 1) * after, start + size) - shift
    first = begin // rows.group
    count = (end - 1) // rows.group - first + 1
    of = np.repeat(np.arange(line.size), count)
    group = first[of] + np.arange(of.size) - (np.cumsum(count) - count)[of]
    begins = np.maximum(group * rows.group, begin[of]) + shift[of] - start
    return group * rows.channels + channel[of], begins


class Spread:
    """A value of each row, handed to every weight of a piece.

    >>> Spread(Rows(2, 3, 1, 2), np.array([[1.0, 2.0, 3.0]]), 4)(1, 4)
    array([2., 3., 1., 2.])
    """

    def __init__(self, rows: Rows, values: np.ndarray, most: int):
        """Prepare for pieces of at most ``most`` weights of values [groups, channels]."""
        self._rows, self._values = rows, values
        self._pattern = None
        if in_columns(rows) and rows.shape[0] == 1:
            self._pattern = np.resize(values[0], most + rows.channels)

    @property
    def period(self) -> int | None:
        """After how many weights the values repeat; None if they do not."""
        return None if self._pattern is None else self._rows.channels

    def __call__(self, start: int, size: int) -> np.ndarray:
        """The values of ``size`` weights from the index ``start``; not to be written to."""
        if self._pattern is not None:
            return self._pattern[start % self._rows.channels :][:size]
        if in_columns(self._rows):
            return self._from_lines(start, size)
        row, begin = runs(self._rows, start, size)
        return np.repeat(self._values.reshape(-1)[row], np.diff(begin, append=size))

    def _from_lines(self, start: int, size: int) -> np.ndarray:
        first, column = divmod(start, self._rows.channels)
        end = (start + size - 1) // self._rows.channels + 1
        lines = self._values[np.arange(first, end) // self._rows.group]
        return lines.reshape(-1)[column : column + size]
