"""The command that sets runs side by side."""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from corrq_jax.atomic import atomic_write
from corrq_jax.cli.files import AsJson, Force
from corrq_jax.cli.show import errors, megabytes, output, table
from corrq_jax.errors import InputError

if TYPE_CHECKING:
    from corrq_jax.comparison import Change, Side
    from corrq_jax.results import Run


def register(app: typer.Typer) -> None:
    """Add this command."""
    app.command(
        epilog="Examples:\n\n  corrq compare monday tuesday -o both.html\n\n"
        "  corrq compare lite0/results.json lite1/results.json --json"
    )(compare)


def compare(
    sources: Annotated[
        list[pathlib.Path],
        typer.Argument(metavar="RUN...", help="Reports: folders, or the results.json in them."),
    ],
    out: Annotated[
        pathlib.Path | None, typer.Option("-o", "--output", help="Also write a page here, .html.")
    ] = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Set runs side by side: the same methods at the same bits, with 95 % intervals.

    Any results.json of demo, sweep or reproduce will do, of one network or of several. The page
    shows all of their results, each beside any other.
    """
    from corrq_jax.comparison import side_by_side

    if out is not None:
        _check_page(out, force)
    runs = _named(sources)
    if out is not None:
        from corrq_jax.html_report import render_runs

        text = render_runs(runs)
        with atomic_write(out, overwrite=force) as temporary:
            temporary.write_text(text, encoding="utf-8")
        errors.print(f"wrote {out}", markup=False, highlight=False)
    rows = side_by_side(runs)
    if as_json:
        print(json.dumps([[dataclasses.asdict(side) for side in row] for row in rows]))
        return
    columns = (
        *("method", "bits", "run", "file", "mean rho", "agreement", "change, points"),
        *("KL", "change of KL"),
    )
    cells = [_cells(side, i == 0) for row in rows for i, side in enumerate(row)]
    output.print(table("Changes are from the first run; 95 % intervals", columns, cells))


def _check_page(out: pathlib.Path, force: bool) -> None:
    if out.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"{out}: the page is HTML; name it with .html")
    if out.exists() and not force:
        raise InputError(f"{out} exists; choose another name or add --force")
    if not out.parent.is_dir():
        raise InputError(f"the folder {out.parent} does not exist; make it first")


def _named(sources: Sequence[pathlib.Path]) -> "dict[str, Run]":
    """The runs by short names that tell them apart."""
    paths = [path / "results.json" if path.is_dir() else path for path in sources]
    short = [p.resolve().parent.name if p.name == "results.json" else p.stem for p in paths]
    names = [n if short.count(n) == 1 else str(p) for n, p in zip(short, paths, strict=True)]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{name} is given twice; give each run once")
    return {name: _read(path) for name, path in zip(names, paths, strict=True)}


def _read(path: pathlib.Path) -> "Run":
    from corrq_jax.results import Run

    if not path.is_file():
        raise InputError(f"{path}: there is no such file; give a report's folder or results.json")
    try:
        return Run.from_json(path.read_text(encoding="utf-8"))
    except (InputError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: {error}") from error


def _cells(side: "Side", is_first: bool) -> list[Any]:
    result = side.result
    name = f"{result.method} (peer)" if result.peer else result.method
    return [
        name if is_first else "",
        f"{result.bits:g}" if is_first else "",
        side.run,
        megabytes(result.file_nbytes),
        f"{result.mean_correlation:.5f}",
        "-" if result.agreement is None else f"{100 * result.agreement:.1f} %",
        _change(side.agreement, 100, ".1f"),
        "-" if result.kl is None else f"{result.kl:.3g}",
        _change(side.kl, 1, ".3f"),
    ]


def _change(change: "Change | None", unit: float, form: str) -> str:
    if change is None:
        return ""
    text = f"{unit * change.value:+{form}}"
    if change.low is None or change.high is None:
        return text
    return f"{text} ({unit * change.low:+{form}} to {unit * change.high:+{form}})"
