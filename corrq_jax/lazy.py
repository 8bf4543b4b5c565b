"""Arrays that are read when they are asked for, so that not all of a file is in memory at once."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np


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
