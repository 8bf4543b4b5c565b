"""The tables of a report that need no script: results, the smallest files, published figures."""

import dataclasses
from collections.abc import Callable, Sequence

from corrq_jax.html_text import correlation, megabytes, percent
from corrq_jax.paper import FLOAT, Comparison
from corrq_jax.results import Result, Run


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of the results table; `best` is max, min, or None where neither is better."""

    heading: str
    meaning: str
    value: Callable[[Run, Result], float | None]
    text: Callable[[float], str]
    best: Callable[[Sequence[float]], float] | None = None


@dataclasses.dataclass(frozen=True)
class Cell:
    """A cell of the results table; `sort` is what it is sorted by."""

    text: str
    sort: float | None = None
    is_best: bool = False


@dataclasses.dataclass(frozen=True)
class Headline:
    """The smallest file that keeps a given share of the float network's answers."""

    agreement: str
    result: Result
    megabytes: str
    smaller: str


@dataclasses.dataclass(frozen=True)
class PublishedRow:
    """A figure of the papers, and lines on what was measured in its place."""

    what: str
    bits: str
    published: str
    measured: Sequence[str]


@dataclasses.dataclass(frozen=True)
class Row:
    """A result in the table; `number` is its number among all results of the page."""

    number: int
    run: int
    result: Result
    cells: Sequence[Cell]


def columns_of(runs: Sequence[Run]) -> list[Column]:
    """The columns in which at least one result has a value."""
    columns = [
        Column(
            *("MB", "size of the file on disk, in millions of bytes"),
            *(lambda _, r: r.file_nbytes, megabytes, min),
        ),
        Column(
            *("smaller", "the float file's size divided by this file's"),
            lambda run, r: run.float_nbytes / r.file_nbytes if r.file_nbytes else None,
            lambda x: f"{x:.1f}×",  # noqa: RUF001
        ),
        Column(
            *("agreement", "share of pictures with the same best class as the float network"),
            *(lambda _, r: r.agreement, percent, max),
        ),
        Column(
            *("KL", "mean divergence from the float network's output, in nats"),
            *(lambda _, r: r.kl, lambda x: f"{x:#.3g}".rstrip("."), min),
        ),
        Column(
            *("1 − ρ²", "share of variance lost, of the mean ρ"),  # noqa: RUF001
            *(lambda _, r: r.noise, lambda x: f"{x:.2e}", min),
        ),
        Column("mean ρ", "mean over layers", lambda _, r: r.mean_correlation, correlation, max),  # noqa: RUF001
        Column("min ρ", "the worst layer", lambda _, r: r.min_correlation, correlation, max),  # noqa: RUF001
        Column("top-1", "the label is the best class", lambda _, r: r.top1, percent, max),
        Column("top-5", "the label is among the best five", lambda _, r: r.top5, percent, max),
        Column(
            *("logit ρ", "correlation of the logits with the float network's"),  # noqa: RUF001
            *(lambda _, r: r.logit_correlation, correlation, max),
        ),
        Column(
            *("bits / weight", "stored bits a quantized weight, everything counted"),
            *(lambda _, r: r.bits_per_weight, lambda x: f"{x:.2f}"),
        ),
    ]
    return [
        c for c in columns if any(c.value(run, r) is not None for run in runs for r in run.results)
    ]


def float_cells(run: Run, columns: Sequence[Column]) -> list[Cell]:
    """The float network's own row, as far as it has values."""
    known: dict[str, Cell] = {
        "MB": Cell(megabytes(run.float_nbytes), run.float_nbytes),
        "smaller": Cell("1.0×", 1),  # noqa: RUF001
        "top-1": Cell(percent(run.float_top1), run.float_top1),
        "top-5": Cell(percent(run.float_top5), run.float_top5),
    }
    return [known.get(column.heading, Cell("–")) for column in columns]  # noqa: RUF001


def groups(runs: Sequence[Run], columns: Sequence[Column]) -> list[tuple[float, list[Row]]]:
    """The table's rows, grouped by bits, peers last, with the best of every group marked.

    Results are numbered as they come, run by run.
    """
    numbered = [(i, run, r) for i, run in enumerate(runs) for r in run.results]
    found = []
    for bits in sorted({result.bits for _, _, result in numbered}):
        members = [(n, *one) for n, one in enumerate(numbered) if one[2].bits == bits]
        members.sort(key=lambda member: member[3].peer)
        by_column = [_cells(column, [(run, r) for _, _, run, r in members]) for column in columns]
        rows = [
            Row(number, i, result, [cells[place] for cells in by_column])
            for place, (number, i, _, result) in enumerate(members)
        ]
        found.append((bits, rows))
    return found


def _cells(column: Column, results: Sequence[tuple[Run, Result]]) -> list[Cell]:
    """A column of one group. The best is what reads as the best; nothing is where all do."""
    values = [column.value(run, result) for run, result in results]
    texts = ["–" if value is None else column.text(value) for value in values]  # noqa: RUF001
    known = [value for value in values if value is not None]
    best = column.text(column.best(known)) if column.best and len(known) > 1 else None
    if len(set(texts)) == 1:
        best = None
    return [Cell(text, value, text == best) for text, value in zip(texts, values, strict=True)]


def headlines(run: Run) -> list[Headline]:
    """The smallest file for each of three levels of agreement; one only once, and no peer's."""
    found: list[Headline] = []
    own = [(r, r.agreement) for r in run.results if r.agreement is not None and not r.peer]
    for level in (0.99, 0.95, 0.90):
        good = [result for result, agreement in own if agreement >= level]
        if not good:
            continue
        result = min(good, key=lambda r: (r.file_nbytes, -(r.agreement or 0)))
        if any(result is other.result for other in found):
            continue
        smaller = f"{run.float_nbytes / max(result.file_nbytes, 1):.1f}"
        found.append(Headline(f"{level:.0%}", result, megabytes(result.file_nbytes), smaller))
    return found


def published_rows(run: Run, published: Sequence[Comparison]) -> list[PublishedRow]:
    """The float network, as far as its figures are known, and the figures of the papers."""
    networks = dict.fromkeys(one.published.network for one in published)
    here = f"{percent(run.float_top5)} (top-1 {percent(run.float_top1)})"
    known = [FLOAT[name] for name in networks if name in FLOAT]
    rows = [
        PublishedRow(
            *("float network", "–", f"{percent(top5)} (top-1 {percent(top1)})", [here])  # noqa: RUF001
        )
        for top1, top5 in known
    ]
    for one in published:
        figure = one.published
        measured = [f"{method}: {percent(top5)}" for method, top5 in one.measured]
        share = f"{100 * figure.top5:.0f}%"
        rows.append(
            PublishedRow(f"Part {figure.part}", str(figure.bits), share, measured or ["not run"])
        )
    return rows
