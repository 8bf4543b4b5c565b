import base64
import csv
import dataclasses
import html.parser
import io
import re

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

from synthetic_run import synthetic_run

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
VOID = {"meta", "img", "br", "wbr", "link", "input", "hr"}
HOSTILE = "<script>alert('x')</script>&\"{{ 7*7 }}"


class Page(html.parser.HTMLParser):
    """The page's elements; fails on a tag that is not closed in turn."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "title"):
            self.texts.append(data)

    @property
    def text(self):
        return " ".join("".join(self.texts).split())

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


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


def table(source):
    """The results table's body as rows of cell sources."""
    body = source.partition("<table>")[2].partition("</table>")[0]
    rows = re.findall(r"<tr>(.*?)</tr>", body, re.DOTALL)
    return [re.findall(r"<t[hd](.*?)>(.*?)</t[hd]>", row, re.DOTALL) for row in rows]


def test_the_page_stands_alone(page, source):
    assert "http:" not in source
    assert "https:" not in source
    assert not re.search(r"@import|url\(", source)
    for tag in ("script", "link", "iframe", "object"):
        assert page.all(tag) == []
    for _, attributes in page.elements:
        for name in ("src", "href", "srcset"):
            assert attributes.get(name, "data:").startswith("data:")
    assert "default-src 'none'" in source


def test_the_page_is_for_phones_and_dark_screens(page, source):
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.all(
        "meta"
    )
    assert "prefers-color-scheme: dark" in source
    assert page.all("html") == [{"lang": "en"}]


def test_every_figure_is_a_picture_with_words(page):
    image = pytest.importorskip("PIL.Image")
    pictures = page.all("img")
    assert len(pictures) == 8 == len(page.all("figcaption"))
    for picture in pictures:
        data = base64.b64decode(
            picture["src"].removeprefix("data:image/png;base64,"), validate=True
        )
        with image.open(io.BytesIO(data)) as decoded:
            decoded.load()
            assert decoded.format == "PNG"
        assert len(picture["alt"]) > 40
    assert "At 4 bits: linear 0.067, exponential 0.019" in pictures[0]["alt"]


def test_what_was_quantized(page):
    for fact in ("EfficientNet-Lite0", "4,652,008", "18.63 MB", "240 views of 24 photos"):
        assert fact in page.text
    for name, value in RUN.environment.items():
        assert f"{name} {value}" in page.text.replace("</dt><dd>", " ") or value in page.text


def test_the_table_holds_every_result(source):
    header, floats, *rows = table(source)
    headings = [text for _, text in header]
    assert headings[:5] == ["method", "MB", "smaller", "agreement", "KL"]
    assert dict(zip(headings, (t for _, t in floats), strict=True))["top-1"] == "81.2%"
    by_bits = sorted(RUN.results, key=lambda r: (r.bits, r.peer))
    assert len(rows) == len(by_bits) == 56
    for row, result in zip(rows, by_bits, strict=True):
        cells = dict(zip(headings, (text for _, text in row), strict=True))
        assert cells["method"] == (f"<i>{result.method}</i>" if result.peer else result.method)
        assert cells["MB"] == f"{result.file_nbytes / 1e6:.2f}"
        assert cells["mean ρ"] == f"{result.mean_correlation:.5f}"  # noqa: RUF001
        assert cells["agreement"] == f"{100 * result.agreement:.1f}%"
        assert float(cells["KL"]) == pytest.approx(result.kl, rel=6e-3)


def test_the_best_of_each_width_is_marked(source):
    header, _, *rows = table(source)
    headings = [text for _, text in header]
    for heading in ("KL", "mean ρ"):  # noqa: RUF001
        at = headings.index(heading)
        marked = {row[0][1] for row in rows[:10] if "best" in row[at][0]}
        assert marked == {"mixed bits, entropy-coded"}


def test_smaller_files_and_lower_kl_are_better():
    small = dataclasses.replace(RUN.results[0], method="small", file_nbytes=10**6, kl=0.01)
    large = dataclasses.replace(RUN.results[0], method="large", file_nbytes=10**7, kl=9.0)
    run = dataclasses.replace(RUN, results=(small, large), densities=())
    header, _, first, second = table(html_report.render(run))
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


def test_layers_of_chosen_results(page, source):
    for key, layers in RUN.layers.items():
        assert f"{key} bits" in page.text
        for layer in layers:
            assert layer.path in page.text
            assert f"{layer.correlation:.5f}" in page.text
    assert "1×1×320×1280" in source  # noqa: RUF001
    assert [a for a in page.all("details") if "open" in a] == page.all("details")[:1]


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
    headlines = text.partition("Smallest file")[2].partition("Results")[0]
    assert headlines
    assert "other" not in headlines


def test_names_are_escaped():
    layer = LayerResult(HOSTILE, (2, 2), 4, 4, None, 2)
    run = dataclasses.replace(
        RUN,
        network=HOSTILE,
        results=(dataclasses.replace(RUN.results[0], method=HOSTILE),),
        layers={HOSTILE: (layer,)},
        densities=(dataclasses.replace(RUN.densities[0], path=HOSTILE, method=HOSTILE),),
        environment={HOSTILE: HOSTILE},
    )
    source = html_report.render(run)
    page = Page(source)
    assert "<script" not in source
    assert page.all("script") == []
    assert "49" not in re.sub(r"data:[^\"]*", "", source).replace("2,449", "")[:3000]
    assert page.text.count(HOSTILE) >= 7
    assert any(HOSTILE in picture["alt"] for picture in page.all("img"))


def test_a_run_without_fidelity():
    bare = [
        dataclasses.replace(
            *(r,), top1=None, top5=None, agreement=None, kl=None, logit_correlation=None
        )
        for r in RUN.results
    ]
    run = dataclasses.replace(
        *(RUN,),
        results=tuple(bare),
        layers={},
        densities=(),
        photos=0,
        views=0,
        float_top1=None,
        float_top5=None,
    )
    page = Page(html_report.render(run))
    assert len(page.all("img")) == 2  # 1 - rho^2, without and with peers
    for absent in ("agreement", "photos", "top-1", "Smallest file", "Layers"):
        assert absent not in page.text


def test_a_data_set_is_no_views_of_photos():
    source = html_report.render(data_set(10_000))
    page = Page(source)
    assert "compared on10,000 pictures" in page.text.replace("compared on ", "compared on")
    assert "Top-1 and top-5 are accuracy on 10,000 pictures (imagenet <2012>)." in page.text
    assert "Agreement and KL were measured on 10,000 pictures. They are fidelity" in page.text
    assert "float network on 10,000 pictures (above)" in page.text
    for absent in ("views", "photo", "no test set"):
        assert absent not in page.text


@pytest.mark.parametrize(("pictures", "warned"), [(999, True), (1000, False)])
def test_few_pictures_are_no_test_set(pictures, warned):
    text = Page(html_report.render(data_set(pictures))).text
    assert ("So few pictures are no test set" in text) == warned
    assert Page(html_report.render(data_set(1))).text.count("on 1 picture ") >= 2


def test_a_data_set_without_labels():
    bare = tuple(dataclasses.replace(r, top1=None, top5=None) for r in RUN.results)
    run = data_set(5000, results=bare, float_top1=None, float_top5=None)
    page = Page(html_report.render(run))
    assert "measured on 5,000 pictures (imagenet <2012>). They are fidelity" in page.text
    assert "accuracy on" not in page.text
    assert not any("of accuracy" in picture["alt"] for picture in page.all("img"))


def test_published_figures_are_beside_ours():
    run = data_set(10_000, float_top1=0.709, float_top5=0.898)
    source = html_report.render(run, (PUBLISHED, NOT_RUN))
    page = Page(source)
    text = page.text.partition("Beside the published figures")[2].partition("Figures")[0]
    assert "what was measured here on 10,000 pictures." in text
    assert "do not say which grid or which levels" in text
    assert "nor the number of pictures or the preprocessing" in text
    body = source.partition('aria-labelledby="published"')[2].partition("</table>")[0]
    rows = [re.findall(r"<t[hd].*?>(.*?)</t[hd]>", r) for r in re.findall(r"<tr>.*?</tr>", body)]
    assert rows[1:] == [
        ["float network", "–", "90.1% (top-1 71.3%)", "89.8% (top-1 70.9%)"],  # noqa: RUF001
        [
            *("Part II", "3", "76%"),
            "linear + correlation: 70.1%<br>exponential + correlation: 70.0%",
        ],
        ["Part I", "5", "69%", "not run"],
    ]
    assert "no test set" not in text
    assert "http" not in re.sub(r"http-equiv|data:[^\"]*", "", source)
    assert page.all("a") == []


def test_published_figures_beside_photos_and_unknown_networks():
    figure = Published(HOSTILE, HOSTILE, 3, 0.76, (HOSTILE,))
    source = html_report.render(RUN, [Comparison(figure, ((HOSTILE, 0.5),))])
    text = Page(source).text
    assert "here on 24 photos." in text
    assert "So few pictures as here are no test set." in text
    assert f"Part {HOSTILE}" in text
    assert f"{HOSTILE}: 50.0%" in text
    assert "<script" not in source
    assert "top-1 81.2%" not in text


def test_the_report_that_is_written_has_the_published_figures(tmp_path):
    *_, path = html_report.write_report(RUN, tmp_path / "report", published=[PUBLISHED])
    assert path.read_text(encoding="utf-8") == html_report.render(RUN, [PUBLISHED])


def test_no_published_figures_no_word_of_them(page):
    assert "published" not in page.text


def test_a_run_without_results_is_refused(tmp_path):
    run = dataclasses.replace(RUN, results=())
    with pytest.raises(InputError, match="'EfficientNet-Lite0': no results to report"):
        html_report.render(run)
    with pytest.raises(InputError, match="no results"):
        html_report.write_report(run, tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_exact_results_alone():
    exact = dataclasses.replace(RUN.results[0], mean_correlation=1.0, kl=0.0, agreement=1.0)
    page = Page(html_report.render(dataclasses.replace(RUN, results=(exact,), densities=())))
    assert len(page.all("img")) == 1


def test_write_report(tmp_path, source):
    image = pytest.importorskip("PIL.Image")
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
    for path in paths[:8]:
        with image.open(path) as picture:
            picture.load()


def test_an_earlier_report_is_kept_unless_told(tmp_path):
    (tmp_path / "results.csv").write_text("mine")
    with pytest.raises(FileExistsError, match=r"has results\.csv already.*overwrite=True"):
        html_report.write_report(RUN, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["results.csv"]
    html_report.write_report(RUN, tmp_path, overwrite=True)
    assert (tmp_path / "results.csv").read_text() != "mine"


def test_where_no_report_can_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="give a folder"):
        html_report.write_report(RUN, tmp_path / "file")
    with pytest.raises(FileNotFoundError):
        html_report.write_report(RUN, tmp_path / "no" / "report")
