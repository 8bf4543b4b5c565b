"""What was quantized, how well, how large it is, and what was left alone and why."""

import dataclasses
from collections.abc import Iterator, Mapping


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
        nbytes: bytes in a file: codes, levels, scales, and this tensor's share of the header.
        coding: as in `corrq_jax.Config`.
        rows: number of scales; 1 for a single table of levels as it is.
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
    coding: str = "packed"
    rows: int = 1

    @property
    def bits_per_weight(self) -> float:
        """Stored bits a weight of this tensor, everything counted."""
        return 8 * self.nbytes / self.size


@dataclasses.dataclass(frozen=True)
class Budget:
    """How bits were shared out under a target.

    Attributes:
        target: its name, such as "bits_per_weight".
        limit: its value.
        loss: sum over tensors of importance times ``1 - rho**2``, as predicted.
        cost: bytes of the quantized tensors, as predicted; an upper bound, but of those that are
            entropy-coded along a trellis.
        bound: no choice among the same options does better: a loss for a target of size, a cost in
            bytes for a target of correlation.
        uniform_bits: most bits that all tensors could have had alike within the same cost; None if
            none.
        uniform_loss: the loss with these.
        curves: for each path, (stored bits a weight, ``1 - rho**2``) of its useful options, from
            small to large.
    """

    target: str
    limit: float
    loss: float
    cost: float
    bound: float
    uniform_bits: int | None
    uniform_loss: float | None
    curves: Mapping[str, tuple[tuple[float, float], ...]]

    def __str__(self) -> str:
        lines = [f"target {self.target} = {self.limit:g}: sum of 1 - rho^2 {self.loss:.4g}"]
        if self.target in ("bits_per_weight", "max_bytes"):
            lines[0] += f", the optimum is at least {self.bound:.4g}"
        else:
            lines[0] += f", {self.cost:,.0f} bytes, the optimum is at least {self.bound:,.0f}"
        if self.uniform_loss is not None:
            lines.append(f"with {self.uniform_bits} bits for all tensors: {self.uniform_loss:.4g}")
            if self.loss >= 0.99 * self.uniform_loss:
                lines.append("note: the mix is no better than equal bits for all")
        return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class Matched:
    """What `corrq_jax.moments.match_moments` did.

    Attributes:
        norms: kernels whose shift went into the running moments of the normalization after them.
        biases: kernels whose shift went into the bias after them.
        unreached: the others, with the reason.
    """

    norms: tuple[str, ...]
    biases: tuple[str, ...]
    unreached: Mapping[str, str]

    def __str__(self) -> str:
        text = (
            f"moments matched: {len(self.norms)} kernels by the normalization after them, "
            f"{len(self.biases)} by the bias"
        )
        if not self.unreached:
            return text
        rows = [(path, reason) for path, reason in self.unreached.items()]
        return f"{text}; not reached:\n{_table(('path', 'reason'), rows)}"


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
        file_nbytes: size of the file that `corrq_jax.save` writes for the tree, all included;
            correlations, which it records on request, are about 20 bytes a tensor more.
        budget: how bits were shared out, if there was a target.
        matched: which moments were matched, if they were.
    """

    rows: tuple[Row, ...]
    skipped: tuple[Skipped, ...]
    file_nbytes: int
    budget: Budget | None = None
    matched: Matched | None = None

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
        header = (
            *("path", "shape", "bits", "levels", "scales", "stored bits"),
            *("correlation", "1 - rho^2", "bytes"),
        )
        lines = [
            (
                row.path,
                "x".join(map(str, row.shape)),
                str(row.bits),
                str(row.levels),
                str(row.rows) if row.rows > 1 else "",
                f"{row.bits_per_weight:.3f}",
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
        if self.budget is not None:
            parts.append(str(self.budget))
        if self.matched is not None:
            parts.append(str(self.matched))
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
