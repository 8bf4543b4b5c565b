"""The commands that measure, run for real: sweep, evaluate, and the reports they write."""

import json
import types

import numpy as np
import pytest
from command_line import check_report

import corrq_jax as corrq
from corrq_jax import fidelity
from corrq_jax.metrics import metrics_from_logits
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


def test_sweep_writes_a_report(run, npz, tmp_path):
    words = ("--bits", "4", "--method", "optimal", "--method", "nf4", "-o", tmp_path / "report")
    code, out, err = run("sweep", npz, *words)
    assert code == 0
    assert err.startswith("wrote ")
    assert "optimal" in out
    written = check_report(tmp_path / "report", ["optimal", "nf4"])
    assert written.views == 0
    assert all(r.top1 is None for r in written.results)


def test_figures_that_are_undefined_are_null_in_json(monkeypatch, done):
    logits = np.full((2, 3), np.nan, np.float32)
    both = metrics_from_logits(logits[:1], [0]), metrics_from_logits(logits, [0, 1], logits)
    subject = types.SimpleNamespace(params={}, corrupt={}, measure=lambda *_: both)
    monkeypatch.setattr(fidelity, "subject", lambda *_, **__: subject)

    def refuse(text):
        raise AssertionError(text)

    views = json.loads(done("evaluate", "--json"), parse_constant=refuse)["views"]
    assert (views["kl"], views["correlation"], views["agreement"]) == (None, None, 0)


@pytest.mark.usefixtures("four_photos")
def test_evaluate_by_either_names(done, failed, tmp_path):
    own, torch_names = tmp_path / "own.safetensors", tmp_path / "torch.safetensors"
    for source, file in (
        ("efficientnet_lite0", own),
        (installed_weights("efficientnet_lite0"), torch_names),
    ):
        done("quantize", source, "-o", file, "--bits", "5", "--no-match")
    figures = [json.loads(done("evaluate", file, "--json")) for file in (own, torch_names)]
    assert figures[0] == figures[1]
    assert figures[0]["photos"]["count"] == 4
    assert figures[0]["views"]["count"] == 40
    assert 0.5 < figures[0]["views"]["agreement"] < 1
    assert "top-1" in done("evaluate", own)
    other = tmp_path / "other.safetensors"
    corrq.save(other, {"_fc.bias": np.zeros(1000, np.float32)})
    assert "does not hold efficientnet_lite0" in failed("evaluate", other)
