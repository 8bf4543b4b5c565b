"""The command line, `corrq`: arguments and printing only; nothing imports it."""

import sys

from corrq_jax.errors import MissingDependencyError, missing


def main() -> None:
    """Run `corrq`; ends the process with 0, 1 for an error, or 2 for wrong usage."""
    try:
        from corrq_jax.cli.app import run
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in ("typer", "rich"):
            raise
        wanted: MissingDependencyError = missing(str(error.name), "cli")
        print(f"corrq: error: {wanted}", file=sys.stderr)
        sys.exit(1)
    run()
