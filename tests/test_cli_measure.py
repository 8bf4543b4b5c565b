"""The commands that measure, run for real: sweep, evaluate, demo, and the reports they write."""

import csv
import functools
import json
import sys

import numpy as np
import pytest
from command_line import in_process
from flax import nnx

import corrq_jax as corrq
from corrq_jax import fidelity
from corrq_jax.cli import measure
from corrq_jax.data import batches, fashion_mnist
from corrq_jax.flax import functional
from corrq_jax.models.efficientnet_lite_weights import installed_weights
from corrq_jax.peers import PEERS
from corrq_jax.results import Run


class TestSweep:
    def test_json(self, done, npz):
        words = ("--bits", "4", "--method", "optimal", "--json")
        run = Run.from_json(done("sweep", npz, *words))
        assert [r.key for r in run.results] == ["optimal @ 4"]
        assert run.weights == 3 * 3 * 8 * 16 + 32 * 40 + 32 * 24

    def test_fractional_bits(self, done, npz):
        words = ("--method", "mixed bits", "--method", "linear", "--json")
        run = Run.from_json(done("sweep", npz, "--bits", "3.25,3.5-4", *words))
        keys = ["mixed bits @ 4", "mixed bits @ 3.5", "mixed bits @ 3.25", "linear @ 4"]
        assert [r.key for r in run.results] == keys
        mixed = run.results[:3]
        assert all(r.mixed and not r.matched and r.bits_per_weight <= r.bits for r in mixed)

    def test_peers(self, done, npz):
        words = ("--bits", "4", "--method", "optimal", "--peers")
        run = Run.from_json(done("sweep", npz, *words, "--json"))
        assert [r.peer for r in run.results].index(True) == 1
        named = {(r.method, r.bits) for r in run.results if r.peer}
        assert named == {(p.name, b) for p in PEERS for b in (2, 3, 4) if b in p.bits}
        shown = done("sweep", npz, *words)
        assert "k-means, tensor (peer)" in shown
        assert "without a header" in shown

    @pytest.mark.filterwarnings("always")
    def test_targets_that_cannot_be_met(self, run, npz):
        code, out, err = run("sweep", npz, "--bits", "1.25", "--method", "mixed bits")
        assert (code, out) == (1, "")
        warning, error = err.splitlines()
        assert warning.startswith("corrq: warning: left out mixed bits at 1.25 bits")
        assert error.startswith("corrq: error: nothing was measured")


def test_errors(failed, npz, tmp_path):
    assert "optimal" in failed("sweep", npz, "--method", "best")
    assert "1 to 8" in failed("sweep", npz, "--bits", "9-4")
    assert "1 to 8" in failed("sweep", npz, "--bits", "few")
    assert "bit widths" in failed("sweep", npz, "--bits", "3", "--method", "nf4")
    assert "known network" in failed("sweep", npz, "--data", tmp_path)
    assert "bit widths" in failed("sweep", npz, "--bits", "2.5", "--method", "optimal")
    assert "known network" in failed("sweep", npz, "--method", "optimal + moments")
    quick = ("--bits", "4", "--method", "nf4")
    assert "is a file" in failed("sweep", npz, *quick, "-o", npz)
    assert "make it first" in failed("sweep", npz, *quick, "-o", tmp_path / "nowhere" / "report")
    assert "make it first" in failed("demo", "-o", tmp_path / "nowhere" / "report")
    assert "1 to 8" in failed("demo", "--bits", "16", "-o", tmp_path / "report")
    assert "efficientnet_lite0" in failed("evaluate", "--model", "no_such_network")


class TinyNet(nnx.Module):
    """A convolution with a normalization, and a classifier."""

    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 32, (3, 3), use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(32, use_running_average=True, rngs=rngs)
        self.last = nnx.Linear(32, 64, rngs=rngs)

    def __call__(self, x):
        return self.last(nnx.relu(self.norm(self.conv(x))).mean(axis=(1, 2)))


@pytest.fixture
def tiny_network(monkeypatch):
    """Takes the place of the real network and its photos."""

    def subject(name, data=None, weights=None):
        images = np.random.default_rng(0).normal(size=(6, 8, 8, 3)).astype(np.float32)
        apply, params = functional(TinyNet(nnx.Rngs(0)))
        pictures = list(batches(images, np.full(6, -1, np.int32), 4))
        return fidelity.Subject(name, apply, params, pictures, views=2)

    monkeypatch.setattr(fidelity, "subject", subject)


def test_sweep_of_a_network_with_mixed_bits_and_peers(run, tiny_network, tmp_path):
    methods = ["optimal", "optimal + moments", "mixed bits", "mixed bits, entropy-coded"]
    words = [word for method in methods for word in ("--method", method)]
    folder = tmp_path / "report"
    code, out, _ = run(
        "sweep", "efficientnet_lite0", *words, "--bits", "4", "--peers", "-o", folder
    )
    assert code == 0
    shown = [r.method for r in Run.from_json((folder / "results.json").read_text()).results]
    written = check_report(folder, shown)
    assert shown[:4] == methods
    assert [r.matched for r in written.results[:4]] == [False, True, True, True]
    assert {r.peer for r in written.results[4:]} == {True}
    assert (written.photos, written.views) == (3, 6)
    assert all(r.agreement is not None for r in written.results)
    assert {"peers-fidelity.png", "peers-correlation.png"} <= {p.name for p in folder.iterdir()}
    for name in (*methods, "HQQ, groups of 64 (peer)"):
        assert name in out


def test_demo_as_json(run, tiny_network, tmp_path):
    folder = tmp_path / "report"
    code, out, _ = run("demo", "--bits", "3.5", "--json", "-o", folder)
    assert code == 0
    found = Run.from_json(out)
    assert found == Run.from_json((folder / "results.json").read_text())
    # Packed and entropy-coded, along a trellis and not.
    assert [r.bits for r in found.results] == [3.5] * 4


REPORT = {"index.html", "results.json", "results.csv"}


def check_report(folder, methods):
    files = {path.name for path in folder.iterdir()}
    assert files > REPORT
    pictures = files - REPORT - {"fashion_resnet"}
    assert pictures
    for name in pictures:
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    run = Run.from_json((folder / "results.json").read_text())
    assert [r.method for r in run.results] == methods
    with (folder / "results.csv").open(newline="") as file:
        assert [row["method"] for row in csv.DictReader(file)] == methods
    assert run.network in (folder / "index.html").read_text()
    return run


def test_sweep_writes_a_report(run, npz, tmp_path):
    words = ("--bits", "4", "--method", "optimal", "--method", "nf4", "-o", tmp_path / "report")
    code, out, err = run("sweep", npz, *words)
    assert code == 0
    assert err.startswith("wrote ")
    assert "optimal" in out
    written = check_report(tmp_path / "report", ["optimal", "nf4"])
    assert written.views == 0
    assert all(r.top1 is None for r in written.results)


def test_evaluate_by_either_names(done, failed, tmp_path, monkeypatch):
    # The photos are read once, not in each call.
    monkeypatch.setattr(fidelity, "subject", functools.cache(fidelity.subject))
    own, torch_names = tmp_path / "own.safetensors", tmp_path / "torch.safetensors"
    for source, file in (
        ("efficientnet_lite0", own),
        (installed_weights("efficientnet_lite0"), torch_names),
    ):
        done("quantize", source, "-o", file, "--bits", "6", "--no-match")
    figures = [json.loads(done("evaluate", file, "--json")) for file in (own, torch_names)]
    assert figures[0] == figures[1]
    assert figures[0]["photos"]["count"] == 24
    assert figures[0]["views"]["count"] == 240
    assert 0.5 < figures[0]["views"]["agreement"] < 1
    assert "top-1" in done("evaluate", own)
    other = tmp_path / "other.safetensors"
    corrq.save(other, {"_fc.bias": np.zeros(1000, np.float32)})
    assert "does not hold efficientnet_lite0" in failed("evaluate", other)


def test_demo(tmp_path):
    # Two methods have fractions of bits; all take minutes.
    done = in_process("demo", "--bits", "3.5", "-o", tmp_path / "report")
    assert done.returncode == 0, done.stderr
    methods = ["mixed bits", "mixed bits, trellis-coded", "mixed bits, entropy-coded"]
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
