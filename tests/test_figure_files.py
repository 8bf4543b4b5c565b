"""Which figures are written beside a page."""

import dataclasses

import pytest

pytest.importorskip("matplotlib")

from synthetic_run import synthetic_run

from corrq_jax import figure_files, plots
from corrq_jax.figure_files import drawn_layers

RUN = synthetic_run()
PLAIN = ("linear", "exponential", "linear + correlation", "exponential + correlation", "optimal")


@pytest.fixture
def files(monkeypatch):
    """The names of a run's figures; none is rendered."""
    monkeypatch.setattr(plots, "png_bytes", lambda figure: b"")
    return lambda run: list(figure_files.figure_files(run))


def data_set(pictures, **changes):
    """The run as if it had been measured on a data set."""
    return dataclasses.replace(
        RUN, photos=pictures, views=pictures, densities=(), layers={}, **changes
    )


def layered(*widths):
    """The run with the layers of all its methods at these widths."""
    (some, *_) = RUN.layers.values()
    layers = {r.key: some for r in RUN.results if r.bits in widths}
    return dataclasses.replace(RUN, densities=(), layers=layers)


def test_all_figures(files):
    assert files(RUN) == [
        *("correlation.png", "fidelity.png", "layers-3.png", "layers-4.png"),
        *("peers-correlation.png", "peers-fidelity.png", "density-01.png", "density-02.png"),
    ]


def test_accuracy_is_drawn_for_data_sets_only(files):
    assert {"accuracy.png", "peers-accuracy.png"} <= set(files(data_set(10_000)))
    bare = tuple(dataclasses.replace(r, top1=None, top5=None) for r in RUN.results)
    assert "accuracy.png" not in files(data_set(5000, results=bare))


def test_what_was_not_measured_is_not_drawn(files):
    bare = [
        dataclasses.replace(r, agreement=None, kl=None, logit_correlation=None)
        for r in RUN.results
        if not r.peer
    ]
    run = dataclasses.replace(RUN, results=bare, layers={}, densities=())
    assert files(run) == ["correlation.png"]
    exact = dataclasses.replace(bare[0], mean_correlation=1.0)
    assert files(dataclasses.replace(run, results=[exact])) == []


@pytest.mark.parametrize(
    ("widths", "drawn"),
    [((8, 5, 4, 3, 2), [3, 4]), ((8, 6, 2), [2, 6]), ((8,), [8]), ((), [])],
)
def test_two_widths_of_layers_are_drawn(widths, drawn):
    assert [bits for bits, _ in drawn_layers(layered(*widths))] == drawn


def test_layers_are_those_of_one_table_of_levels():
    run = layered(3)
    ((_, results),) = drawn_layers(run)
    assert tuple(r.method for r in results) == PLAIN
    one = results[0]
    kinds = {
        "peer": True,
        "mixed": True,
        "matched": True,
        "granularity": "channel",
        "coding": "entropy",
    }
    for name, value in kinds.items():
        changed = dataclasses.replace(one, **{name: value})
        assert drawn_layers(dataclasses.replace(run, results=(changed,))) == []
