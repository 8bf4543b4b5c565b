"""Runs side by side: which results belong together, and how sure their differences are."""

import dataclasses

import numpy as np
import pytest
from synthetic_run import detailed_run, synthetic_run

from corrq_jax.comparison import differences, side_by_side
from corrq_jax.details import FLOAT

FIRST, SECOND = detailed_run(), detailed_run(seed=1)


def agreements(run, key):
    """The share of views with the float network's class, by photo."""
    answers = run.pictures.predictions
    same = np.equal(answers[key].classes, answers[FLOAT].classes)
    return same.reshape(24, 10).mean(1)


def test_the_same_method_at_the_same_bits_is_one_row():
    fewer = dataclasses.replace(SECOND, results=SECOND.results[::-3])
    rows = side_by_side({"first": FIRST, "second": fewer})
    assert len(rows) == len(FIRST.results)
    for row, result in zip(rows, FIRST.results, strict=True):
        assert {side.result.key for side in row} == {result.key}
        assert [side.run for side in row] in (["first"], ["first", "second"])
        assert (row[0].agreement, row[0].kl, row[0].nbytes) == (None, None, None)
    assert sum(len(row) for row in rows) == len(FIRST.results) + len(fewer.results)


def test_what_only_a_later_run_has_comes_last():
    fewer = dataclasses.replace(FIRST, results=FIRST.results[:3])
    rows = side_by_side({"first": fewer, "second": SECOND})
    assert [[s.run for s in row] for row in rows[:4]] == [["first", "second"]] * 3 + [["second"]]


def test_changes_are_from_the_first_run_with_paired_intervals():
    key = "linear @ 4"
    (row,) = (r for r in side_by_side({"a": FIRST, "b": SECOND}) if r[0].result.key == key)
    change = row[1].agreement
    paired = agreements(SECOND, key) - agreements(FIRST, key)
    # What a run says of itself; the synthetic answers follow it by chance only.
    assert change.value == row[1].result.agreement - row[0].result.agreement
    assert change.low < paired.mean() < change.high
    wide = change.high - change.low
    assert wide == pytest.approx(4 * paired.std() / np.sqrt(24), rel=0.25)
    assert row[1].kl.low < row[1].kl.high
    assert row[1].nbytes.value == 0


def test_no_interval_where_single_answers_were_not_recorded():
    rows = side_by_side({"a": synthetic_run(), "b": synthetic_run()})
    assert all(row[1].agreement.value == 0 and row[1].agreement.low is None for row in rows)
    bare = dataclasses.replace(FIRST.results[0], agreement=None)
    run = dataclasses.replace(FIRST, results=[bare])
    ((_, side),) = side_by_side({"a": run, "b": run})
    assert side.agreement is None


def test_all_pairs_have_an_interval_once():
    found = differences([FIRST, SECOND]).agreement
    own = [i for i, r in enumerate((*FIRST.results, *SECOND.results)) if not r.peer]
    assert set(found) == set(own)
    assert all(set(row) == {j for j in own if j > i} for i, row in found.items())


def test_other_pictures_are_not_compared():
    other = dataclasses.replace(SECOND, environment={**SECOND.environment, "data": "other"})
    found = differences([FIRST, other]).agreement
    count = len(FIRST.results)
    assert all(j < count for i, row in found.items() if i < count for j in row)
