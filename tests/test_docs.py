"""The documents are whole: links, contents, figures. `test_docs_run.py` runs their code."""

import re
import subprocess
import sys
import tomllib

import pytest
from documents import BLOCK, DOCUMENTS, ROOT, name_of
from test_public_api import PUBLIC


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_relative_links_exist(document):
    for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
        assert (document.parent / target).exists(), target


def test_the_version_has_notes():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    newest = re.search(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.M)[1]
    dated = re.fullmatch(r"\[(\S+)\] - \d{4}-\d\d-\d\d", newest)
    assert (dated[1] if dated else "Unreleased") == (version if dated else newest)
    assert bool(dated) != version.endswith(".dev0")


def test_the_first_figures_are_those_of_the_tables():
    text = (ROOT / "README.md").read_text()
    first = re.search(
        r"keeps ([\d.]+ %) of its\s+answers .* at ([\d.]+) bits a weight; 4-bit .* keep ([\d.]+ %)",
        text,
    )
    ours, bits, integers = first.groups()
    assert re.search(rf"^\| {re.escape(bits)} \|.* {re.escape(ours)}, ", text, re.M)
    assert re.search(rf"^\| int absmax, channel \|.* 4\.\d+: {re.escape(integers)}, ", text, re.M)


def test_no_command_hides_from_the_checks():
    for document in DOCUMENTS:
        lines = BLOCK.sub("", document.read_text()).splitlines()
        hidden = [line for line in lines if re.match(r" {4,}(corrq|python3?|pip|\$) ", line)]
        assert not hidden, (document.name, hidden)


def test_every_page_is_in_a_table_of_contents():
    listed = set()
    for page in (ROOT / "docs").rglob("*.md"):
        for toctree in re.findall(r"^```\{toctree\}\n(.*?)^```$", page.read_text(), re.M | re.S):
            names = [line for line in toctree.splitlines() if line and not line.startswith(":")]
            listed |= {(page.parent / f"{name}.md").resolve() for name in names}
    pages = {page.resolve() for page in (ROOT / "docs").rglob("*.md")}
    assert pages - listed == {ROOT / "docs" / "index.md"}
    assert listed <= pages


def test_the_api_pages_are_of_the_public_modules():
    pages = (ROOT / "docs" / "api").glob("*.md")
    text = "\n".join(page.read_text() for page in pages)
    assert sorted(re.findall(r"^\.\. automodule:: (\S+)$", text, re.M)) == sorted(PUBLIC)


def test_the_site_is_built_without_warnings_and_asks_no_other_host(tmp_path):
    pytest.importorskip("sphinx")
    pytest.importorskip("furo")
    build = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "docs", str(tmp_path)]
    done = subprocess.run(build, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    check = [sys.executable, ".ci/site.py", str(tmp_path)]
    done = subprocess.run(check, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout


def test_the_figures_are_those_that_are_drawn(tmp_path):
    figures = ROOT / "docs" / "figures"
    command = [sys.executable, str(figures / "make.py"), str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    drawn = {path.name for path in tmp_path.glob("*.svg")}
    assert drawn == {path.name for path in figures.glob("*.svg")}
    pages = "".join(page.read_text() for page in DOCUMENTS)
    assert all(f"(figures/{name})" in pages for name in drawn)
