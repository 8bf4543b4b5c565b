"""Several runs side by side: the same methods at the same bits, and how sure their differences are.

Results are numbered as they come, run by run.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from corrq_jax.details import FLOAT, Pictures, Predictions
from corrq_jax.intervals import mean_intervals
from corrq_jax.results import Result, Run

Ranges = dict[int, dict[int, tuple[float, float]]]
"""95 % intervals of the first result's figure less the second's, by their numbers, first < second.

They are there where both were measured on the same pictures, and recorded one by one."""


class Differences(NamedTuple):
    """Intervals of all pairs of results.

    Attributes:
        agreement: of agreement with the float network.
        kl: of the divergence from it.
        kl_alone: of each result's divergence itself.
    """

    agreement: Ranges
    kl: Ranges
    kl_alone: dict[int, tuple[float, float]]


@dataclasses.dataclass(frozen=True)
class Change:
    """A figure of one run less that of the first run, with its 95 % interval if there is one."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclasses.dataclass(frozen=True)
class Side:
    """A result in a row of `side_by_side`, and how it differs from the first run's.

    Attributes:
        run: the run's name.
        result: the result.
        agreement: change of agreement; None in the first run, or where it was not measured.
        kl: likewise.
        nbytes: likewise, of the file's size.
    """

    run: str
    result: Result
    agreement: Change | None
    kl: Change | None
    nbytes: Change | None


def side_by_side(runs: Mapping[str, Run]) -> list[list[Side]]:
    """The results of all runs by method and bits, in the order of the first run that has them.

    Args:
        runs: by name; each list of the result has one `Side` for each run that has the method at
            these bits. Changes are from the first of them.
    """
    ranges = differences(list(runs.values()))
    rows: dict[str, list[tuple[str, int, Result]]] = {}
    number = 0
    for name, run in runs.items():
        for result in run.results:
            rows.setdefault(result.key, []).append((name, number, result))
            number += 1
    return [list(_sides(row, ranges)) for row in rows.values()]


def _sides(row: Sequence[tuple[str, int, Result]], ranges: Differences) -> Iterator[Side]:
    _, base, first = row[0]
    for name, number, result in row:
        if number == base:
            yield Side(name, result, None, None, None)
            continue
        yield Side(
            name,
            result,
            _change(first.agreement, result.agreement, ranges.agreement.get(base, {}), number),
            _change(first.kl, result.kl, ranges.kl.get(base, {}), number),
            Change(float(result.file_nbytes - first.file_nbytes)),
        )


def _change(
    before: float | None,
    after: float | None,
    ranges: Mapping[int, tuple[float, float]],
    number: int,
) -> Change | None:
    if before is None or after is None:
        return None
    if number not in ranges:
        return Change(after - before)
    low, high = ranges[number]  # of the first less this one
    return Change(after - before, -high, -low)


def differences(runs: Sequence[Run]) -> Differences:
    """The intervals of all pairs of results on the same pictures."""
    found = Differences({}, {}, {})
    for members in _on_the_same_pictures(runs):
        _add_pairs(found.agreement, _agreements(members))
        found.kl_alone.update(_add_pairs(found.kl, _divergences(members)))
    return found


def _add_pairs(ranges: Ranges, values: Mapping[int, np.ndarray]) -> dict[int, tuple[float, float]]:
    """Adds the intervals of all pairs; gives back those of each result alone."""
    if not values:
        return {}
    numbers = list(values)
    alone, pairs = mean_intervals(np.stack(list(values.values())))
    for a, i in enumerate(numbers):
        ranges[i] = {
            j: (float(pairs[a, b, 0]), float(pairs[a, b, 1]))
            for b, j in enumerate(numbers)
            if j > i
        }
    return {i: (float(alone[a, 0]), float(alone[a, 1])) for a, i in enumerate(numbers)}


class _Member(NamedTuple):
    number: int
    pictures: Pictures
    answers: Predictions


def _on_the_same_pictures(runs: Sequence[Run]) -> list[list[_Member]]:
    """The results whose answers were recorded, a list for each set of pictures."""
    found: dict[Any, list[_Member]] = {}
    number = 0
    for run in runs:
        for result in run.results:
            pictures = run.pictures
            known = pictures.predictions.get(result.key) if pictures else None
            if pictures and known and FLOAT in pictures.predictions:
                same = (pictures.labels, pictures.views, run.environment.get("data"))
                found.setdefault(same, []).append(_Member(number, pictures, known))
            number += 1
    return list(found.values())


def _agreements(members: Sequence[_Member]) -> dict[int, np.ndarray]:
    """The share of views with the float network's class, by photo."""
    return {
        number: by_photo(
            np.equal(answers.classes, pictures.predictions[FLOAT].classes), pictures.views
        ).mean(1)
        for number, pictures, answers in members
    }


def _divergences(members: Sequence[_Member]) -> dict[int, np.ndarray]:
    return {
        number: by_photo(answers.kl, pictures.views).mean(1)
        for number, pictures, answers in members
        if answers.kl
    }


def by_photo(values: Any, views: int) -> np.ndarray:
    """A value for each view, as an array[photos, views]."""
    return np.asarray(values).reshape(-1, views)
