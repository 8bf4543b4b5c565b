"""The command `demo`, run for real, and what it does without its pictures."""

import sys

import pytest
from command_line import check_report, in_process

from corrq_jax.cli import measure
from corrq_jax.data import fashion_mnist
from corrq_jax.results import Run


def test_demo_as_json(run, tiny_network, tmp_path):
    folder = tmp_path / "report"
    code, out, _ = run("demo", "--bits", "3.5", "--json", "-o", folder)
    assert code == 0
    found = Run.from_json(out)
    assert found == Run.from_json((folder / "results.json").read_text())
    # Packed and entropy-coded, along a trellis and not.
    assert [r.bits for r in found.results] == [3.5] * 4


def test_demo(tmp_path):
    # The methods that have fractions of bits; all take minutes.
    done = in_process("demo", "--bits", "3.5", "-o", tmp_path / "report")
    assert done.returncode == 0, done.stderr
    methods = ["mixed bits", "mixed bits, trellis-coded", "mixed bits, entropy-coded"]
    methods.append("mixed bits, entropy-coded trellis")
    written = check_report(tmp_path / "report", methods)
    assert "\x1b" not in done.stdout + done.stderr
    assert "…" not in done.stdout
    for method in ("float", *methods):
        assert f"│ {method} " in done.stdout
    assert "fidelity" in done.stdout
    assert (written.photos, written.views) == (24, 240)
    assert written.float_top1 == pytest.approx(22 / 24)
    assert all(r.agreement > 0.9 and r.bits_per_weight <= 3.5 for r in written.results)
    assert (tmp_path / "report" / "index.html").stat().st_size > 50_000
    if not fashion_mnist.DEBIAN_FOLDER.is_dir():
        assert "fashion_resnet is left out. Fashion-MNIST is not on this machine" in done.stderr
        return
    second = check_report(tmp_path / "report" / "fashion_resnet", methods)
    assert (second.photos, second.views) == (10_000, 10_000)
    assert second.float_top1 > 0.92
    for result in second.results:
        assert result.gained - result.lost == round(10_000 * (result.top1 - second.float_top1))
        assert f"{result.top1:.1%}".replace("%", " %") in done.stdout
    assert "this is accuracy" in done.stdout


def test_the_second_network_without_its_pictures(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path / "nowhere")
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    measure._second_network([], tmp_path / "report")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(
        "fashion_resnet is left out. Fashion-MNIST is not on this machine: on Deb"
    )
    assert list(tmp_path.iterdir()) == []
