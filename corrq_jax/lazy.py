"""Arrays that are read when they are asked for, so that not all of a file is in memory at once."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np

BAND = 1 << 20
"""Values in a band (`Bands`), where no more have to be read at a time."""


@dataclasses.dataclass(frozen=True, eq=False)
class LazyArray:
    """An array on disk, whose shape and dtype are known; numpy's functions read it.

    Attributes:
        shape: its shape.
        dtype: its dtype, in this machine's byte order.
        load: reads the values: a new array of this shape and dtype, C-contiguous or not.
        part: of an index and a number reads so many values from there on, flat, in row-major order;
            None where only all can be read.

    >>> array = LazyArray((2, 3), np.dtype("f4"), lambda: np.ones((2, 3), "f4"))
    >>> array.size, float(np.asarray(array).sum())
    (6, 6.0)
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    load: Callable[[], np.ndarray]
    part: Callable[[int, int], np.ndarray] | None = None

    @property
    def ndim(self) -> int:
        """Rank."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the values in memory."""
        return self.size * self.dtype.itemsize

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("the values of a LazyArray are read anew each time")
        array = self.load()
        return array if dtype is None else array.astype(dtype, copy=False)


def largest_band(size: int) -> int:
    """Values that a band of an array of that size may have: a quarter, if it is more than `BAND`.

    What has to be gone through as a whole for each band is read four times, however large it is.
    """
    return max(BAND, size // 4)


class Bands:
    """Parts of a file's arrays, cut out of bands; the last band read, of whichever array, is kept.

    A band is an index into the first axes of an array, none or several, a slice of the next axis,
    and all of the axes after it.
    """

    def __init__(self) -> None:
        self._key: tuple[Any, int] | None = None
        self._values = np.empty(0)

    def part(
        self,
        shape: tuple[int, ...],
        dtype: np.dtype,
        axis: int,
        lines: int,
        read: Callable[[tuple[Any, ...]], np.ndarray],
    ) -> Callable[[int, int], np.ndarray]:
        """The `LazyArray.part` of an array.

        Args:
            shape: its shape, without zeros.
            dtype: its dtype.
            axis: the axis that is cut into slices.
            lines: how long they are; the last one may be shorter.
            read: reads the values at an index, integers and a slice; of any shape.
        """
        line = math.prod(shape[axis + 1 :])

        def fill(values: np.ndarray, start: int) -> int:
            """Copy the values from one on, as many as there are in its band; how many."""
            *outer, first = (int(i) for i in np.unravel_index(start // line, shape[: axis + 1]))
            skipped = first % lines * line + start % line
            if self._key != (read, start - skipped):
                self._key, self._values = None, np.empty(0)  # before memory for the next is taken
                first -= first % lines
                band = slice(first, min(first + lines, shape[axis]))
                self._values = read((*outer, band)).reshape(-1)
                self._key = read, start - skipped
            found = self._values[skipped:][: values.size]
            values[: found.size] = found
            return found.size

        def part(first: int, size: int) -> np.ndarray:
            values = np.empty(size, dtype)
            done = 0
            while done < size:
                done += fill(values[done:], first + done)
            return values

        return part
