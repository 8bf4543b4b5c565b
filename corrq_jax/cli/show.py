"""Tables and progress on the terminal; plain and quiet where it is none."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text

from corrq_jax.evaluation import change_interval
from corrq_jax.paper import Comparison
from corrq_jax.results import Result, Run

# A pipe gets lines of any length, so that no cell is cut.
output = Console(soft_wrap=False, width=None if Console().is_terminal else 200, highlight=False)
errors = Console(stderr=True, soft_wrap=True)


@contextmanager
def progress(what: str, total: int) -> Iterator:
    """A bar on stderr that shows what is being done; yields ``advance(text)``."""
    columns = (
        TextColumn("{task.description}", style="bold", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[now]}", markup=False),
    )
    with Progress(*columns, console=errors, disable=not errors.is_terminal) as bar:
        task = bar.add_task(what, total=total, now="")

        def advance(now: str = "", step: int = 1) -> None:
            bar.update(task, advance=step, now=now)

        yield advance


@contextmanager
def byte_progress(what: str) -> Iterator[Callable[[str, int, int], None]]:
    """A bar on stderr of bytes, with the rate and the time left.

    Yields ``advance(text, done, all)``. Quiet where stderr is no terminal.
    """
    columns = (
        TextColumn("{task.description}", style="bold", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[now]}", markup=False),
    )
    with Progress(*columns, console=errors, disable=not errors.is_terminal) as bar:
        task = bar.add_task(what, total=None, now="")

        def advance(now: str, done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, now=now)

        yield advance


def table(title: str | None, columns: Iterable[str], rows: Iterable[Iterable[str]]) -> Table:
    """A table whose first column is text and whose others are figures; none of them is all empty.

    What a narrow terminal has no room for goes on in the next line: nothing is cut. Brackets in
    names are no markup.
    """
    above = None if title is None else Text(title)
    made = Table(title=above, title_justify="left", header_style="bold")
    named = zip(columns, zip(*rows, strict=True), strict=False)
    filled = [(name, cells) for name, cells in named if any(cells)]
    for i, (name, _) in enumerate(filled):
        made.add_column(name, justify="left" if i == 0 else "right", overflow="fold")
    for row in zip(*(cells for _, cells in filled), strict=True):
        made.add_row(*map(Text, row))
    return made


def megabytes(nbytes: float) -> str:
    """Bytes as text, in units of a million bytes."""
    return f"{nbytes / 1e6:.2f} MB" if nbytes >= 1e5 else f"{nbytes / 1e3:.2f} kB"


def results_table(run: Run) -> Table:
    """The results of a sweep: sizes, correlations, and fidelity where it was measured."""
    measured = run.views > 0
    columns = ["method", "bits", "bits/weight", "file", "mean rho", "min rho"]
    if measured:
        columns += [f"top-1 of {run.photos}", "change, 95 %", "top-5"]
        columns += [f"agreement of {run.views}", "KL"]
    rows = [[*_sizes(r), *(_fidelity(r, run) if measured else [])] for r in run.results]
    first = ["float", "32", "32.000", megabytes(run.float_nbytes), "1", "1"]
    if measured:
        first += [_percent(run.float_top1), "", _percent(run.float_top5), "100.0 %", "0"]
    title = f"{run.network}: {run.weights:,} quantized weights"
    if any(r.peer for r in run.results):
        title += "\n(peer): another library's quantizer, its size without a header"
    return table(title, columns, [first, *rows])


def _sizes(r: Result) -> list[str]:
    return [
        f"{r.method} (peer)" if r.peer else r.method,
        f"{r.bits:g}",
        f"{r.bits_per_weight:.3f}",
        megabytes(r.file_nbytes),
        f"{r.mean_correlation:.5f}",
        f"{r.min_correlation:.5f}",
    ]


def _fidelity(r: Result, run: Run) -> list[str]:
    kl = "-" if r.kl is None else f"{r.kl:.3f}"
    return [_percent(r.top1), _change(r, run), _percent(r.top5), _percent(r.agreement), kl]


def _change(r: Result, run: Run) -> str:
    """The interval of the change of top-1 in percent; views of one photo tell nothing of it."""
    if r.lost is None or r.gained is None or run.views != run.photos:
        return ""
    low, high = change_interval(r.lost, r.gained, run.views)
    return f"{100 * low:+.2f} to {100 * high:+.2f}"


def published_table(
    published: Iterable[Comparison], run: Run, of_float: tuple[float, float]
) -> Table:
    """The papers' top-5 beside what was measured; of the float network keras.io's."""
    columns = ("published", "bits", "top-5", "measured", "top-5 here")
    rows = [["keras.io", "32", f"{100 * of_float[1]:.1f} %", "float", _percent(run.float_top5)]]
    for one in published:
        for method, top5 in one.measured or (("not run", None),):
            figure = one.published
            share = f"{100 * figure.top5:.0f} %"
            rows.append([f"Part {figure.part}", str(figure.bits), share, method, _percent(top5)])
    title = "Beside the published figures (docs/reproduce.md)"
    if run.photos < 1000:
        title += f"\n{run.photos} pictures are no test set: this only shows that all works"
    return table(title, columns, rows)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"
