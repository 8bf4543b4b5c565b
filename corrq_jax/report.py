"""What was quantized, how well, how large it is, and what was left alone and why."""

import dataclasses
from collections.abc import Iterator


@dataclasses.dataclass(frozen=True)
class Row:
    """One quantized tensor.

    Attributes:
        path: its path in the tree.
        shape: its shape.
        dtype: name of its dtype.
        size: number of weights.
        bits: bits of a code; fewer than asked for where the distinct weights need fewer.
        levels: number of levels.
        correlation: rho between the weights and the quantized weights.
        noise: ``1 - rho**2``, kept apart since at many bits rho is 1 to all digits shown.
        nbytes: bytes in a file: codes, levels, and this tensor's share of the header.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    size: int
    bits: int
    levels: int
    correlation: float
    noise: float
    nbytes: int


@dataclasses.dataclass(frozen=True)
class Skipped:
    """One leaf that was left as it was.

    Attributes:
        path: its path in the tree.
        shape: its shape; () for what is not an array.
        nbytes: bytes in a file.
        reason: why.
    """

    path: str
    shape: tuple[int, ...]
    nbytes: int
    reason: str


@dataclasses.dataclass(frozen=True)
class Report:
    """Rows of quantized tensors (iterating gives them), skipped leaves, and sizes.

    Attributes:
        rows: the quantized tensors, in the tree's order.
        skipped: the leaves left alone, in the tree's order.
        file_nbytes: size of the file that `corrq_jax.save` writes for the tree, all included.
    """

    rows: tuple[Row, ...]
    skipped: tuple[Skipped, ...]
    file_nbytes: int

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def size(self) -> int:
        """Number of quantized weights."""
        return sum(row.size for row in self.rows)

    @property
    def nbytes(self) -> int:
        """Bytes of the quantized tensors in a file: codes, levels and metadata."""
        return sum(row.nbytes for row in self.rows)

    @property
    def bits_per_weight(self) -> float:
        """Stored bits for each quantized weight, everything counted; NaN if there is none."""
        return 8 * self.nbytes / self.size if self.size else float("nan")

    @property
    def mean_correlation(self) -> float:
        """Mean over the quantized tensors of rho; NaN if there is none."""
        return sum(r.correlation for r in self.rows) / len(self) if self.rows else float("nan")

    @property
    def min_correlation(self) -> float:
        """The smallest rho of a quantized tensor; NaN if there is none."""
        return min((row.correlation for row in self.rows), default=float("nan"))

    def __str__(self) -> str:
        header = ("path", "shape", "bits", "levels", "correlation", "1 - rho^2", "bytes")
        lines = [
            (
                row.path,
                "x".join(map(str, row.shape)),
                str(row.bits),
                str(row.levels),
                f"{row.correlation:.6f}",
                f"{row.noise:.2e}",
                f"{row.nbytes:,}",
            )
            for row in self.rows
        ]
        parts = [_table(header, lines)] if lines else ["nothing was quantized"]
        if self.rows:
            parts.append(
                f"{len(self)} tensors, {self.size:,} weights, {self.nbytes:,} bytes: "
                f"{self.bits_per_weight:.3f} bits a weight, everything counted"
            )
        if self.skipped:
            parts.append(f"left in float or untouched: {len(self.skipped)} leaves")
            rows = [(s.path, "x".join(map(str, s.shape)), s.reason) for s in self.skipped]
            parts.append(_table(("path", "shape", "reason"), rows))
        parts.append(f"whole file: {self.file_nbytes:,} bytes")
        return "\n".join(parts)


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [header, tuple("-" * width for width in widths), *rows]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
