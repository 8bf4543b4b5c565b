"""Experiments: cells are kept, a stopped run goes on, cells of another experiment are refused."""

import dataclasses
import json

import numpy as np
import pytest
from flax import nnx

from corrq_jax import experiment, fidelity
from corrq_jax.data import batches
from corrq_jax.errors import InputError
from corrq_jax.experiment import compare
from corrq_jax.flax import functional
from corrq_jax.methods import METHODS, cells, methods, peer_cells
from corrq_jax.results import Run


class Net(nnx.Module):
    def __init__(self, rngs):
        self.stem = nnx.Conv(3, 16, (3, 3), use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(16, use_running_average=True, rngs=rngs)
        self.last = nnx.Linear(16, 12, rngs=rngs)

    def __call__(self, x):
        return self.last(nnx.relu(self.norm(self.stem(x))).mean(axis=(1, 2)))


class CountedBatches:
    """Batches that know how often they were passed over."""

    def __init__(self, count=10):
        rng = np.random.default_rng(0)
        images = rng.normal(size=(count, 8, 8, 3)).astype(np.float32)
        self.batches = list(batches(images, rng.integers(0, 12, count), 4))
        self.passes = 0

    def __iter__(self):
        self.passes += 1
        return iter(self.batches)


@pytest.fixture
def subject():
    apply, params = functional(Net(nnx.Rngs(0)))
    return fidelity.Subject("mobilenet_v2", apply, params, CountedBatches(), 1, "ten", "float32")


@pytest.fixture(scope="module")
def chosen():
    return cells(methods(["linear", "optimal", "optimal + moments"]), (4, 3))


def run(subject, chosen, folder=None, **options):
    return compare("net", subject.params, chosen, subject=subject, keep=folder, **options)


@pytest.fixture
def whole(subject, chosen):
    return run(subject, chosen)


def test_one_pass_for_the_float_network_and_one_a_cell(subject, chosen):
    found = run(subject, chosen)
    assert subject.pictures.passes == 1 + len(chosen)
    assert [r.key for r in found.results] == [f"{m.name} @ {b}" for m, b in chosen]
    assert (found.photos, found.views, found.weights) == (10, 10, 3 * 3 * 3 * 16 + 16 * 12)
    assert found.environment["data"] == "ten"
    assert found.float_top1 == subject.measure(subject.params)[0].top1
    assert {layer.path for layer in found.densities} == {"last/kernel", "stem/kernel"}
    assert all(r.agreement is not None for r in found.results)
    # As the network computes, not as the tree is sorted.
    order = [[layer.path for layer in layers] for layers in found.layers.values()]
    assert order == [["stem/kernel", "last/kernel"]] * len(chosen)


def test_a_stopped_run_goes_on_where_it_was(subject, chosen, whole, tmp_path):
    told = []

    def stop_after_two(text):
        told.append(text)
        if len(told) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(subject, chosen, tmp_path / "a" / "cells", advance=stop_after_two)
    kept = sorted(path.name for path in (tmp_path / "a" / "cells").iterdir())
    assert kept == ["linear-3.json", "linear-4.json"]
    again = dataclasses.replace(subject, pictures=CountedBatches())
    told.clear()
    found = run(again, chosen, tmp_path / "a" / "cells", advance=told.append)
    assert again.pictures.passes == 1 + len(chosen) - 2
    assert len(told) == len(chosen)
    assert found.results == whole.results
    assert found.layers == whole.layers
    assert found.densities == whole.densities
    # All is there now: the float network is not even run.
    third = dataclasses.replace(subject, pictures=CountedBatches())
    assert run(third, chosen, tmp_path / "a" / "cells") == found
    assert third.pictures.passes == 0


def test_more_cells_can_be_added(subject, chosen, tmp_path):
    run(subject, chosen[:2], tmp_path)
    before = subject.pictures.passes
    found = run(subject, chosen, tmp_path)
    assert subject.pictures.passes == before + len(chosen) - 2
    assert len(found.results) == len(chosen)


def test_a_kept_cell_without_answers_takes_none_from_the_others(subject, chosen, whole, tmp_path):
    run(subject, chosen[:1], tmp_path)
    file = tmp_path / "linear-4.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "pictures": None}))  # as of NaN
    found = run(subject, chosen[:2], tmp_path)
    answers = whole.pictures.predictions
    assert found.pictures.predictions == {key: answers[key] for key in ("float", "linear @ 3")}


def test_every_cell_has_a_file_of_its_own(tmp_path):
    store = experiment._Store(tmp_path, "net", {})
    everything = cells(METHODS, (1, 1.5, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8)) + peer_cells()
    assert len({store._path(cell) for cell in everything}) == len(everything)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"data": "eleven"}, "data: 'ten', now 'eleven'"),
        ({"dtype": "bfloat16"}, "computed in: 'float32', now 'bfloat16'"),
        ({"params": Net}, "float weights: 'sha256"),
    ],
)
def test_cells_of_another_experiment_are_refused(subject, chosen, tmp_path, change, what):
    run(subject, chosen[:1], tmp_path)
    if "params" in change:  # made here: it compiles
        change = {"params": functional(change["params"](nnx.Rngs(1)))[1]}
    with pytest.raises(InputError, match=r"linear-4\.json is of another experiment") as error:
        run(dataclasses.replace(subject, **change), chosen[:1], tmp_path)
    assert what in str(error.value)


def test_cells_of_another_version_and_damaged_ones_are_refused(subject, chosen, tmp_path):
    run(subject, chosen[:1], tmp_path)
    (path,) = tmp_path.iterdir()
    record = json.loads(path.read_text())
    record["environment"]["corrq_jax"] = "0.0.1"
    path.write_text(json.dumps(record))
    with pytest.raises(InputError, match=r"corrq_jax: '0\.0\.1', now"):
        run(subject, chosen[:1], tmp_path)
    path.write_text(path.read_text()[:100])
    with pytest.raises(InputError, match=r"linear-4\.json: not JSON.*remove the file"):
        run(subject, chosen[:1], tmp_path)


def test_each_cell_says_where_it_was_measured(subject, chosen, tmp_path, monkeypatch):
    run(subject, chosen[:1], tmp_path)
    here = experiment.sweep.environment()
    monkeypatch.setattr(
        experiment.sweep, "environment", lambda: here | {"device": "8 x TPU", "jax": "1.0"}
    )
    found = run(subject, chosen[:2], tmp_path)
    cells = [Run.from_json(path.read_text()) for path in tmp_path.iterdir()]
    assert {cell.environment["device"] for cell in cells} == {here["device"], "8 x TPU"}
    assert found.environment["device"] == f"{here['device']}; 8 x TPU"
    monkeypatch.setattr(
        experiment.sweep, "environment", lambda: here | {"matmul precision": "bfloat16"}
    )
    with pytest.raises(InputError, match="matmul precision: 'default', now 'bfloat16'"):
        run(subject, chosen[:2], tmp_path)


def test_targets_that_cannot_be_met_are_left_out(subject, tmp_path):
    (impossible,) = cells(methods(["mixed bits"]), (2,))
    (possible,) = cells(methods(["optimal"]), (2,))
    told = []
    with pytest.warns(UserWarning, match="left out mixed bits at 2 bits"):
        found = run(subject, [impossible, possible], tmp_path, advance=told.append)
    assert [r.method for r in found.results] == ["optimal"]
    assert told[0] == "mixed bits, 2 bits: left out"
    with (
        pytest.warns(UserWarning, match="left out"),
        pytest.raises(InputError, match="nothing was measured"),
    ):
        run(subject, [impossible])


def test_speed_is_shown(subject, chosen):
    seen = []
    run(subject, chosen[:1], watch=lambda count, rate: seen.append((count, rate is None)))
    # The float network's pass, and the cell's.
    assert seen == 2 * [(4, True), (8, False), (10, False)]


def test_without_pictures(subject, chosen):
    found = compare("net", subject.params, chosen[:1])
    assert found.views == 0
    assert found.results[0].agreement is None
    assert Run.from_json(found.to_json()) == found


def test_pictures_that_go_missing_between_passes_are_an_error(subject, chosen):
    subject.measure(subject.params)
    subject.pictures.batches.pop()
    with pytest.raises(InputError, match="ten: 8 pictures could be read, 10 before"):
        run(subject, chosen[:1])


def test_bfloat16_is_computed_in(subject):
    half = dataclasses.replace(subject, dtype="bfloat16")
    exact, rounded = (s.measure(s.params)[1] for s in (subject, half))
    assert (exact.kl, rounded.kl) == (0, 0)  # each against its own float network
    assert not np.array_equal(subject._reference().logits, half._reference().logits)
