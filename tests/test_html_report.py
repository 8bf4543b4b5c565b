"""The page: what stands in it before any script runs, and what it is made of."""

import base64
import csv
import dataclasses
import hashlib
import json
import re

import html5lib
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

from synthetic_run import detailed_run, quick_run, synthetic_run

from corrq_jax import html_report
from corrq_jax.errors import InputError
from corrq_jax.paper import Comparison, Published
from corrq_jax.results import LayerResult, Run

RUN = synthetic_run()
PLAIN = ("linear", "exponential", "linear + correlation", "exponential + correlation", "optimal")
PUBLISHED = Comparison(
    Published("vgg16", "II", 3, 0.76, PLAIN[2:4]), ((PLAIN[2], 0.7012), (PLAIN[3], 0.6998))
)
NOT_RUN = Comparison(Published("vgg16", "I", 5, 0.69, ("exponential",)), ())
HOSTILE = "<script>alert('x')</script>&\"{{ 7*7 }}"


class Page:
    """A page as a browser reads it; one that is no valid HTML is refused."""

    def __init__(self, text):
        parser = html5lib.HTMLParser(namespaceHTMLElements=False, strict=True)
        self.root = parser.parse(text)

    def all(self, tag):
        return list(self.root.iter(tag))

    def of(self, tag, **attributes):
        (found,) = (
            e for e in self.root.iter(tag) if all(e.get(k) == v for k, v in attributes.items())
        )
        return found

    @property
    def text(self):
        return words(self.root.find("body"))

    @property
    def data(self):
        return json.loads(self.of("script", id="data").text)

    def rows(self):
        """Cells of the results table, (classes, words) each: header, float network, results."""
        rows = self.of("table", id="results-table").iter("tr")
        rows = [row for row in rows if row.get("class") != "group"]
        return [[(cell.get("class", ""), words(cell)) for cell in row] for row in rows]


def words(element):
    """The text of an element without scripts, as it is read."""

    def parts(node):
        if node.tag in ("script", "style"):
            return
        yield node.text or ""
        for child in node:
            if child.tag in ("br", "p", "div", "li", "td", "th", "dd", "dt", "h1", "h2", "option"):
                yield " "
            yield from parts(child)
            yield child.tail or ""

    return " ".join("".join(parts(element)).split())


@pytest.fixture(scope="module")
def source():
    return html_report.render(RUN)


@pytest.fixture(scope="module")
def page(source):
    return Page(source)


def data_set(pictures, **changes):
    """The run as if it had been measured on a data set."""
    environment = {**RUN.environment, "data": "imagenet <2012>"}
    changes = {"densities": (), "environment": environment, **changes}
    return dataclasses.replace(RUN, photos=pictures, views=pictures, **changes)


def test_the_page_stands_alone(page, source):
    assert "http:" not in source
    assert "https:" not in source
    assert not re.search(r"@import|url\(|\bfetch\(|XMLHttpRequest|\bimport\(", source)
    for tag in ("link", "iframe", "object", "img"):
        assert page.all(tag) == []
    for element in page.root.iter():
        assert not {"src", "srcset"} & set(element.attrib)
        assert element.get("href", "#").startswith("#")


def test_only_its_own_script_may_run(page):
    policy = page.of("meta", **{"http-equiv": "Content-Security-Policy"})
    data, script = page.all("script")
    assert data.get("type") == "application/json"
    digest = base64.b64encode(hashlib.sha256(script.text.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in policy.get("content")
    assert "default-src 'none'" in policy.get("content")
    assert not any(name.startswith("on") for e in page.root.iter() for name in e.attrib)


def test_the_page_is_for_phones_and_dark_screens(page, source):
    assert page.of("meta", name="viewport").get("content") == "width=device-width, initial-scale=1"
    assert "light-dark(" in source
    assert page.root.get("lang") == "en"


def test_links_lead_to_parts_of_the_page():
    page = Page(html_report.render(detailed_run(), [PUBLISHED]))
    links = [a.get("href").removeprefix("#") for a in page.all("a")]
    assert len(links) == 8
    ids = [e.get("id") for e in page.root.iter() if e.get("id")]
    assert set(links) <= set(ids)
    assert len(ids) == len(set(ids))
    labelled = [e.get("aria-labelledby") for e in page.root.iter() if e.get("aria-labelledby")]
    assert set(labelled) <= set(ids)


def test_what_was_quantized(page):
    for fact in ("EfficientNet-Lite0", "4,652,008", "18.63 MB", "240 views of 24 photos"):
        assert fact in page.text
    for name, value in RUN.environment.items():
        assert f"{name} {value}" in page.text


def test_the_table_holds_every_result(page):
    header, floats, *rows = page.rows()
    headings = [text for _, text in header]
    assert headings[:5] == ["method", "MB", "smaller", "agreement", "KL"]
    assert dict(zip(headings, (t for _, t in floats), strict=True))["top-1"] == "81.2%"
    by_bits = sorted(RUN.results, key=lambda r: (r.bits, r.peer))
    assert len(rows) == len(by_bits) == 56
    for row, result in zip(rows, by_bits, strict=True):
        cells = dict(zip(headings, (text for _, text in row), strict=True))
        assert cells["method"] == f"{result.method} @ {result.bits:g}"
        assert cells["MB"] == f"{result.file_nbytes / 1e6:.2f}"
        assert cells["mean ρ"] == f"{result.mean_correlation:.5f}"  # noqa: RUF001
        assert cells["agreement"] == f"{100 * result.agreement:.1f}%"
        assert float(cells["KL"]) == pytest.approx(result.kl, rel=6e-3)
    numbered = [int(tr.get("data-result")) for tr in page.all("tr") if tr.get("data-result")]
    assert [RUN.results[n] for n in numbered] == by_bits


def test_cells_are_sorted_by_exact_values(page):
    for row in page.all("tr"):
        if row.get("data-result"):
            result = RUN.results[int(row.get("data-result"))]
            cells = [cell.get("data-sort") for cell in row.iter("td")]
            assert float(cells[0]) == result.file_nbytes
            assert float(cells[5]) == result.mean_correlation


def test_the_best_of_each_width_is_marked(page):
    header, _, *rows = page.rows()
    headings = [text for _, text in header]
    for heading in ("KL", "mean ρ"):  # noqa: RUF001
        at = headings.index(heading)
        marked = {row[0][1] for row in rows[:10] if "best" in row[at][0]}
        assert marked == {"mixed bits, entropy-coded @ 2"}


def test_smaller_files_and_lower_kl_are_better():
    small = dataclasses.replace(RUN.results[0], method="small", file_nbytes=10**6, kl=0.01)
    large = dataclasses.replace(RUN.results[0], method="large", file_nbytes=10**7, kl=9.0)
    run = dataclasses.replace(RUN, results=(small, large), densities=())
    header, _, first, second = Page(html_report.render(run)).rows()
    headings = [text for _, text in header]
    for heading in ("MB", "KL"):
        assert "best" in first[headings.index(heading)][0]
        assert "best" not in second[headings.index(heading)][0]


def test_headlines_name_the_smallest_file(page):
    assert (
        "Smallest file with at least 95% agreement: 1.74 MB, 10.7 times smaller "
        "(mixed bits, entropy-coded, 3 bits, agreement 95.9%)." in page.text
    )


def test_headlines_name_a_file_once():
    page = Page(html_report.render(dataclasses.replace(RUN, results=RUN.results[:36])))
    assert (
        "Smallest file with at least 95% agreement: 2.51 MB, 7.4 times smaller "
        "(optimal, 4 bits, agreement 97.3%)." in page.text
    )
    assert page.text.count("Smallest file with") == 2  # 90% is reached by the same file as 95%.


def test_the_page_says_what_the_numbers_are_not(page):
    assert "240 views (crops and flips) of 24 photos" in page.text
    assert "This is fidelity to the float network, not accuracy" in page.text
    assert "Sizes are those of the files on disk" in page.text


def test_the_page_says_how_peers_and_mixed_bits_are_counted(page):
    assert "2.5 bits" in page.text
    assert "sizes are without a header" in page.text
    assert (
        "corrected for the quantized kernels): mixed bits; mixed bits, entropy-coded" in page.text
    )
    own = dataclasses.replace(RUN, results=tuple(r for r in RUN.results[:36]), densities=())
    text = Page(html_report.render(own)).text
    for absent in ("libraries", "mixed bits", "matched"):
        assert absent not in text


def test_no_headline_names_a_peer(page):
    peer = next(r for r in RUN.results if r.peer)
    best = dataclasses.replace(peer, method="other", file_nbytes=1, agreement=1.0)
    text = Page(html_report.render(dataclasses.replace(RUN, results=(*RUN.results, best)))).text
    headlines = text.partition("Smallest file")[2].partition("method")[0]
    assert headlines
    assert "other" not in headlines


def test_names_are_escaped():
    layer = LayerResult(HOSTILE, (2, 2), 4, 4, None, 2)
    one = dataclasses.replace(RUN.results[0], method=HOSTILE)
    run = dataclasses.replace(
        RUN,
        network=HOSTILE,
        results=(one,),
        layers={one.key: (layer,)},
        densities=(dataclasses.replace(RUN.densities[0], path=HOSTILE, method=HOSTILE),),
        environment={HOSTILE: HOSTILE},
    )
    source = html_report.render(run)
    page = Page(source)
    assert "alert" not in "".join(script.text for script in page.all("script")[1:])
    assert len(page.all("script")) == 2
    assert "49" not in page.text
    assert page.text.count(HOSTILE) == 5  # title, network, method, its circumstances
    data = page.data
    assert data["results"][0]["method"] == HOSTILE
    assert data["results"][0]["layers"][0]["path"] == HOSTILE


def test_a_run_without_fidelity():
    gone = ("top1", "top5", "agreement", "kl", "logit_correlation")
    run = dataclasses.replace(
        *(RUN,),
        results=tuple(dataclasses.replace(r, **dict.fromkeys(gone)) for r in RUN.results),
        layers={},
        densities=(),
        photos=0,
        views=0,
        float_top1=None,
        float_top5=None,
    )
    text = Page(html_report.render(run)).text
    for absent in ("agreement", "photos", "top-1", "Smallest file", "Layers", "intervals"):
        assert absent not in text


def test_several_runs_share_a_page():
    runs = {"first": RUN, "second <b>": dataclasses.replace(RUN, network="other")}
    page = Page(html_report.render_runs(runs))
    _header, *rows = page.rows()
    assert rows[0][0][1] == "float network first"
    assert rows[1][0][1] == "float network second <b>"
    assert len(rows) == 2 * 56 + 2
    assert rows[2][0][1] == "linear @ 2 first"
    numbered = sorted(int(tr.get("data-result")) for tr in page.all("tr") if tr.get("data-result"))
    assert numbered == list(range(112))
    assert "EfficientNet-Lite0 and other, quantized" in page.text
    assert len(page.all("dl")) == 2
    with pytest.raises(InputError, match="at least one"):
        html_report.render_runs({})


def test_a_data_set_is_no_views_of_photos():
    source = html_report.render(data_set(10_000))
    page = Page(source)
    assert "compared on 10,000 pictures" in page.text
    assert "Top-1 and top-5 are accuracy on 10,000 pictures (imagenet <2012>)." in page.text
    assert "Agreement and KL were measured on 10,000 pictures. They are fidelity" in page.text
    for absent in ("views (crops", "photos.", "no test set"):
        assert absent not in page.text


@pytest.mark.parametrize(("pictures", "warned"), [(999, True), (1000, False)])
def test_few_pictures_are_no_test_set(pictures, warned):
    text = Page(html_report.render(data_set(pictures))).text
    assert ("So few pictures are no test set" in text) == warned
    assert "on 1 picture " in Page(html_report.render(data_set(1))).text


def test_a_data_set_without_labels():
    bare = tuple(dataclasses.replace(r, top1=None, top5=None) for r in RUN.results)
    run = data_set(5000, results=bare, float_top1=None, float_top5=None)
    page = Page(html_report.render(run))
    assert "measured on 5,000 pictures (imagenet <2012>). They are fidelity" in page.text
    assert "accuracy on" not in page.text


def test_published_figures_are_beside_ours():
    run = data_set(10_000, float_top1=0.709, float_top5=0.898)
    source = html_report.render(run, (PUBLISHED, NOT_RUN))
    page = Page(source)
    text = page.text.partition("Beside the published figures")[2].partition("What the numbers")[0]
    assert "what was measured here on 10,000 pictures." in text
    assert "do not say which grid or which levels" in text
    assert "nor the number of pictures or the preprocessing" in text
    region = page.of("div", **{"aria-labelledby": "published"})
    rows = [[words(cell) for cell in row] for row in region.iter("tr")]
    assert rows[1:] == [
        ["float network", "–", "90.1% (top-1 71.3%)", "89.8% (top-1 70.9%)"],  # noqa: RUF001
        [
            *("Part II", "3", "76%"),
            "linear + correlation: 70.1% exponential + correlation: 70.0%",
        ],
        ["Part I", "5", "69%", "not run"],
    ]
    assert "no test set" not in text


def test_published_figures_beside_photos_and_unknown_networks():
    figure = Published(HOSTILE, HOSTILE, 3, 0.76, (HOSTILE,))
    source = html_report.render(RUN, [Comparison(figure, ((HOSTILE, 0.5),))])
    text = Page(source).text
    assert "here on 24 photos." in text
    assert "So few pictures as here are no test set." in text
    assert f"Part {HOSTILE}" in text
    assert f"{HOSTILE}: 50.0%" in text
    assert len(Page(source).all("script")) == 2
    assert "top-1 81.2%" not in text


def test_the_report_that_is_written_has_the_published_figures(tmp_path):
    *_, path = html_report.write_report(quick_run(), tmp_path / "report", published=[PUBLISHED])
    assert path.read_text(encoding="utf-8") == html_report.render(quick_run(), [PUBLISHED])


def test_no_published_figures_no_word_of_them(page):
    assert "published" not in page.text


def test_a_run_without_results_is_refused(tmp_path):
    run = dataclasses.replace(RUN, results=())
    with pytest.raises(InputError, match="'EfficientNet-Lite0': no results to report"):
        html_report.render(run)
    with pytest.raises(InputError, match="no results"):
        html_report.write_report(run, tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_write_report(tmp_path, source):
    folder = tmp_path / "report"
    paths = html_report.write_report(RUN, folder)
    assert sorted(paths) == sorted(folder.iterdir())
    assert [path.name for path in paths] == [
        "correlation.png",
        "fidelity.png",
        "layers-3.png",
        "layers-4.png",
        "peers-correlation.png",
        "peers-fidelity.png",
        "density-01.png",
        "density-02.png",
        "results.json",
        "results.csv",
        "index.html",
    ]
    assert paths[-1].read_text(encoding="utf-8") == source
    assert Run.from_json((folder / "results.json").read_text(encoding="utf-8")) == RUN
    with (folder / "results.csv").open(encoding="utf-8", newline="") as file:
        assert len(list(csv.DictReader(file))) == len(RUN.results)
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths[:8])


def test_an_earlier_report_is_kept_unless_told(tmp_path):
    (tmp_path / "results.csv").write_text("mine")
    with pytest.raises(FileExistsError, match=r"has results\.csv already.*overwrite=True"):
        html_report.write_report(quick_run(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["results.csv"]
    html_report.write_report(quick_run(), tmp_path, overwrite=True)
    assert (tmp_path / "results.csv").read_text() != "mine"


def test_where_no_report_can_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="give a folder"):
        html_report.write_report(quick_run(), tmp_path / "file")
    with pytest.raises(FileNotFoundError):
        html_report.write_report(quick_run(), tmp_path / "no" / "report")
