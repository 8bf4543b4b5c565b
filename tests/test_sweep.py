"""Sweeps: which cells there are, true sizes, densities that agree with the quantizer, reports."""

import dataclasses
import math
import pathlib

import jax
import numpy as np
import pytest
from flax import nnx

import corrq_jax as corrq
from corrq_jax import sweep as sweeping
from corrq_jax.errors import InputError
from corrq_jax.evaluation import Metrics
from corrq_jax.flax import functional
from corrq_jax.html_report import write_report
from corrq_jax.methods import PEER_BITS
from corrq_jax.moments import match_moments, trace
from corrq_jax.paths import flatten
from corrq_jax.peers import PEERS, peers, stored_bits
from corrq_jax.results import Run
from corrq_jax.sweep import (
    METHODS,
    cells,
    float_run,
    layer_density,
    layer_results,
    methods,
    peer_cells,
    short_cells,
    sweep,
    typical_paths,
    without_wiring,
)
from corrq_jax.tree import dequantize

METRICS = (Metrics(2, 2, top1=0.5, top5=1.0), Metrics(20, 20, 0.4, 0.9, 0.75, 0.1, 0.99))


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
            expected = (None, bits) if method.mixed else (bits, None)
            assert (config.bits, config.bits_per_weight) == expected
            for name in ("grid", "fit", "levels", "coding", "granularity"):
                assert getattr(config, name) == getattr(method, name)

    def test_cells(self):
        linear, nf4 = methods(["linear", "nf4"])
        found = cells([linear, nf4], [2, 4, 4, 3])
        assert found == [(linear, 4), (linear, 3), (linear, 2), (nf4, 4)]
        assert cells([nf4], [2, 3]) == []

    def test_only_mixed_bits_can_be_fractions(self):
        linear, mixed = methods(["linear", "mixed bits"])
        assert cells([linear, mixed], [2.5, 3, 2.25, 5]) == [
            *((linear, 5), (linear, 3)),
            *((mixed, 3), (mixed, 2.5), (mixed, 2.25)),
        ]

    def test_short_cells(self):
        found = short_cells()
        assert [m.name for m in dict.fromkeys(m for m, _ in found)] == [m.name for m in METHODS]
        widths = {m.name: [b for n, b in found if n is m] for m in METHODS}
        assert {2.5, 3, 4} <= set(widths["mixed bits"])
        assert {2, 2.5, 3, 4} <= set(widths["mixed bits, entropy-coded"])
        assert all(method.has(bits) for method, bits in found)

    def test_peer_cells(self):
        found = peer_cells()
        assert {peer for peer, _ in found} == set(PEERS)
        assert {bits for _, bits in found} == set(PEER_BITS)
        assert all(bits in peer.bits for peer, bits in found)
        assert not {peer.name for peer in PEERS} & {method.name for method in METHODS}

    def test_without_wiring(self):
        found = without_wiring(METHODS)
        assert not any(method.match for method in found)
        assert {m.name for m in METHODS} - {m.name for m in found} == {"optimal + moments"}


class TestSweep:
    def test_results_are_those_of_quantize(self, params, chosen, measured):
        assert [(r.method, r.bits) for r, _ in measured] == [(m.name, b) for m, b in chosen]
        for (method, bits), (result, layers) in zip(chosen, measured, strict=True):
            tree, expected = corrq.quantize(params, config=method.config(bits))
            assert layers == layer_results(expected, params, tree)
            assert result.mean_correlation == expected.mean_correlation
            assert result.min_correlation == expected.min_correlation
            assert result.bits_per_weight == expected.bits_per_weight
            assert (result.top1, result.kl) == (None, None)

    def test_sizes_are_those_on_disk(self, params, chosen, measured, tmp_path):
        for (method, bits), (result, _) in zip(chosen, measured, strict=True):
            file = tmp_path / "net.safetensors"
            corrq.save(file, corrq.quantize(params, config=method.config(bits))[0])
            assert result.file_nbytes == file.stat().st_size

    def test_all_bytes_of_a_file_have_a_name(self, params, tmp_path):
        chosen = cells(methods(["linear", "optimal, channel scales"]), [3])
        for result, layers in sweep(params, chosen):
            parts = ("codes", "levels", "scales", "rest", "header")
            sizes = {part: getattr(result, f"{part}_nbytes") for part in parts}
            assert sum(sizes.values()) == result.file_nbytes
            assert sizes["rest"] == params["large"]["bias"].nbytes
            for part in parts[:3]:
                assert sizes[part] == sum(getattr(la, f"{part}_nbytes") for la in layers)
            # 3 bits of 7200, 1200 and 180 weights, each filled up to a byte.
            assert sizes["codes"] == 2700 + 450 + 68
            assert sizes["levels"] == 4 * 8 * 3  # float32, 8 levels a tensor
            is_scaled = result.granularity == "channel"
            assert sizes["scales"] == (2 * (80 + 40 + 5) if is_scaled else 0)

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


class Net(nnx.Module):
    """Two convolutions with normalizations and a classifier: what moments can be matched in."""

    def __init__(self, rngs):
        self.first = nnx.Conv(3, 32, (3, 3), use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(32, use_running_average=True, rngs=rngs)
        self.second = nnx.Conv(32, 64, (3, 3), use_bias=False, rngs=rngs)
        self.last = nnx.Linear(64, 40, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.first(x)))
        return self.last(self.second(x).mean(axis=(1, 2)))


@pytest.fixture(scope="module")
def net():
    """Parameters and wiring."""
    apply, params = functional(Net(nnx.Rngs(0)))
    return params, trace(apply, params, jax.ShapeDtypeStruct((1, 8, 8, 3), np.float32))


def changed(params, other):
    """Paths of leaves that differ."""
    both = zip(*(flatten(dequantize(tree))[0] for tree in (params, other)), strict=True)
    return {path for (path, a), (_, b) in both if not np.array_equal(a, b)}


class TestBeyondOneTable:
    @pytest.mark.parametrize("name", ["mixed bits", "mixed bits, entropy-coded"])
    def test_mixed_bits_meet_the_target(self, net, name, tmp_path):
        params, wiring = net
        [method] = methods([name])
        seen = []
        [(result, layers)] = sweep(
            params, [(method, 3.5)], lambda tree: seen.append(tree) or METRICS, wiring
        )
        assert (result.bits, result.mixed, result.matched) == (3.5, True, True)
        assert 2.5 < result.bits_per_weight <= 3.5
        assert result.coding == method.coding
        assert method.coding in {layer.coding for layer in layers}
        options = {"config": method.config(3.5), "importance": wiring.importance}
        plain, report = corrq.quantize(params, **options)
        assert layers == layer_results(report, params, plain)
        assert result.file_nbytes == corrq.save(tmp_path / "q.safetensors", plain)
        matched, _ = match_moments(wiring, params, plain)
        assert changed(matched, seen[0]) == set()

    def test_matching_changes_normalizations_and_no_size(self, net):
        params, wiring = net
        optimal, with_moments = methods(["optimal", "optimal + moments"])
        seen = []
        measured = sweep(
            *(params, [(optimal, 3), (with_moments, 3)]),
            *(lambda tree: seen.append(tree) or METRICS, wiring),
        )
        one, two = (result for result, _ in measured)
        assert (one.matched, two.matched) == (False, True)
        assert (one.file_nbytes, one.mean_correlation) == (two.file_nbytes, two.mean_correlation)
        assert changed(seen[0], seen[1]) == {"norm/mean", "norm/var", "last/bias"}

    def test_matching_needs_the_wiring(self, net):
        with pytest.raises(InputError, match=r"optimal \+ moments needs.*wiring=.*trace"):
            next(sweep(net[0], cells(methods(["optimal + moments"]), [4])))

    def test_channel_scales(self, net):
        [(result, layers)] = sweep(net[0], cells(methods(["optimal, channel scales"]), [3]))
        [(plain, _)] = sweep(net[0], cells(methods(["optimal"]), [3]))
        assert result.granularity == "channel"
        assert result.bits_per_weight > plain.bits_per_weight
        assert len(layers) == 3

    def test_a_target_that_cannot_be_met_is_left_out(self, net):
        chosen = without_wiring(methods(["mixed bits", "optimal"]))
        with pytest.warns(UserWarning, match=r"left out mixed bits at 1\.25 bits: .*smallest"):
            found = list(sweep(net[0], [(chosen[0], 1.25), (chosen[1], 3)]))
        assert [result.key for result, _ in found] == ["optimal @ 3"]

    def test_their_levels_are_not_those_of_one_tensor(self, net):
        for method in methods(["mixed bits", "optimal, channel scales"]):
            with pytest.raises(InputError, match="not those of one tensor alone"):
                layer_density(net[0], "first/kernel", method, 3)


class TestPeers:
    @pytest.mark.parametrize("bits", [2, 4])
    def test_sizes_and_weights_are_their_own(self, params, bits):
        [peer] = peers(["HQQ, groups of 64"])
        seen = []
        [(result, layers)] = sweep(params, [(peer, bits)], lambda t: seen.append(t) or METRICS)
        tree, rows = peer.quantize_tree(params, bits)
        assert changed(tree, seen[0]) == set()
        assert result.peer
        assert (result.key, result.agreement) == (f"HQQ, groups of 64 @ {bits}", 0.75)
        assert result.bits_per_weight == stored_bits(rows)
        assert result.file_nbytes == sum(row.nbytes for row in rows) + 80 * 8  # the bias, float64
        assert [(layer.path, layer.nbytes) for layer in layers] == [
            (row.path, row.nbytes) for row in rows
        ]
        rho = [np.sqrt(1 - row.noise) for row in rows]
        assert result.mean_correlation == pytest.approx(np.mean(rho))
        assert result.min_correlation == pytest.approx(min(rho))

    def test_beside_methods(self, params):
        chosen = cells(methods(["optimal"]), [4]) + [
            c for c in peer_cells([4]) if "NF4" in c[0].name
        ]
        found = [result for result, _ in sweep(params, chosen)]
        assert [result.peer for result in found] == [False, True, True, True, True]
        assert len({result.key for result in found}) == 5

    def test_needs_a_kernel(self):
        with pytest.raises(InputError, match="no kernel"):
            next(sweep({"bias": np.zeros(3)}, peer_cells()))


class TestLayerDensity:
    @pytest.mark.parametrize("path", ["large/kernel", "heavy/kernel", "small/kernel"])
    @pytest.mark.parametrize("name", ["linear", "optimal"])
    def test_agrees_with_the_quantizer(self, params, chosen, measured, name, path):
        method = methods([name])[0]
        found = layer_density(params, path, method, 4)
        w = params[path.split("/")[0]]["kernel"]
        tensor = corrq.quantize(params, config=method.config(4))[0][path.split("/")[0]]["kernel"]
        layers = next(layers for result, layers in measured if result.method == name)
        row = next(row for row in layers if row.path == path)
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
    layers = measured[1][1]
    found = typical_paths(layers)
    assert found[0] == "large/kernel"
    assert min(layers, key=lambda row: row.correlation).path in found
    assert len(found) == len(set(found))
    assert typical_paths(layers, count=1) == ["large/kernel"]
    assert typical_paths(corrq.Report((), (), 0)) == []


def test_run_becomes_a_report(params, chosen, measured, tmp_path):
    densities = [layer_density(params, "large/kernel", *cell) for cell in chosen]
    frame = float_run("net", params, about={"data": "none"})
    assert (frame.results, frame.weights) == ((), 0)
    layers = {result.key: layers for result, layers in measured}
    results = tuple(result for result, _ in measured)
    run = dataclasses.replace(frame, results=results, layers=layers, densities=densities)
    assert run.float_nbytes == corrq.save(tmp_path / "float.safetensors", params)
    assert run.layers.keys() == {result.key for result in run.results}
    assert run.layers["optimal @ 4"] == measured[1][1]
    assert {"jax", "corrq_jax", "device", "data"} <= run.environment.keys()
    assert Run.from_json(run.to_json()) == run
    written = write_report(run, tmp_path / "report")
    names = {pathlib.Path(path).name for path in written}
    assert {"index.html", "results.json", "results.csv"} < names
    assert Run.from_json((tmp_path / "report" / "results.json").read_text()) == run
