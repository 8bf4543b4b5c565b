import dataclasses
import re

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

from synthetic_run import synthetic_run
from test_html_report import PLAIN, Page, data_set

from corrq_jax import html_report

RUN = synthetic_run()


def test_accuracy_is_drawn_for_data_sets_only():
    run = data_set(10_000, environment={})
    drawn = Page(html_report.render(run))
    alts = [picture["alt"] for picture in drawn.all("img")]
    assert len(alts) == 8
    accuracy = [alt for alt in alts if "accuracy" in alt]
    assert accuracy == [alts[2], alts[7]]  # without and with peers
    assert "top-5 and top-1" in accuracy[0]
    assert "Top-5 of the float network: 96.2%. At 4 bits: linear " in accuracy[0]
    assert "The share of 10,000 pictures" in drawn.text
    assert "Dotted: the float network" in drawn.text
    photos = Page(html_report.render(dataclasses.replace(run, photos=24, views=240)))
    assert not any("accuracy" in picture["alt"] for picture in photos.all("img"))


def test_accuracy_without_the_float_networks(tmp_path):
    five = tuple(dataclasses.replace(r, top1=None) for r in RUN.results if not r.peer)
    run = data_set(2000, results=five, float_top1=None, float_top5=None)
    names = [path.name for path in html_report.write_report(run, tmp_path / "report")]
    assert names[:3] == ["correlation.png", "fidelity.png", "accuracy.png"]
    text = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert "Dotted" not in text
    assert "of the float network:" not in text


def layered(*widths):
    """The run with the layers of all its methods at these widths."""
    (some, *_) = RUN.layers.values()
    return dataclasses.replace(
        *(RUN,),
        densities=(),
        layers={r.key: some for r in RUN.results if r.bits in widths},
    )


@pytest.mark.parametrize(
    ("widths", "drawn"),
    [((8, 5, 4, 3, 2), ["3", "4"]), ((8, 6, 2), ["2", "6"]), ((8,), ["8"]), ((), [])],
)
def test_two_widths_of_layers_are_drawn(widths, drawn, tmp_path):
    paths = html_report.write_report(layered(*widths), tmp_path / "report")
    names = [path.name for path in paths if path.name.startswith("layers-")]
    assert names == [f"layers-{bits}.png" for bits in drawn]


def test_layers_are_those_of_one_table_of_levels():
    run = layered(3)
    page = Page(html_report.render(run))
    (alt,) = [picture["alt"] for picture in page.all("img") if "each layer" in picture["alt"]]
    spoken = alt.partition("At 3 bits: ")[2]
    named = re.findall(r"(?:^|, )(.*?) \d\.\d{5} \(lowest \d\.\d{5}\)", spoken)
    assert named == list(PLAIN)
    assert "Layer 1 is params/stem/conv/kernel, layer 5 is params/head/" in page.text
    (one,) = (r for r in run.results if r.key == "linear @ 3")
    assert "each layer by" in html_report.render(dataclasses.replace(run, results=(one,)))
    kinds = {
        "peer": True,
        "mixed": True,
        "matched": True,
        "granularity": "channel",
        "coding": "entropy",
    }
    for name, value in kinds.items():
        changed = dataclasses.replace(one, **{name: value})
        source = html_report.render(dataclasses.replace(run, results=(changed,)))
        assert "each layer by" not in source
