"""Sweeps: which cells there are, true sizes, densities that agree with the quantizer, reports."""

import math
import pathlib

import numpy as np
import pytest

import corrq_jax as corrq
from corrq_jax import sweep as sweeping
from corrq_jax.errors import InputError
from corrq_jax.evaluation import Metrics
from corrq_jax.html_report import write_report
from corrq_jax.results import Run
from corrq_jax.sweep import METHODS, cells, layer_density, make_run, methods, sweep, typical_paths
from corrq_jax.tree import dequantize


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(0)
    return {
        "large": {"kernel": rng.normal(size=(90, 80)).astype(np.float32), "bias": np.zeros(80)},
        "heavy": {"kernel": rng.laplace(size=(30, 40)).astype(np.float32) ** 3},
        "small": {"kernel": rng.normal(size=(3, 3, 4, 5)).astype(np.float16)},
    }


@pytest.fixture(scope="module")
def chosen():
    return cells(methods(["linear", "optimal"]), [4])


@pytest.fixture(scope="module")
def measured(params, chosen):
    return list(sweep(params, chosen))


class TestMethods:
    def test_by_name(self):
        assert methods(m.name for m in METHODS) == METHODS
        assert [m.name for m in methods(["nf4", "linear"])] == ["nf4", "linear"]
        assert methods([]) == ()

    def test_unknown_name(self):
        with pytest.raises(InputError, match=r"'cubic'.*exponential \+ correlation"):
            methods(["linear", "cubic"])

    def test_the_four_of_the_paper_come_first(self):
        named = [(m.grid, m.fit) for m in METHODS[:4]]
        assert named == [
            (grid, fit) for fit in ("range", "correlation") for grid in ("linear", "exponential")
        ]
        assert len({m.name for m in METHODS}) == len(METHODS)

    @pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
    def test_each_is_a_valid_configuration(self, method):
        for bits in method.bits:
            config = method.config(bits)
            assert (config.bits, config.grid) == (bits, method.grid)
            assert (config.fit, config.levels) == (method.fit, method.levels)

    def test_cells(self):
        linear, nf4 = methods(["linear", "nf4"])
        found = cells([linear, nf4], [2, 4, 4, 3])
        assert found == [(linear, 4), (linear, 3), (linear, 2), (nf4, 4)]
        assert cells([nf4], [2, 3]) == []


class TestSweep:
    def test_results_are_those_of_quantize(self, params, chosen, measured):
        assert [(r.method, r.bits) for r, _ in measured] == [(m.name, b) for m, b in chosen]
        for (method, bits), (result, report) in zip(chosen, measured, strict=True):
            _, expected = corrq.quantize(params, config=method.config(bits))
            assert report == expected
            assert result.mean_correlation == expected.mean_correlation
            assert result.min_correlation == expected.min_correlation
            assert result.bits_per_weight == expected.bits_per_weight
            assert (result.top1, result.kl) == (None, None)

    def test_sizes_are_those_on_disk(self, params, chosen, measured, tmp_path):
        for (method, bits), (result, _) in zip(chosen, measured, strict=True):
            file = tmp_path / "net.safetensors"
            corrq.save(file, corrq.quantize(params, config=method.config(bits))[0])
            assert result.file_nbytes == file.stat().st_size

    def test_leaves_no_file_behind(self, params, chosen, tmp_path, monkeypatch):
        monkeypatch.setattr(sweeping.tempfile, "tempdir", str(tmp_path))
        steps = sweep(params, chosen)
        next(steps)
        steps.close()
        assert not list(tmp_path.iterdir())

    def test_measures_the_quantized_tree(self, params, chosen):
        seen = []

        def measure(qparams):
            seen.append(dequantize(qparams))
            return (
                Metrics(2, 2, top1=0.5, top5=1.0),
                Metrics(20, 20, 0.4, 0.9, agreement=0.75, kl=float("inf"), correlation=math.nan),
            )

        for result, _ in sweep(params, chosen, measure):
            assert (result.top1, result.top5, result.agreement) == (0.5, 1.0, 0.75)
            assert (result.kl, result.logit_correlation) == (None, None)
        assert len(seen) == len(chosen)
        assert seen[0]["large"]["kernel"].shape == (90, 80)

    def test_needs_a_kernel(self, chosen):
        with pytest.raises(InputError, match="no kernel"):
            next(sweep({"bias": np.zeros(3)}, chosen))
        assert list(sweep({"bias": np.zeros(3)}, [])) == []


class TestLayerDensity:
    @pytest.mark.parametrize("path", ["large/kernel", "heavy/kernel", "small/kernel"])
    @pytest.mark.parametrize("name", ["linear", "optimal"])
    def test_agrees_with_the_quantizer(self, params, chosen, measured, name, path):
        method = methods([name])[0]
        found = layer_density(params, path, method, 4)
        w = params[path.split("/")[0]]["kernel"]
        tensor = corrq.quantize(params, config=method.config(4))[0][path.split("/")[0]]["kernel"]
        report = next(report for result, report in measured if result.method == name)
        row = next(row for row in report if row.path == path)
        assert found.correlation == pytest.approx(row.correlation, abs=1e-9)
        np.testing.assert_array_equal(np.float32(found.levels), tensor.levels)
        assert found.counts.sum() == w.size
        assert len(found.boundaries) == len(found.levels) - 1
        # Nearest-level coding by the boundaries gives the weights that the tensor decodes to.
        decoded = np.float32(found.levels)[np.searchsorted(found.boundaries, w.astype(np.float64))]
        apart = decoded.astype(w.dtype) != np.asarray(tensor.dequantize())
        assert apart.mean() < 1e-3

    def test_points_are_the_weights(self, params):
        w = params["small"]["kernel"]
        found = layer_density(params, "small/kernel", methods(["linear"])[0], 4)
        points, counts = np.unique(w.astype(np.float64), return_counts=True)
        np.testing.assert_allclose(found.points, points, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(found.counts, counts)


def test_typical_paths(measured):
    report = measured[1][1]
    found = typical_paths(report)
    assert found[0] == "large/kernel"
    assert min(report, key=lambda row: row.correlation).path in found
    assert len(found) == len(set(found))
    assert typical_paths(report, count=1) == ["large/kernel"]
    assert typical_paths(corrq.Report((), (), 0)) == []


def test_run_becomes_a_report(params, chosen, measured, tmp_path):
    densities = [layer_density(params, "large/kernel", *cell) for cell in chosen]
    run = make_run("net", params, measured, densities)
    assert run.weights == 90 * 80 + 30 * 40 + 3 * 3 * 4 * 5
    assert run.float_nbytes == corrq.save(tmp_path / "float.safetensors", params)
    assert run.layers.keys() == {result.key for result in run.results}
    assert [layer.path for layer in run.layers["optimal @ 4"]] == [r.path for r in measured[1][1]]
    assert {"jax", "corrq_jax", "device"} <= run.environment.keys()
    assert Run.from_json(run.to_json()) == run
    written = write_report(run, tmp_path / "report")
    names = {pathlib.Path(path).name for path in written}
    assert {"index.html", "results.json", "results.csv"} < names
    assert Run.from_json((tmp_path / "report" / "results.json").read_text()) == run
