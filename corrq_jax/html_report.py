"""A run as one self-contained HTML page, with its figures and its numbers as files beside it."""

import base64
import dataclasses
import importlib.resources
import os
import pathlib
from collections.abc import Callable, Sequence

from corrq_jax import plots
from corrq_jax.atomic import atomic_write
from corrq_jax.errors import InputError, require
from corrq_jax.results import Result, Run


@dataclasses.dataclass(frozen=True)
class _Figure:
    """A picture in the page and on disk."""

    file: str
    png: bytes
    alt: str
    caption: str

    @property
    def uri(self) -> str:
        return "data:image/png;base64," + base64.b64encode(self.png).decode("ascii")


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


def render(run: Run) -> str:
    """The page of a run: no file and no address outside it is needed to show it.

    Args:
        run: what was measured; at least one result.

    Returns:
        The HTML text. Names from the run are escaped.

    Raises:
        InputError: the run has no results.
        MissingDependencyError: matplotlib or jinja2 is not installed.
    """
    return _page(run, _figures(run))


def write_report(
    run: Run, directory: str | os.PathLike[str], *, overwrite: bool = False
) -> tuple[pathlib.Path, ...]:
    """Writes `index.html`, its figures as PNG files, `results.json` and `results.csv`.

    Each file appears whole or not at all, and index.html last.

    Args:
        run: what was measured; at least one result.
        directory: the folder; made when it does not exist, in a folder that does.
        overwrite: whether the files of an earlier report may be replaced.

    Returns:
        The paths of the written files; the page is the last.

    Raises:
        InputError: the run has no results.
        FileExistsError: one of the files exists and `overwrite` is False; none is written then.
        NotADirectoryError: `directory` is a file.
        OSError: a file cannot be written.
        MissingDependencyError: matplotlib or jinja2 is not installed.
    """
    figures = _figures(run)
    files = {figure.file: figure.png for figure in figures}
    files["results.json"] = run.to_json().encode()
    files["results.csv"] = run.to_csv().encode()
    files["index.html"] = _page(run, figures).encode()
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


def _page(run: Run, figures: Sequence[_Figure]) -> str:
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
        percent=_percent,
        bits_text=_bits_text,
        has_peers=any(result.peer for result in run.results),
        correlation=_correlation,
    )


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
            *(lambda r: r.agreement, _percent, max),
        ),
        _Column(
            *("KL", "divergence from the float network's output, in nats"),
            *(lambda r: r.kl, lambda x: f"{x:#.3g}".rstrip("."), min),
        ),
        _Column(
            *("1 − ρ²", "share of variance lost, of the mean ρ"),  # noqa: RUF001
            *(lambda r: r.noise, lambda x: f"{x:.2e}", min),
        ),
        _Column("mean ρ", "mean over layers", lambda r: r.mean_correlation, _correlation, max),  # noqa: RUF001
        _Column("min ρ", "the worst layer", lambda r: r.min_correlation, _correlation, max),  # noqa: RUF001
        _Column("top-1", "the label is the best class", lambda r: r.top1, _percent, max),
        _Column("top-5", "the label is among the best five", lambda r: r.top5, _percent, max),
        _Column(
            *("logit ρ", "correlation of the logits with the float network's"),  # noqa: RUF001
            *(lambda r: r.logit_correlation, _correlation, max),
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
        "top-1": _percent(run.float_top1),
        "top-5": _percent(run.float_top5),
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


def _figures(run: Run) -> list[_Figure]:
    if not run.results:
        raise InputError(f"run of {run.network!r}: no results to report; give at least one Result")
    figures = _comparisons(run, [r for r in run.results if not r.peer])
    if any(result.peer for result in run.results):
        figures += _comparisons(run, plots.beside_peers(run.results), "peers-")
    for number, layer in enumerate(run.densities, start=1):
        caption = plots.density_caption(layer)
        png = plots.png_bytes(plots.density_figure(layer))
        alt = f"Histogram of a layer's weights with quantization levels. {caption}"
        figures.append(_Figure(f"density-{number:02d}.png", png, alt, caption))
    return figures


def _comparisons(run: Run, results: Sequence[Result], prefix: str = "") -> list[_Figure]:
    """What results lose against the bits that they store, as far as it was measured."""
    figures = []
    if any(result.mean_correlation < 1 for result in results):
        figures.append(_correlation_figure(results, f"{prefix}correlation.png"))
    if any(r.agreement is not None or r.kl for r in results):
        figures.append(_fidelity_figure(run, results, f"{prefix}fidelity.png"))
    return figures


def _correlation_figure(results: Sequence[Result], file: str) -> _Figure:
    caption = (
        "The share of the weights' variance that quantization loses, 1 − ρ² with the mean "  # noqa: RUF001
        "correlation ρ over layers, against stored bits a quantized weight. Lower is better; one "  # noqa: RUF001
        f"more bit divides it by about four. {_counted(results)}"
    )
    values = [(r, f"{r.noise:.2g}") for r in results]
    alt = f"Line chart of 1 − ρ² against stored bits a weight. {_spoken(values)}"  # noqa: RUF001
    png = plots.png_bytes(plots.correlation_figure(results))
    return _Figure(file, png, alt, caption)


def _fidelity_figure(run: Run, results: Sequence[Result], file: str) -> _Figure:
    caption = (
        f"Agreement of the best class with the float network on {run.views:,} views of "
        f"{run.photos:,} photos (above) and the mean KL divergence from its output (below), "
        f"against stored bits a quantized weight. {_counted(results)}"
    )
    values = [(r, _percent(r.agreement)) for r in results if r.agreement is not None]
    alt = f"Line charts of agreement and KL against stored bits a weight. {_spoken(values)}"
    png = plots.png_bytes(plots.fidelity_figure(results))
    return _Figure(file, png, alt, caption)


def _counted(results: Sequence[Result]) -> str:
    """What stored bits are."""
    text = "Levels, scales and header are counted."
    if any(result.peer for result in results):
        text += (
            " Grey: other libraries' quantizers, counted without a header; beside a point of each, "
            "where there is room, what shares a scale."
        )
    return text


def _spoken(values: Sequence[tuple[Result, str]]) -> str:
    """The chart's values at the width that most methods have, for those who cannot see it."""
    if not values:
        return ""
    all_bits = [result.bits for result, _ in values]
    bits = max(sorted(set(all_bits)), key=all_bits.count)
    parts = [f"{result.method} {text}" for result, text in values if result.bits == bits]
    return f"At {bits:g} bits: {', '.join(parts)}."


def _megabytes(nbytes: float) -> str:
    return f"{nbytes / 1e6:.2f}" if nbytes < 1e8 else f"{nbytes / 1e6:,.0f}"


def _bits_text(bits: float) -> str:
    return "1 bit" if bits == 1 else f"{bits:g} bits"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}%"  # noqa: RUF001


def _correlation(rho: float | None) -> str:
    return "–" if rho is None else f"{rho:.5f}"  # noqa: RUF001
