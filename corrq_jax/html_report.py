"""Runs as one self-contained HTML page, with figures and numbers as files beside it."""

import base64
import hashlib
import importlib.resources
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from corrq_jax.atomic import atomic_write
from corrq_jax.errors import InputError, require
from corrq_jax.figure_files import figure_files
from corrq_jax.html_data import page_data
from corrq_jax.html_table import columns_of, float_cells, groups, headlines, published_rows
from corrq_jax.html_text import (
    has_accuracy,
    is_data_set,
    is_few,
    megabytes,
    percent,
    pictures_text,
)
from corrq_jax.method_styles import bits_text
from corrq_jax.paper import Comparison
from corrq_jax.results import Run

_SCRIPTS = ("charts.js", "sections.js", "page.js")


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
    return render_runs({run.network: run}, published)


def render_runs(runs: Mapping[str, Run], published: Sequence[Comparison] = ()) -> str:
    """The page of several runs, to be compared with each other.

    Args:
        runs: by the names that the page gives them; at least one, each with a result.
        published: as for `render`; only for one run.

    Returns:
        The HTML text.

    Raises:
        InputError: there is no run, or one has no results.
        MissingDependencyError: matplotlib or jinja2 is not installed.
    """
    if not runs:
        raise InputError("no run to report; give at least one")
    for run in runs.values():
        if not run.results:
            raise InputError(
                f"run of {run.network!r}: no results to report; give at least one Result"
            )
    return _page(runs, published)


def write_report(
    run: Run,
    directory: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    published: Sequence[Comparison] = (),
) -> tuple[pathlib.Path, ...]:
    """Writes `index.html`, `results.json`, `results.csv`, and figures as PNG files.

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
    page = render(run, published)
    files = figure_files(run)
    files["results.json"] = run.to_json().encode()
    files["results.csv"] = run.to_csv().encode()
    files["index.html"] = page.encode()
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


def _page(runs: Mapping[str, Run], published: Sequence[Comparison]) -> str:
    jinja2 = require("jinja2", "plots")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    script = '"use strict";\n' + "\n".join(map(_template, _SCRIPTS))
    first, all_runs = next(iter(runs.values())), list(runs.values())
    results = [result for run in all_runs for result in run.results]
    columns = columns_of(all_runs)
    return environment.from_string(_template("report.html")).render(
        runs=runs,
        run=first,
        results=results,
        title=" and ".join(dict.fromkeys(run.network for run in all_runs)),
        style=_template("style.css"),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        data=_for_script(page_data(runs)),
        columns=columns,
        float_rows={name: float_cells(run, columns) for name, run in runs.items()},
        groups=groups(all_runs, columns),
        headlines={name: headlines(run) for name, run in runs.items()},
        published=published_rows(first, published),
        about=_about(runs),
        megabytes=megabytes,
        percent=percent,
        bits_text=bits_text,
        pictures_text=pictures_text,
        is_data_set=is_data_set,
        is_few=is_few,
        has_accuracy=has_accuracy,
        has_peers=any(result.peer for result in results),
        has_fidelity=any(r.agreement is not None or r.kl is not None for r in results),
    )


def _template(name: str) -> str:
    source = importlib.resources.files("corrq_jax") / "templates" / name
    return source.read_text(encoding="utf-8")


def _for_script(value: Any) -> str:
    """JSON that can stand in a script element: nothing in it ends the element."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _about(runs: Mapping[str, Run]) -> dict[str, list[str]]:
    """What is known of each run's circumstances: a value for each run, by name."""
    names = dict.fromkeys(name for run in runs.values() for name in run.environment)
    return {name: [run.environment.get(name, "–") for run in runs.values()] for name in names}  # noqa: RUF001
