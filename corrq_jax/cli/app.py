"""The application: its commands and what an error looks like."""

import sys
import warnings
from typing import Annotated

import typer

from corrq_jax.cli import compare, files, measure, reproduce
from corrq_jax.cli.compiled import keep_compiled
from corrq_jax.cli.show import errors
from corrq_jax.errors import CorrqError

app = typer.Typer(
    name="corrq",
    help="Trained networks in 1 to 8 bits a weight by maximal correlation: no data, no retraining.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
files.register(app)
measure.register(app)
reproduce.register(app)
compare.register(app)

_debug = False
_MOST_LINES = 10


def _version(wanted: bool) -> None:
    if wanted:
        from corrq_jax import __version__

        print(f"corrq {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    del version
    global _debug
    _debug = debug
    keep_compiled()


def run() -> None:
    """Run the command line on the process's arguments."""
    warnings.showwarning = _show_warning
    try:
        app()
    except (CorrqError, OSError) as error:
        if _debug:
            raise
        errors.print(f"corrq: error: {_one_line(error)}", markup=False, highlight=False)
        sys.exit(1)


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}"
    first, *more = [" ".join(line.split()) for line in str(error).splitlines()] or [""]
    if len(more) > _MOST_LINES:
        more = [*more[:_MOST_LINES], f"and {len(more) - _MOST_LINES} more (--debug shows all)"]
    return f"{first} {'; '.join(more)}".strip()


def _show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    del category, filename, lineno, file, line
    errors.print(f"corrq: warning: {message}", markup=False, highlight=False)
