"""What the bytes of a file are spent on."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from corrq_jax.layout import LEVELS, PARTS, SCALES, parts_of, plan
from corrq_jax.tensor import QuantizedTensor


class Anatomy(NamedTuple):
    """Bytes of a file, by what they hold; together they are the file.

    Attributes:
        codes: of codes, or of their streams.
        levels: of tables of levels.
        scales: of scales.
        rest: of the tensors that are not quantized.
        header: of the header.
    """

    codes: int
    levels: int
    scales: int
    rest: int
    header: int


def file_anatomy(tree: Any) -> Anatomy:
    """What the file that `corrq_jax.save` writes of a tree is made of.

    Raises:
        InputError: as `corrq_jax.save`.

    >>> import numpy as np
    >>> file_anatomy({"bias": np.zeros(3, np.float32)}).rest
    12
    """
    file = plan(tree)
    quantized = {leaf + end: end for leaf in file.tensors for end in PARTS}
    codes, levels, scales = _by_part(
        (quantized[name], stored.nbytes)
        for name, stored in file.stored.items()
        if name in quantized
    )
    rest = sum(stored.nbytes for name, stored in file.stored.items() if name not in quantized)
    return Anatomy(codes, levels, scales, rest, len(file.header()))


def tensor_anatomy(tensor: QuantizedTensor) -> tuple[int, int, int]:
    """Bytes of codes, levels and scales that a file holds of one tensor."""
    return _by_part((end, array.nbytes) for end, array in parts_of(tensor).items())


def _by_part(parts: Iterable[tuple[str, int]]) -> tuple[int, int, int]:
    """Bytes of codes, levels and scales."""
    sums = {LEVELS: 0, SCALES: 0}
    codes = 0
    for end, nbytes in parts:
        if end in sums:
            sums[end] += nbytes
        else:
            codes += nbytes
    return codes, sums[LEVELS], sums[SCALES]
