"""What the page's script gets, beside the run that it is made of."""

import dataclasses
import json
from collections import Counter

import numpy as np
import pytest
from synthetic_run import detailed_run, synthetic_run

from corrq_jax.details import FLOAT, Pictures, Predictions
from corrq_jax.html_data import page_data

RUN = detailed_run()
DATA = page_data({"one": RUN})


def test_it_is_plain_and_small():
    text = json.dumps(DATA, allow_nan=False)
    assert len(text) < 400_000
    assert json.loads(text)["results"][3]["method"] == RUN.results[3].method


def test_results_come_in_the_runs_order_with_their_parts():
    for found, result in zip(DATA["results"], RUN.results, strict=True):
        assert (found["method"], found["bits"]) == (result.method, result.bits)
        assert found["stored"] == pytest.approx(result.bits_per_weight, rel=1e-3)
        if result.peer:
            assert found["parts"] is None
        else:
            assert sum(found["parts"].values()) == result.file_nbytes


def test_layers_have_cells_and_noise():
    (at,) = (i for i, r in enumerate(RUN.results) if r.key == "optimal @ 3")
    for found, layer in zip(DATA["results"][at]["layers"], RUN.layers["optimal @ 3"], strict=True):
        assert found["lost"] == pytest.approx(layer.noise, rel=1e-3)
        np.testing.assert_allclose(found["table"]["levels"], layer.table.levels, rtol=1e-3)
        assert found["path"] in DATA["runs"][0]["histograms"]


def test_confused_answers_are_counted():
    key = "linear @ 4"  # some answers change, some do not
    (at,) = (i for i, r in enumerate(RUN.results) if r.key == key)
    answers = DATA["results"][at]["answers"]
    floats, ours = (RUN.pictures.predictions[k].classes for k in (FLOAT, key))
    expected = Counter((p, q) for p, q in zip(floats, ours, strict=True) if p != q)
    assert {(p, q): n for p, q, n in answers["confused"]} == expected
    by_photo = np.equal(floats, ours).reshape(24, 10).sum(1)
    assert answers["same"] == by_photo.tolist()
    assert [c for c, _ in answers["shown"]] == list(ours[::10])
    assert sum(map(sum, answers["matrix"]["counts"])) == 240
    label, answer = RUN.pictures.labels[0], ours[0]
    row = answers["matrix"]["classes"].index(label)
    assert answers["matrix"]["counts"][row][answer] >= 1


def test_ranges_hold_what_was_measured():
    known = [d for d, r in zip(DATA["results"], RUN.results, strict=True) if not r.peer]
    assert all(d["agreementRange"] and d["klRange"] and d["top1Range"] for d in known)
    own = [r for r in RUN.results if not r.peer]
    for data, result in zip(known, own, strict=True):
        low, high = data["klRange"]
        assert low < np.mean(RUN.pictures.predictions[result.key].kl) < high
    peers = [d for d, r in zip(DATA["results"], RUN.results, strict=True) if r.peer]
    assert all(d["agreementRange"] is None for d in peers)  # photos, and not one by one


def test_shares_of_a_data_set_have_ranges_without_single_answers():
    run = dataclasses.replace(synthetic_run(), photos=5000, views=5000)
    data = page_data({"one": run})["results"][2]
    low, high = data["agreementRange"]
    assert low < run.results[2].agreement < high
    assert high - low < 0.03
    assert data["klRange"] is None


def test_differences_are_paired_by_photos():
    wanted = [i for i, r in enumerate(RUN.results) if r.key in ("linear @ 4", "optimal @ 4")]
    low, high = DATA["differences"]["agreement"][wanted[0]][wanted[1]]
    same = [
        np.equal(
            *(RUN.pictures.predictions[k].classes for k in (FLOAT, RUN.results[i].key))
        ).reshape(24, 10).mean(1)
        for i in wanted
    ]  # fmt: skip
    gap = same[0] - same[1]
    assert low < gap.mean() < high
    # Of a mean of 24 the bootstrap's interval is about two standard errors either way.
    assert high - low == pytest.approx(4 * gap.std() / np.sqrt(24), rel=0.25)


def test_runs_on_the_same_pictures_are_paired_and_others_not():
    other = detailed_run(seed=1)
    pictures = other.pictures
    moved = dataclasses.replace(pictures, labels=pictures.labels[1:] + pictures.labels[:1])
    apart = dataclasses.replace(other, pictures=moved)
    count = len(RUN.results)
    together = page_data({"one": RUN, "two": other})["differences"]["agreement"]
    assert count in together[0]
    alone = page_data({"one": RUN, "two": apart})["differences"]["agreement"]
    assert count not in alone[0]


def test_methods_look_alike_in_all_runs():
    found = page_data({"one": RUN, "two": RUN})["results"]
    count = len(RUN.results)
    assert [d["style"] for d in found[:count]] == [d["style"] for d in found[count:]]
    assert found[0]["style"] == {"color": "#0072B2", "marker": "o", "dashed": True}


def test_no_table_of_many_classes_or_without_labels():
    def matrix(labels, classes):
        answers = Predictions(classes, (), (0.5,) * len(classes))
        pictures = Pictures(labels, 1, {}, (), {FLOAT: answers, RUN.results[0].key: answers})
        run = dataclasses.replace(RUN, pictures=pictures)
        return page_data({"one": run})["results"][0]["answers"]["matrix"]

    assert matrix(tuple(range(20)), tuple(range(20))) is not None
    assert matrix(tuple(range(21)), tuple(range(21))) is None
    assert matrix((-1, -1), (0, 1)) is None
    assert matrix((0, -1), (0, 1)) == {"classes": [0, 1], "counts": [[1, 0], [0, 0]]}
