import csv
import dataclasses
import io
import json

import numpy as np
import pytest
from synthetic_run import synthetic_run

from corrq_jax.errors import InputError
from corrq_jax.results import LayerDensity, LayerResult, Result, Run

RUN = synthetic_run()
RESULT = RUN.results[0]
DENSITY = RUN.densities[0]


def test_json_round_trip_is_exact():
    again = Run.from_json(RUN.to_json())
    assert again == RUN
    assert again.to_json() == RUN.to_json()
    assert again.densities[1].points.tobytes() == RUN.densities[1].points.tobytes()
    assert again.densities[1].counts.dtype == np.int64


def test_json_keeps_every_bit_of_hard_floats_and_names():
    hard = dataclasses.replace(RESULT, method='a "µ" <b>\n\u2028', kl=5e-324, agreement=1 / 3)
    layer = LayerResult("p/\\k", (), 1, 1, None, 0)
    run = dataclasses.replace(RUN, results=(hard,), layers={"k": (layer,)}, float_top1=None)
    assert Run.from_json(run.to_json()) == run
    assert run != RUN


def test_json_says_its_format_and_version():
    body = json.loads(RUN.to_json())
    assert body["format"] == "corrq_jax.run"
    assert body["version"] == 3
    assert body["results"][0]["method"] == "linear"
    assert body["layers"]["linear + correlation @ 3"][0]["shape"] == [3, 3, 3, 32]


def test_layers_go_by_the_results_key():
    assert RESULT.key == "linear @ 2"
    assert set(RUN.layers) < {result.key for result in RUN.results}


def changed(path, value):
    """RUN's JSON with one entry replaced, or removed where `value` is Ellipsis."""
    body = json.loads(RUN.to_json())
    *parents, last = path
    inner = body
    for key in parents:
        inner = inner[key]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    return json.dumps(body)


@pytest.mark.parametrize(
    ("text", "message"), [("", "not JSON"), ("{", "not JSON"), ("[1]", "no 'format'")]
)
def test_json_of_something_else_is_refused(text, message):
    with pytest.raises(InputError, match=message):
        Run.from_json(text)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["format"], "other", "no 'format'"),
        (["version"], 1, "version 1; this corrq_jax reads versions 2 and 3"),
        (["results"], {}, "results of a run's JSON is dict"),
        (["layers"], [], "'layers', 'environment' and"),
        (["photos"], ..., r"run of a run's JSON lacks \['photos'\]"),
        (["extra"], 1, r"unknown \['extra'\]"),
        (["results", 3, "kl"], ..., r"results\[3\] of a run's JSON lacks \['kl'\]"),
        (["results", 3, "kl"], "big", r"results\[3\].*Result.kl is 'big'"),
        (["results", 3, "bits"], 2.5, r"results\[3\].*Result.bits is 2.5"),
        (["results", 3], 7, r"results\[3\] of a run's JSON lacks"),
        (["layers", "linear + correlation @ 3", 0, "shape"], 5, r"@ 3'\]\[0\] of a run"),
        (["densities", 0, "points"], ["a"], r"densities\[0\] of a run's JSON"),
        (["densities", 0, "points", 0], 9.0, r"densities\[0\].*points decrease"),
    ],
)
def test_json_that_was_changed_is_refused(path, value, message):
    with pytest.raises(InputError, match=message):
        Run.from_json(changed(path, value))


def test_csv_has_a_row_a_result():
    rows = list(csv.DictReader(io.StringIO(RUN.to_csv(), newline="")))
    assert len(rows) == len(RUN.results) == 56
    assert list(rows[0]) == [field.name for field in dataclasses.fields(Result)]
    for row, result in zip(rows, RUN.results, strict=True):
        assert row["method"] == result.method
        assert float(row["kl"]) == result.kl
        assert int(row["file_nbytes"]) == result.file_nbytes


def test_csv_leaves_out_what_was_not_measured_and_quotes():
    result = dataclasses.replace(RESULT, method='a,"b"\nc', kl=None)
    text = dataclasses.replace(RUN, results=(result,)).to_csv()
    (row,) = csv.DictReader(io.StringIO(text, newline=""))
    assert row["method"] == 'a,"b"\nc'
    assert row["kl"] == ""


def test_numpy_scalars_become_python_numbers():
    result = dataclasses.replace(
        RESULT, bits=np.int32(3), kl=np.float32(0.5), mean_correlation=np.array(0.5)
    )
    assert (type(result.bits), type(result.kl), type(result.mean_correlation)) == (
        int,
        float,
        float,
    )


def test_bits_of_mixed_results_need_not_be_whole():
    mixed = next(result for result in RUN.results if result.mixed)
    assert mixed.key == "mixed bits @ 2.5"
    assert dataclasses.replace(mixed, bits=3).key == "mixed bits @ 3"
    assert type(dataclasses.replace(mixed, bits=3).bits) is float
    with pytest.raises(InputError, match=r"Result.bits is 2.5; give a whole number"):
        dataclasses.replace(mixed, mixed=False)


def test_csv_tells_peers_and_what_was_matched():
    rows = list(csv.DictReader(io.StringIO(RUN.to_csv(), newline="")))
    for row, result in zip(rows, RUN.results, strict=True):
        assert row["peer"] == str(result.peer)
        assert row["matched"] == str(result.matched)
        assert row["coding"] == result.coding
    assert {row["peer"] for row in rows} == {"True", "False"}


def test_noise_and_stored_bits():
    assert RESULT.noise == 1 - RESULT.mean_correlation**2
    assert LayerResult("p", (4, 8), 32, 3, 0.9, 20, "entropy").bits_per_weight == 5


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("peer", 1, "Result.peer is 1; give True or False"),
        ("kl", float("nan"), "Result.kl is nan; give a finite number, or None"),
        ("kl", np.float32("inf"), "Result.kl is inf"),
        ("mean_correlation", None, "Result.mean_correlation is None; give a finite number$"),
        ("bits", 3.0, "Result.bits is 3.0; give a whole number"),
        ("agreement", "high", "Result.agreement is 'high'"),
    ],
)
def test_figures_that_are_no_numbers_are_refused(field, value, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(RESULT, **{field: value})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"points": DENSITY.points[:-1]}, "points and .* counts; give one count a point"),
        ({"points": DENSITY.points[::-1]}, "points decrease; sort them"),
        ({"counts": -DENSITY.counts}, "counts are negative or all zero"),
        ({"counts": 0 * DENSITY.counts}, "counts are negative or all zero"),
        ({"counts": DENSITY.counts / 2}, "LayerDensity.counts has dtype float64"),
        ({"levels": [[1.0]]}, r"LayerDensity.levels has shape \(1, 1\)"),
        ({"levels": [np.nan]}, "LayerDensity.levels holds NaN"),
        ({"correlation": np.nan}, "LayerDensity.correlation is nan"),
    ],
)
def test_densities_that_are_none_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(DENSITY, **changes)


def test_density_arrays_are_copies_and_read_only():
    levels = np.array([-1.0, 1.0])
    density = LayerDensity("p", [0, 1], [1, 2], [0], levels, 1, "linear", 0.9)
    levels[0] = 5
    assert density.levels[0] == -1
    with pytest.raises(ValueError, match="read-only"):
        density.levels[0] = 3
    assert density == dataclasses.replace(density)
    assert density != dataclasses.replace(density, levels=[-1, 2])
    assert density != "density"
