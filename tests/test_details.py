"""Records of layers and pictures: what they refuse, and that JSON gives them back."""

import dataclasses
import json

import pytest
from synthetic_run import synthetic_run

from corrq_jax.details import Histogram, LevelTable, Pictures, Predictions, Thumbnail
from corrq_jax.errors import InputError
from corrq_jax.results import Run

HISTOGRAM = Histogram(-1, 1, (1, 2, 3), -2, 1, 7)
TABLE = LevelTable((-0.5, 0.25), (0.0,), HISTOGRAM)
ANSWERS = Predictions((0, 2), (0.0, 0.5), (0.9, 0.4))
PICTURES = Pictures((0, -1), 2, {"0": "tench"}, (Thumbnail(0, "data:image/jpeg;base64,"),), {})


@pytest.mark.parametrize(
    ("record", "changes", "message"),
    [
        (HISTOGRAM, {"high": -1}, "low < high"),
        (HISTOGRAM, {"counts": ()}, "one or more"),
        (HISTOGRAM, {"counts": (1, -1)}, "at least 0"),
        (HISTOGRAM, {"counts": (1.5,)}, "Histogram.counts has dtype float64"),
        (HISTOGRAM, {"size": 5}, "5 weights counts 6"),
        (HISTOGRAM, {"minimum": float("nan")}, "Histogram.minimum is nan"),
        (TABLE, {"levels": (1.0,)}, "1 levels and 1 boundaries"),
        (TABLE, {"boundaries": (float("inf"),)}, "NaN or infinity"),
        (ANSWERS, {"kl": (0.5,)}, "one class, confidence and divergence a picture"),
        (ANSWERS, {"classes": (1.0, 2.0)}, "whole numbers"),
        (PICTURES, {"views": 3}, "2 labels with 3 views"),
        (PICTURES, {"predictions": {"x": Predictions((), (), ())}}, "as many predictions"),
        (PICTURES, {"thumbnails": (Thumbnail(2, "data:image/"),)}, "from 0 to 1"),
        (PICTURES.thumbnails[0], {"uri": "https://example.org/a.png"}, "start with data:image/"),
    ],
)  # fmt: skip
def test_records_that_are_none_are_refused(record, changes, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(record, **changes)


def test_divergences_may_be_left_out():
    assert dataclasses.replace(ANSWERS, kl=()).kl == ()


def test_names_of_classes():
    assert (PICTURES.name(0), PICTURES.name(7)) == ("tench", "class 7")


def detailed():
    """A run with all details."""
    run = synthetic_run()
    (key, (layer, *others)), *_ = run.layers.items()
    layer = dataclasses.replace(layer, noise=1e-12, entropy=2.5, codes_nbytes=7, table=TABLE)
    return dataclasses.replace(
        *(run,),
        layers={key: (layer, *others)},
        histograms={layer.path: HISTOGRAM},
        pictures=dataclasses.replace(PICTURES, predictions={"float": ANSWERS, key: ANSWERS}),
    )


def test_json_round_trip_is_exact():
    run = detailed()
    assert Run.from_json(run.to_json()) == run


def test_lists_of_numbers_are_one_line_in_json():
    text = detailed().to_json()
    assert '"counts": [ 1, 2, 3 ]' in text
    assert "\n" in text
    name = "a\n[\n1,\n2\n]"
    run = dataclasses.replace(detailed(), network=name)
    assert Run.from_json(run.to_json()).network == name


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["histograms"], [], "'histograms'; one is not"),
        (["histograms", "params/stem/conv/kernel", "low"], 5, r"histograms\['params.*low < high"),
        (["layers", "linear + correlation @ 3", 0, "table"], 3, r"@ 3'\]\[0\].table of a run"),
        (["layers", "linear + correlation @ 3", 0, "table", "histogram"], 3, "table.histogram of"),
        (["pictures"], 3, "pictures of a run's JSON lacks"),
        (["pictures", "predictions", "float"], 3, r"pictures.predictions\['float'\] of a run"),
        (["pictures", "thumbnails"], 3, "pictures.thumbnails of a run's JSON is int"),
        (["pictures", "thumbnails", 0, "uri"], "x", r"pictures.thumbnails\[0\].*data:image"),
    ],
)
def test_json_of_something_else_is_refused(path, value, message):
    body = json.loads(detailed().to_json())
    *parents, last = path
    inner = body
    for key in parents:
        inner = inner[key]
    inner[last] = value
    with pytest.raises(InputError, match=message):
        Run.from_json(json.dumps(body))


def test_version_2_is_still_read():
    body = json.loads(synthetic_run().to_json())
    body["version"] = 2
    for name in ("histograms", "pictures"):
        del body[name]
    new = {"noise", "codes_nbytes", "levels_nbytes", "scales_nbytes", "entropy", "table"}
    for layers in body["layers"].values():
        for layer in layers:
            for name in new:
                del layer[name]
    for result in body["results"]:
        for name in ("codes", "levels", "scales", "rest", "header"):
            del result[f"{name}_nbytes"]
    assert Run.from_json(json.dumps(body)) == synthetic_run()
    body["results"][0].pop("kl")
    with pytest.raises(InputError, match=r"results\[0\] of a run's JSON lacks \['kl'\]"):
        Run.from_json(json.dumps(body))
