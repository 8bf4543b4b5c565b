"""Ten thousand damaged and hostile inputs; tests/fuzz.py reads a million."""

import os
import pathlib

import fuzz
import pytest


@pytest.mark.parametrize("kind", fuzz.SHARES)
def test_damaged_inputs_are_refused_or_read_as_others_read_them(kind):
    wrong = []
    inputs = round(10_000 * fuzz.SHARES[kind])
    counts = fuzz.fuzz(inputs, "ci", 1, [kind], wrong.append)[kind]
    assert not wrong
    assert counts.total() == inputs
    # Deep layers are reached: damage that is found at once says little.
    assert counts["read"] > inputs / 50
    assert counts["refused"] > inputs / 5


@pytest.mark.skipif(not pathlib.Path("/proc/self/statm").exists(), reason="measures memory there")
@pytest.mark.parametrize(
    ("read", "found"),
    [
        ("lambda path: os.abort()", "crash (-6)"),
        ("lambda path: exec('while True: pass')", "hang"),
        ("lambda path: np.ones(2**30)", "MemoryError"),
        ("lambda path: os.system('true')", "it did"),
        ("lambda path: open('other', 'w').close()", "it did"),
        ("lambda path: {}[path]", "KeyError"),
        ("lambda path: {'a': np.zeros(1)}", "and it is {}"),
    ],
)
def test_what_is_wrong_is_seen(read, found, tmp_path, monkeypatch):
    """Readers that do what no reader may."""
    for name, text in (
        ("real_kinds", (fuzz.HERE / "fuzz_kinds.py").read_text()),
        ("fuzz_child", (fuzz.HERE / "fuzz_child.py").read_text().replace("= 10 ", "= 0.3 ")),
        (
            "fuzz_kinds",
            "import os\nfrom real_kinds import *\n"
            f"read = {read}\n"
            "KINDS['npz'] = KINDS['npz']._replace(\n"
            "    read=lambda path: read(path) if pathlib.Path('at').exists() else None,\n"
            "    again=lambda data: {})",
        ),
    ):
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", f"{fuzz.HERE}{os.pathsep}{fuzz.HERE.parent}")
    monkeypatch.setattr(fuzz, "HERE", tmp_path)
    wrong = []
    counts = fuzz.fuzz(1, "ci", 1, ["npz"], wrong.append)["npz"]
    assert counts == {"wrong": 1}
    assert found in wrong[0]
