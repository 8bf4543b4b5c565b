"""Numbers of a report in words, and what its pictures are."""

from collections.abc import Sequence

from corrq_jax.results import Result, Run

_FEW = 1000  # pictures; fewer are no test set


def percent(share: float | None) -> str:
    """A share as in "97.3%", or a dash."""
    return "–" if share is None else f"{100 * share:.1f}%"  # noqa: RUF001


def correlation(rho: float | None) -> str:
    """A correlation to five places, or a dash."""
    return "–" if rho is None else f"{rho:.5f}"  # noqa: RUF001


def megabytes(nbytes: float) -> str:
    """Bytes in units of a million, as in "2.09"."""
    return f"{nbytes / 1e6:.2f}" if nbytes < 1e8 else f"{nbytes / 1e6:,.0f}"


def is_data_set(run: Run) -> bool:
    """Whether the pictures are a data set, of which each is seen once, and not views of photos."""
    return run.views == run.photos > 0


def is_few(run: Run) -> bool:
    """Whether the pictures are too few for a test set."""
    return run.photos < _FEW


def has_accuracy(results: Sequence[Result]) -> bool:
    """Whether top-1 or top-5 was measured."""
    return any(r.top1 is not None or r.top5 is not None for r in results)


def pictures_text(run: Run) -> str:
    """What outputs were compared on: "50,000 pictures" or "240 views of 24 photos"."""
    if not is_data_set(run):
        return f"{run.views:,} views of {run.photos:,} photos"
    return "1 picture" if run.photos == 1 else f"{run.photos:,} pictures"
