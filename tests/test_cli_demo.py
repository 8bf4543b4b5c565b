"""The command `demo`, run for real, and what it does without its pictures."""

import sys

import pytest
from command_line import check_report

from corrq_jax import fidelity, sweep
from corrq_jax.cli import measure
from corrq_jax.data import fashion_mnist
from corrq_jax.methods import methods as methods_of
from corrq_jax.results import Run


def test_demo_as_json(run, tiny_network, tmp_path):
    folder = tmp_path / "report"
    code, out, _ = run("demo", "--bits", "3.5", "--json", "-o", folder)
    assert code == 0
    found = Run.from_json(out)
    assert found == Run.from_json((folder / "results.json").read_text())
    # Packed and entropy-coded, along a trellis and not.
    assert [r.bits for r in found.results] == [3.5] * 4


def test_demo(run, tmp_path, monkeypatch):
    """One method, of which all is shown; on a tenth of the test set."""
    methods = ["mixed bits, entropy-coded"]
    monkeypatch.setattr(sweep, "METHODS", methods_of(methods))
    whole = fidelity.subject

    def subject(name, **options):
        return whole(name, limit=1000 if name == "fashion_resnet" else None, **options)

    monkeypatch.setattr(fidelity, "subject", subject)
    code, out, err = run("demo", "--bits", "3.5", "-o", tmp_path / "report")
    assert code == 0, err
    written = check_report(tmp_path / "report", methods)
    assert "\x1b" not in out + err
    assert "…" not in out
    for method in ("float", *methods):
        assert f"│ {method} " in out
    assert "fidelity" in out
    assert (written.photos, written.views) == (24, 240)
    assert written.float_top1 == pytest.approx(22 / 24)
    assert all(r.agreement > 0.9 and r.bits_per_weight <= 3.5 for r in written.results)
    assert (tmp_path / "report" / "index.html").stat().st_size > 50_000
    if not fashion_mnist.DEBIAN_FOLDER.is_dir():
        assert "fashion_resnet is left out. Fashion-MNIST is not on this machine" in err
        return
    second = check_report(tmp_path / "report" / "fashion_resnet", methods)
    assert (second.photos, second.views) == (1000, 1000)
    assert second.float_top1 > 0.92
    for result in second.results:
        assert result.gained - result.lost == round(1000 * (result.top1 - second.float_top1))
        assert f"{result.top1:.1%}".replace("%", " %") in out
    assert "this is accuracy" in out


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
