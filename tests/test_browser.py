"""The page in a real browser: everything is clicked through, on a desk and on a phone."""

import json
import shutil

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select
from synthetic_run import detailed_run, synthetic_run

from corrq_jax.html_report import render, render_runs

_BROWSER, _DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (_BROWSER and _DRIVER),
    reason="no chromium and chromedriver here: apt-get install chromium chromium-driver",
)
RUN = detailed_run()


@pytest.fixture(scope="module")
def driver():
    options = webdriver.ChromeOptions()
    options.binary_location = _BROWSER
    for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(_DRIVER))
    yield found
    found.quit()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    texts = {
        "one": render(RUN),
        "two": render_runs({"monday": RUN, "tuesday": detailed_run(seed=1)}),
        "bare": render(synthetic_run()),
    }
    for name, text in texts.items():
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    return {name: (folder / f"{name}.html").as_uri() for name in texts}


@pytest.fixture
def show(driver, pages):
    """Shows a page at a width; after the test, nothing may have gone wrong or left the page."""

    def call(name="one", width=1200, scheme="light"):
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        driver.get(pages[name])

    for kind in ("browser", "performance"):
        driver.get_log(kind)
    yield call
    assert driver.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    asked = [
        m["params"]["request"]["url"]
        for m in messages
        if m["method"] == "Network.requestWillBeSent"
    ]
    assert asked
    assert all(url.startswith(("file:", "data:image/jpeg")) for url in asked)


def one(driver, selector):
    return driver.find_element(By.CSS_SELECTOR, selector)


def texts(driver, selector):
    return [e.text for e in driver.find_elements(By.CSS_SELECTOR, selector)]


def click(driver, selector):
    """As a pointer does, in the middle of what can be seen; what lies under another is refused."""
    element = one(driver, selector)
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
    element.click()


def number(method, bits):
    return next(i for i, r in enumerate(RUN.results) if (r.method, r.bits) == (method, bits))


def chosen(driver):
    return {k: Select(one(driver, f"#{k}")).first_selected_option.text for k in "ab"}


def test_what_is_seen_first(driver, show):
    show()
    assert chosen(driver) == {"a": "mixed bits, entropy-coded @ 3", "b": "linear @ 3"}
    claims = [c for c in texts(driver, ".claim") if c]
    assert len(claims) == 8
    assert "Methods differ most at" in claims[0]
    marked = driver.find_elements(By.CSS_SELECTOR, "tr[data-mark]")
    assert [row.get_attribute("data-mark") for row in marked] == ["b", "a"]
    for plot in driver.find_elements(By.CSS_SELECTOR, ".plot svg"):
        assert plot.get_attribute("aria-label")
    assert all(i.get_property("naturalWidth") for i in driver.find_elements(By.TAG_NAME, "img"))


def test_a_method_is_picked_in_the_table_the_chart_and_the_list(driver, show):
    show()
    click(driver, f"tr[data-result='{number('optimal', 4)}'] button.pick")
    assert chosen(driver)["a"] == "optimal @ 4"
    assert "16 levels" in one(driver, "#density-a .claim").text
    point = one(driver, f"#loss-chart [data-result='{number('linear', 8)}']")
    driver.execute_script("arguments[0].focus()", point)
    assert "linear @ 8: agreement 100.0 %" in one(driver, "#loss-chart .readout").text
    point.send_keys(Keys.ENTER)
    assert chosen(driver)["a"] == "linear @ 8"
    focused = driver.switch_to.active_element.get_attribute("data-result")
    assert focused == str(number("linear", 8))  # who goes by keys stays where they are
    Select(one(driver, "#b")).select_by_visible_text("HQQ, groups of 64 @ 3 (peer)")
    assert one(driver, "#compare-claim").text.startswith("A is ")
    Select(one(driver, "#b")).select_by_visible_text("nothing")
    assert "Choose a B" in one(driver, "#compare-claim").text
    assert not one(driver, "#density-b").is_displayed()


def test_a_layer_is_picked(driver, show):
    show()
    paths = [layer.path for layer in RUN.layers["optimal @ 4"]]
    assert one(driver, "#layer").get_attribute("value") == paths[4]  # the largest
    click(driver, f"#noise-chart rect[data-layer='{paths[1]}']")
    assert one(driver, "#layer").get_attribute("value") == paths[1]
    assert paths[1] in one(driver, "#noise-chart .readout").text
    assert one(driver, "#bits-chart .picked").get_attribute("data-layer") == paths[1]
    one(driver, "#bits-chart svg").send_keys(Keys.ARROW_RIGHT)
    assert one(driver, "#layer").get_attribute("value") == paths[2]
    one(driver, "#bits-chart svg").send_keys(Keys.ARROW_RIGHT)
    assert one(driver, "#layer").get_attribute("value") == paths[3]
    Select(one(driver, "#layer")).select_by_index(0)
    assert "in units of its scale" in one(driver, "#density-a svg").text
    assert "in units of its scale" not in one(driver, "#density-b svg").text
    assert len(driver.find_elements(By.CSS_SELECTOR, "#density-b .level")) == 8


def test_tables_are_sorted(driver, show):
    show()

    def sizes():
        cells = driver.find_elements(
            By.CSS_SELECTOR, "#results-table tr[data-result] td:nth-child(2)"
        )
        return [float(cell.get_attribute("data-sort")) for cell in cells]

    before = sizes()
    click(driver, "#results-table button[data-column='0']")
    assert sizes() == sorted(before, reverse=True)
    assert one(driver, "#results-table th[aria-sort='descending']").text.startswith("MB")
    assert "@ 8" in one(driver, "#results-table tr[data-result]").text
    click(driver, "#results-table button[data-column='0']")
    assert sizes() == sorted(before)
    click(driver, "#results-table button[data-column='0']")
    assert sizes() == before
    assert one(driver, "#results-table tr.group").is_displayed()
    click(driver, "#results-table button[data-column='-1']")
    names = texts(driver, "#results-table tr[data-result] button.pick")
    assert names == sorted(names, key=lambda name: name.replace(",", "").lower()) or names[
        0
    ].startswith("exponential")
    click(driver, "details summary")
    click(driver, "#layers-table button[data-column='11']")
    weights = texts(driver, "#layers-table tbody td:nth-child(12)")
    found = [int(text.replace(",", "")) for text in weights]
    assert found == sorted(found, reverse=True)
    assert len(found) == 5
    click(driver, "#layers-table tbody tr:last-child button.pick")
    assert one(driver, "#layer").get_attribute("value") == "params/blocks_0/depthwise/kernel"


def test_what_is_drawn_is_chosen(driver, show):
    show()
    click(driver, "#loss-chart [data-value='kl']")
    assert "KL divergence" in one(driver, "#loss-chart .plot").text
    one(driver, "#loss-chart [aria-checked='true']").send_keys(Keys.ARROW_RIGHT)
    assert one(driver, "#loss-chart [aria-checked='true']").text == "1 − ρ²"  # noqa: RUF001
    points = len(driver.find_elements(By.CSS_SELECTOR, "#loss-chart .point"))
    click(driver, "#loss-chart [data-series='linear']")
    assert len(driver.find_elements(By.CSS_SELECTOR, "#loss-chart .point")) == points - 7
    assert one(driver, "[data-series='linear']").get_attribute("aria-pressed") == "false"
    click(driver, "#loss-chart [data-series='linear']")
    assert len(driver.find_elements(By.CSS_SELECTOR, "#loss-chart .point")) == points


def test_the_theme(driver, show):
    def ground():
        return one(driver, "body").value_of_css_property("background-color")

    show()
    light = ground()
    click(driver, "#theme")
    assert (one(driver, "#theme-name").text, ground()) == ("light", light)
    click(driver, "#theme")
    dark = ground()
    assert one(driver, "#theme-name").text == "dark"
    assert dark != light
    click(driver, "#theme")
    assert (one(driver, "#theme-name").text, ground()) == ("auto", light)
    show(scheme="dark")
    assert ground() == dark


def test_pictures(driver, show):
    show()
    click(driver, f"tr[data-result='{number('linear', 4)}'] button.pick")
    assert len(driver.find_elements(By.CSS_SELECTOR, "#pictures-grid figure")) == 24
    changed = [p for p in texts(driver, "#pictures-grid p.changed") if p.startswith("A: ≠ kind")]
    assert f"to {len(changed)} of the 24" in one(driver, "#pictures-claim").text
    click(driver, "#pictures-shown [data-value='changed']")
    shown = driver.find_elements(By.CSS_SELECTOR, "#pictures-grid figure")
    assert 0 < len(shown) == len(changed) < 24
    assert all("A: ≠ kind" in figure.text for figure in shown)
    first = texts(driver, "#confused tbody tr:first-child > *")
    assert first[0].startswith("kind ")
    assert int(first[2]) >= 1
    assert len(driver.find_elements(By.CSS_SELECTOR, "#matrix td")) == 144


def test_two_runs(driver, show):
    show("two")
    assert [
        g.get_attribute("label") for g in driver.find_elements(By.CSS_SELECTOR, "#b optgroup")
    ] == ["monday", "tuesday"]
    # The same method of the other run stands beside.
    assert set(chosen(driver).values()) == {"mixed bits, entropy-coded @ 3"}
    first, second = str(number("linear", 4)), str(len(RUN.results) + number("optimal", 3))

    def agreement(a, b):
        """Cells of the row: its name, A, B, A less B."""
        Select(one(driver, "#a")).select_by_value(a)
        Select(one(driver, "#b")).select_by_value(b)
        return texts(driver, "#compare-table tr[data-figure='agreement'] > *")

    name, *figures, forth = agreement(first, second)
    assert name == "agreement with float"
    assert all(" to " in text for text in (*figures, forth))
    assert agreement(second, first)[1:3] == figures[::-1]
    swapped = agreement(second, first)[3].translate(str.maketrans("+−", "−+"))  # noqa: RUF001
    middle, ends = swapped.rstrip(")").split(" (")
    low, high = ends.split(" to ")
    assert forth == f"{middle} ({high} to {low})"
    assert not middle.startswith(("+0.0", "−0.0"))  # noqa: RUF001


@pytest.mark.parametrize("name", ["one", "two", "bare"])
def test_a_phone_need_not_scroll_sideways(driver, show, name):
    show(name, width=360)
    script = "return document.documentElement.scrollWidth"
    assert driver.execute_script(script) == 360
    for plot in driver.find_elements(By.CSS_SELECTOR, ".plot svg"):
        assert plot.rect["width"] <= 340
    if name == "one":
        click(driver, "details summary")
        assert driver.execute_script(script) == 360


def test_a_page_of_an_older_run(driver, show):
    show("bare")
    assert "nothing is known" in one(driver, "#density-a .claim").text.lower() or (
        "Nothing is known" in one(driver, "#noise-chart .claim").text
    )
