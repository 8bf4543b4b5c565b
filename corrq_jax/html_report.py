"""A run as one self-contained HTML page, with its figures and its numbers as files beside it."""

import dataclasses
import importlib.resources
import os
import pathlib
from collections.abc import Callable, Sequence

from corrq_jax.atomic import atomic_write
from corrq_jax.errors import require
from corrq_jax.html_figures import (
    Picture,
    correlation,
    has_accuracy,
    is_data_set,
    is_few,
    percent,
    pictures,
    pictures_text,
)
from corrq_jax.paper import FLOAT, Comparison
from corrq_jax.plot_style import bits_text
from corrq_jax.results import Result, Run


@dataclasses.dataclass(frozen=True)
class _Column:
    """A column of the results table; `best` is max, min, or None where neither is better."""

    heading: str
    meaning: str
    value: Callable[[Result], float | None]
    text: Callable[[float], str]
    best: Callable[[Sequence[float]], float] | None = None


@dataclasses.dataclass(frozen=True)
class _Cell:
    text: str
    is_best: bool = False


@dataclasses.dataclass(frozen=True)
class _Headline:
    """The smallest file that keeps a given share of the float network's answers."""

    agreement: str
    result: Result
    megabytes: str
    smaller: str


@dataclasses.dataclass(frozen=True)
class _PublishedRow:
    """A figure of the papers, and lines on what was measured in its place."""

    what: str
    bits: str
    published: str
    measured: Sequence[str]


def render(run: Run, published: Sequence[Comparison] = ()) -> str:
    """The page of a run: no file and no address outside it is needed to show it.

    Args:
        run: what was measured; at least one result.
        published: figures of the papers to show beside it, from `corrq_jax.paper.beside`.

    Returns:
        The HTML text. Names from the run are escaped.

    Raises:
        InputError: the run has no results.
        MissingDependencyError: matplotlib or jinja2 is not installed.
    """
    return _page(run, pictures(run), published)


def write_report(
    run: Run,
    directory: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    published: Sequence[Comparison] = (),
) -> tuple[pathlib.Path, ...]:
    """Writes `index.html`, its figures as PNG files, `results.json` and `results.csv`.

    Each file appears whole or not at all, and index.html last.

    Args:
        run: what was measured; at least one result.
        directory: the folder; made when it does not exist, in a folder that does.
        overwrite: whether the files of an earlier report may be replaced.
        published: as for `render`.

    Returns:
        The paths of the written files; the page is the last.

    Raises:
        InputError: the run has no results.
        FileExistsError: one of the files exists and `overwrite` is False; none is written then.
        NotADirectoryError: `directory` is a file.
        OSError: a file cannot be written.
        MissingDependencyError: matplotlib or jinja2 is not installed.
    """
    figures = pictures(run)
    files = {figure.file: figure.png for figure in figures}
    files["results.json"] = run.to_json().encode()
    files["results.csv"] = run.to_csv().encode()
    files["index.html"] = _page(run, figures, published).encode()
    folder = _folder(directory, files, overwrite=overwrite)
    for name, data in files.items():
        with atomic_write(folder / name, overwrite=overwrite) as temporary:
            temporary.write_bytes(data)
    return tuple(folder / name for name in files)


def _folder(
    directory: str | os.PathLike[str], names: Sequence[str] | dict[str, bytes], *, overwrite: bool
) -> pathlib.Path:
    """The folder, made if need be, in which all of `names` can be written."""
    folder = pathlib.Path(directory)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder}: a file; give a folder for the report")
    there = [name for name in names if (folder / name).exists()]
    if there and not overwrite:
        raise FileExistsError(
            f"{folder}: has {', '.join(there)} already; choose another folder, or allow "
            "overwriting (overwrite=True)"
        )
    folder.mkdir(exist_ok=True)
    return folder


def _page(run: Run, figures: Sequence[Picture], published: Sequence[Comparison]) -> str:
    jinja2 = require("jinja2", "plots")
    source = importlib.resources.files("corrq_jax") / "templates" / "report.html"
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    columns = _columns(run)
    return environment.from_string(source.read_text(encoding="utf-8")).render(
        run=run,
        figures=figures,
        columns=columns,
        float_cells=_float_cells(run, columns),
        groups=_groups(run, columns),
        headlines=_headlines(run),
        float_megabytes=_megabytes(run.float_nbytes),
        megabytes=_megabytes,
        percent=percent,
        bits_text=bits_text,
        has_peers=any(result.peer for result in run.results),
        correlation=correlation,
        published=_published_rows(run, published),
        pictures=pictures_text(run),
        data=run.environment.get("data"),
        is_data_set=is_data_set(run),
        is_few=is_few(run),
        has_accuracy=has_accuracy(run.results),
        has_fidelity=any(r.agreement is not None or r.kl is not None for r in run.results),
    )


def _published_rows(run: Run, published: Sequence[Comparison]) -> list[_PublishedRow]:
    """The float network, as far as its figures are known, and the figures of the papers."""
    networks = dict.fromkeys(one.published.network for one in published)
    here = f"{percent(run.float_top5)} (top-1 {percent(run.float_top1)})"
    known = [FLOAT[name] for name in networks if name in FLOAT]
    rows = [
        _PublishedRow(
            *("float network", "–", f"{percent(top5)} (top-1 {percent(top1)})", [here])  # noqa: RUF001
        )
        for top1, top5 in known
    ]
    for one in published:
        figure = one.published
        measured = [f"{method}: {percent(top5)}" for method, top5 in one.measured]
        share = f"{100 * figure.top5:.0f}%"
        row = _PublishedRow(f"Part {figure.part}", str(figure.bits), share, measured or ["not run"])
        rows.append(row)
    return rows


def _columns(run: Run) -> list[_Column]:
    """The columns in which at least one result has a value."""
    columns = [
        _Column("MB", "size of the file on disk", lambda r: r.file_nbytes, _megabytes, min),
        _Column(
            "smaller",
            "the float file's size divided by this file's",
            lambda r: run.float_nbytes / r.file_nbytes if r.file_nbytes else None,
            lambda x: f"{x:.1f}×",  # noqa: RUF001
        ),
        _Column(
            *("agreement", "same best class as the float network"),
            *(lambda r: r.agreement, percent, max),
        ),
        _Column(
            *("KL", "divergence from the float network's output, in nats"),
            *(lambda r: r.kl, lambda x: f"{x:#.3g}".rstrip("."), min),
        ),
        _Column(
            *("1 − ρ²", "share of variance lost, of the mean ρ"),  # noqa: RUF001
            *(lambda r: r.noise, lambda x: f"{x:.2e}", min),
        ),
        _Column("mean ρ", "mean over layers", lambda r: r.mean_correlation, correlation, max),  # noqa: RUF001
        _Column("min ρ", "the worst layer", lambda r: r.min_correlation, correlation, max),  # noqa: RUF001
        _Column("top-1", "the label is the best class", lambda r: r.top1, percent, max),
        _Column("top-5", "the label is among the best five", lambda r: r.top5, percent, max),
        _Column(
            *("logit ρ", "correlation of the logits with the float network's"),  # noqa: RUF001
            *(lambda r: r.logit_correlation, correlation, max),
        ),
        _Column(
            *("bits / weight", "stored bits a quantized weight, everything counted"),
            *(lambda r: r.bits_per_weight, lambda x: f"{x:.2f}"),
        ),
    ]
    return [c for c in columns if any(c.value(result) is not None for result in run.results)]


def _float_cells(run: Run, columns: Sequence[_Column]) -> list[str]:
    """The float network's own row, as far as it has values."""
    known = {
        "MB": _megabytes(run.float_nbytes),
        "smaller": "1.0×",  # noqa: RUF001
        "top-1": percent(run.float_top1),
        "top-5": percent(run.float_top5),
    }
    return [known.get(column.heading, "–") for column in columns]  # noqa: RUF001


def _groups(
    run: Run, columns: Sequence[_Column]
) -> list[tuple[float, list[tuple[Result, list[_Cell]]]]]:
    """The table's rows, grouped by bits, peers last, with the best of every group marked."""
    groups = []
    for bits in sorted({result.bits for result in run.results}):
        results = [result for result in run.results if result.bits == bits]
        results.sort(key=lambda result: result.peer)
        by_column = [_cells(column, results) for column in columns]
        rows = [(result, [cells[i] for cells in by_column]) for i, result in enumerate(results)]
        groups.append((bits, rows))
    return groups


def _cells(column: _Column, results: Sequence[Result]) -> list[_Cell]:
    """A column of one group. The best is what reads as the best; nothing is where all do."""
    values = [column.value(result) for result in results]
    texts = ["–" if value is None else column.text(value) for value in values]  # noqa: RUF001
    known = [value for value in values if value is not None]
    best = column.text(column.best(known)) if column.best and len(known) > 1 else None
    if len(set(texts)) == 1:
        best = None
    return [_Cell(text, text == best) for text in texts]


def _headlines(run: Run) -> list[_Headline]:
    """The smallest file for each of three levels of agreement; one only once, and no peer's."""
    headlines: list[_Headline] = []
    own = [(r, r.agreement) for r in run.results if r.agreement is not None and not r.peer]
    for level in (0.99, 0.95, 0.90):
        good = [result for result, agreement in own if agreement >= level]
        if not good:
            continue
        result = min(good, key=lambda r: (r.file_nbytes, -(r.agreement or 0)))
        if any(result is other.result for other in headlines):
            continue
        smaller = f"{run.float_nbytes / max(result.file_nbytes, 1):.1f}"
        size = _megabytes(result.file_nbytes)
        headlines.append(_Headline(f"{level:.0%}", result, size, smaller))
    return headlines


def _megabytes(nbytes: float) -> str:
    return f"{nbytes / 1e6:.2f}" if nbytes < 1e8 else f"{nbytes / 1e6:,.0f}"
