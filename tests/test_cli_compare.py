"""`corrq compare`: runs by their files, as a table, as JSON, as a page."""

import dataclasses
import inspect
import json

import pytest
from synthetic_run import synthetic_run

from corrq_jax.cli.app import app

RUN = synthetic_run()


@pytest.fixture
def runs(tmp_path):
    """Two reports' folders and a results.json by another name."""
    for name, bits in (("monday", 4), ("tuesday", 5), ("odd", 6)):
        results = [
            dataclasses.replace(r, agreement=r.agreement / 2) if name == "tuesday" else r
            for r in RUN.results
            if r.method in ("linear", "optimal", "HQQ, groups of 64") and r.bits <= bits
        ]
        folder = tmp_path / name
        folder.mkdir()
        text = dataclasses.replace(RUN, results=results, densities=()).to_json()
        (folder / "results.json").write_text(text)
    (tmp_path / "odd" / "results.json").rename(tmp_path / "odd.json")
    return tmp_path


def test_a_table(done, runs):
    shown = done("compare", runs / "monday", runs / "tuesday" / "results.json")
    lines = [line for line in shown.splitlines() if "tuesday" in line or "monday" in line]
    assert len(lines) == 9 + 11  # at 2 to 4 and 2 to 5 bits; HQQ ends at 4
    (at,) = (i for i, line in enumerate(lines) if "linear" in line and " 4 " in line)
    was = next(r.agreement for r in RUN.results if r.key == "linear @ 4")
    assert f"{100 * was:.1f} %" in lines[at]
    assert f"{-50 * was:+.1f} " in lines[at + 1]
    assert "HQQ, groups of 64 (peer)" in shown


def test_json(done, runs):
    rows = json.loads(done("compare", runs / "monday", runs / "tuesday", "--json"))
    assert [[side["run"] for side in row] for row in rows].count(["monday", "tuesday"]) == 9
    first, second = rows[2]
    assert first["result"]["method"] == "linear"
    change = second["result"]["agreement"] - first["result"]["agreement"]
    assert second["agreement"] == {"value": change, "low": None, "high": None}
    assert first["agreement"] is None


def test_a_page(run, runs):
    page = runs / "both.html"
    code, out, err = run("compare", runs / "monday", runs / "odd.json", "-o", page, "--json")
    assert (code, err) == (0, f"wrote {page}\n")
    json.loads(out)
    text = page.read_text(encoding="utf-8")
    assert "<dd>monday</dd>" in text
    assert "<dd>odd</dd>" in text
    code, _, err = run("compare", runs / "monday", "-o", page)
    assert (code, err) == (1, f"corrq: error: {page} exists; choose another name or add --force\n")
    assert run("compare", runs / "monday", "-o", page, "--force")[0] == 0
    assert "<dd>odd</dd>" not in page.read_text(encoding="utf-8")


def test_runs_of_one_name_go_by_their_paths(done, runs):
    (runs / "more").mkdir()
    (runs / "monday").rename(runs / "more" / "tuesday")
    two = runs / "more" / "tuesday", runs / "tuesday"
    rows = json.loads(done("compare", *two, "--json"))
    assert {s["run"] for row in rows for s in row} == {str(p / "results.json") for p in two}


def test_every_command_can_print_json():
    named = {command.callback.__name__: command.callback for command in app.registered_commands}
    assert {"compare", "demo", "dequantize", "quantize"} < set(named)
    for name, command in named.items():
        assert "as_json" in inspect.signature(command).parameters, name


def test_errors(failed, runs):
    assert "no such file" in failed("compare", runs / "nowhere")
    assert "no such file" in failed("compare", runs)
    assert "given twice" in failed("compare", runs / "monday", runs / "monday")
    assert "name it with .html" in failed("compare", runs / "monday", "-o", runs / "page.txt")
    assert "make it first" in failed("compare", runs / "monday", "-o", runs / "a" / "page.html")
    (runs / "bad.json").write_text("{}")
    assert "bad.json: not a run" in failed("compare", runs / "bad.json")
    (runs / "bad.json").write_bytes(b"\xff")
    assert "bad.json" in failed("compare", runs / "bad.json")
