"""Quantizing trees: what is chosen, what is left alone, and what the report says."""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

import corrq_jax as corrq
from corrq_jax import paths
from corrq_jax.selection import default_select

RNG = np.random.default_rng(0)


def kernel(*shape, dtype=np.float32):
    return RNG.normal(size=shape).astype(dtype)


def network():
    """A tree with every kind of leaf that a checkpoint brings."""
    return {
        "conv": {"kernel": kernel(3, 3, 4, 8), "bias": kernel(8)},
        "norm": {"scale": kernel(8), "bias": kernel(8), "mean": kernel(8), "var": kernel(8)},
        "dense": {"kernel": jnp.asarray(kernel(16, 10)), "bias": jnp.zeros(10)},
        "embedding": {"embedding": kernel(30, 4, dtype=np.float64)},
        "step": np.int32(7),
        "mask": np.ones((2, 3), bool),
        "nothing": None,
    }


NETWORK = network()
KERNELS = ["conv/kernel", "dense/kernel", "embedding/embedding"]


@functools.cache
def tree_and_report():
    """Of the network, made once, and by no process that only collects tests."""
    return corrq.quantize(NETWORK)


def quantized():
    return tree_and_report()[0]


def reported():
    return tree_and_report()[1]


def quantized_paths(tree):
    return [p for p, x in paths.flatten(tree)[0] if isinstance(x, corrq.QuantizedTensor)]


def reasons(report):
    return {s.path: s.reason for s in report.skipped}


def test_kernels_and_embeddings_are_chosen():
    assert quantized_paths(quantized()) == KERNELS
    assert [row.path for row in reported()] == KERNELS


def test_all_else_is_the_same_object_and_has_a_reason():
    before, after = (dict(paths.flatten(t)[0]) for t in (NETWORK, quantized()))
    assert list(before) == list(after)
    for path in before.keys() - set(KERNELS):
        assert after[path] is before[path]
    why = reasons(reported())
    assert list(why) == [p for p in before if p not in KERNELS]
    assert why["conv/bias"] == "rank 1: a bias, a normalization parameter or a scalar"
    assert "dtype bool: only float16, bfloat16, float32, float64" in why["mask"]
    assert "dtype int32" in why["step"]


def test_the_callers_tree_is_not_changed():
    tree = network()
    copy = jax.tree.map(np.array, tree)
    corrq.quantize(tree)
    jax.tree.map(np.testing.assert_array_equal, tree, copy)


def test_dequantize_restores_structure_shape_and_dtype():
    assert not jax.config.jax_enable_x64
    again = corrq.dequantize(quantized())
    assert jax.tree.structure(again) == jax.tree.structure(NETWORK)
    for (path, old), (_, new) in zip(
        paths.flatten(NETWORK)[0], paths.flatten(again)[0], strict=True
    ):
        assert (old.shape, old.dtype) == (new.shape, new.dtype), path
        if path not in KERNELS:
            assert new is old
    assert again["embedding"]["embedding"].dtype == np.float64
    assert isinstance(again["dense"]["kernel"], jax.Array)


def test_dequantize_inside_jit():
    tree = {k: v for k, v in quantized().items() if k != "embedding"}
    inside = jax.jit(corrq.dequantize)(tree)
    jax.tree.map(np.testing.assert_array_equal, inside, corrq.dequantize(tree))


def test_dequantize_passes_float_trees_through():
    assert corrq.dequantize(NETWORK)["conv"]["kernel"] is NETWORK["conv"]["kernel"]


@pytest.mark.parametrize("path", KERNELS)
def test_reported_noise_is_that_of_the_weights(path):
    entries = [dict(paths.flatten(t)[0])[path] for t in (NETWORK, corrq.dequantize(quantized()))]
    row = next(r for r in reported() if r.path == path)
    assert row.noise == pytest.approx(1 - oracles.rho(*entries) ** 2, rel=1e-3)
    assert row.correlation == pytest.approx(corrq.correlation(*entries), abs=1e-6)
    assert row.correlation == pytest.approx(math.sqrt(1 - row.noise), abs=1e-12)


def test_reported_noise_of_a_binned_tensor():
    w = RNG.laplace(size=(200, 100)).astype(np.float32)
    tree, report = corrq.quantize({"kernel": w})
    exact = 1 - oracles.rho(w, corrq.dequantize(tree)["kernel"]) ** 2
    assert report.rows[0].noise == pytest.approx(exact, rel=1e-3)


def test_reference_correlation_of_a_gaussian():
    w = RNG.permutation(oracles.quantile_sample("gaussian", 40_000)).reshape(200, 200)
    _, report = corrq.quantize({"kernel": w.astype(np.float32)}, bits=4)
    assert report.rows[0].correlation == pytest.approx(0.995238, abs=1e-4)


def test_report_rows():
    row = reported().rows[0]
    assert (row.path, row.shape, row.dtype, row.size) == (
        "conv/kernel",
        (3, 3, 4, 8),
        "float32",
        288,
    )
    assert (row.bits, row.levels) == (4, 16)
    assert [r.dtype for r in reported()] == ["float32", "float32", "float64"]


def test_report_totals():
    assert len(reported()) == 3
    assert reported().size == 288 + 160 + 120
    assert reported().nbytes == sum(row.nbytes for row in reported().rows)
    assert reported().bits_per_weight == 8 * reported().nbytes / reported().size
    correlations = [row.correlation for row in reported()]
    assert reported().mean_correlation == pytest.approx(np.mean(correlations))
    assert reported().min_correlation == min(correlations)
    leaves = dict(paths.flatten(quantized())[0])
    assert all(row.nbytes > leaves[row.path].nbytes for row in reported())
    data = reported().nbytes + sum(s.nbytes for s in reported().skipped)
    assert data <= reported().file_nbytes < data + 300


def test_report_of_a_large_tensor_is_hardly_more_than_its_bits():
    _, report = corrq.quantize({"kernel": kernel(300, 300)}, bits=4)
    assert 4 < report.bits_per_weight < 4.03


def test_report_prints_rows_totals_and_reasons():
    lines = str(reported()).splitlines()
    assert lines[0].split() == [
        *("path", "shape", "bits", "levels", "scales", "stored", "bits", "correlation"),
        *("1", "-", "rho^2", "bytes"),
    ]
    conv = next(line for line in lines if line.startswith("conv/kernel"))
    assert conv.split()[1:4] == ["3x3x4x8", "4", "16"]
    assert f"{reported().rows[0].correlation:.6f}" in conv
    assert f"3 tensors, 568 weights, {reported().nbytes:,} bytes" in str(reported())
    assert "left in float or untouched: 8 leaves" in lines
    assert any(line.startswith("mask") and "dtype bool" in line for line in lines)
    assert lines[-1] == f"whole file: {reported().file_nbytes:,} bytes"
    assert all(line == line.rstrip() for line in lines)


@pytest.mark.parametrize(
    ("select", "expected"),
    [
        ("dense", ["dense/bias", "dense/kernel"]),
        ("*/kernel", ["conv/kernel", "dense/kernel"]),
        (("conv/*", "dense/bias"), ["conv/bias", "conv/kernel", "dense/bias"]),
        (["conv/kernel"], ["conv/kernel"]),
        ("n?rm/[sv]*", ["norm/scale", "norm/var"]),
        (lambda path, leaf: leaf.size == 160, ["dense/kernel"]),
        (lambda path, leaf: "emb" in path and leaf.ndim == 2, ["embedding/embedding"]),
        (lambda path, leaf: False, []),
    ],
)
def test_select(select, expected):
    tree = network()
    tree["dense"]["bias"] = kernel(10)
    found, report = corrq.quantize(tree, select=select)
    assert quantized_paths(found) == expected
    assert set(reasons(report).values()) >= {"not selected"}


def test_bits_by_pattern_the_first_match_counts():
    tree = {k: {"kernel": kernel(8, 8)} for k in ("a", "ab", "b", "c")}
    bits = {"a": 2, "a*": 3, "b/kernel": 4}
    found, report = corrq.quantize(tree, bits=bits)
    assert {row.path: row.bits for row in report} == {"a/kernel": 2, "ab/kernel": 3, "b/kernel": 4}
    assert reasons(report) == {"c/kernel": "no pattern of bits matches it"}
    assert found["c"]["kernel"] is tree["c"]["kernel"]
    reordered = {"a*": 3, "a": 2, "b/kernel": 4}
    _, report = corrq.quantize(tree, bits=reordered)
    assert report.rows[0].bits == 3


def test_bits_patterns_do_not_select():
    tree = {"dense": {"kernel": kernel(8, 8), "bias": kernel(8)}}
    _, report = corrq.quantize(tree, bits={"*": 4})
    assert [row.path for row in report] == ["dense/kernel"]


@dataclasses.dataclass
class Layer:
    kernel: Any
    bias: Any


jax.tree_util.register_dataclass(Layer, ["kernel", "bias"], [])


class Pair(NamedTuple):
    first: Any
    second: Any


def test_any_container():
    tree = {
        "data": Layer(kernel(6, 6), kernel(6)),
        "pair": Pair(kernel(5, 5), [kernel(4, 4), (kernel(3, 3), None)]),
        3: kernel(7, 7),
    }
    tree = {"top": {k: v for k, v in tree.items() if k != 3}, "by": {3: tree[3]}}
    found, report = corrq.quantize(tree)
    assert [row.path for row in report] == [
        "by/3",
        "top/data/kernel",
        "top/pair/first",
        "top/pair/second/0",
        "top/pair/second/1/0",
    ]
    assert isinstance(found["top"]["data"], Layer)
    assert isinstance(found["top"]["pair"], Pair)
    assert jax.tree.structure(corrq.dequantize(found)) == jax.tree.structure(tree)


def test_a_tree_may_be_one_array():
    found, report = corrq.quantize(kernel(9, 9))
    assert isinstance(found, corrq.QuantizedTensor)
    assert report.rows[0].path == ""


@pytest.mark.parametrize(
    ("path", "shape", "chosen"),
    [
        ("dense/kernel", (2, 2), True),
        ("conv.weight", (2, 2, 3, 3), True),
        ("layer/kernel:0", (2, 2), True),
        ("kernel", (4,), False),
        ("scan/norm/scale", (12, 64), False),
        ("scan/dense/bias", (12, 64), False),
        ("bn.running_var", (3, 3), False),
        ("norm/gamma:0", (3, 3), False),
        ("cls_token", (1, 1, 64), False),
    ],
)
def test_default_select(path, shape, chosen):
    assert default_select(path, np.zeros(shape)) is chosen


def test_norms_of_a_scanned_stack_stay():
    tree = {"scan": {"norm": {"scale": kernel(12, 64)}, "dense": {"kernel": kernel(12, 8, 8)}}}
    _, report = corrq.quantize(tree)
    assert reasons(report) == {
        "scan/norm/scale": "named 'scale': a bias or a normalization parameter"
    }


def test_what_is_quantized_already_is_left_alone():
    again, report = corrq.quantize(quantized())
    assert again["conv"]["kernel"] is quantized()["conv"]["kernel"]
    assert len(report) == 0
    assert [p for p, r in reasons(report).items() if r == "quantized already"] == KERNELS
    assert math.isnan(report.bits_per_weight)
    assert math.isnan(report.mean_correlation)
    assert math.isnan(report.min_correlation)
    assert str(report).startswith("nothing was quantized")


def test_quantizing_what_was_dequantized_changes_nothing():
    once = corrq.dequantize(quantized())
    again, report = corrq.quantize(once)
    jax.tree.map(np.testing.assert_array_equal, corrq.dequantize(again), once)
    assert all(row.noise == 0 for row in report)


def test_is_deterministic():
    again, report = corrq.quantize(NETWORK)
    jax.tree.map(np.testing.assert_array_equal, again, quantized())
    assert report == reported()


def test_a_tensors_result_does_not_depend_on_its_neighbours():
    alone, _ = corrq.quantize({"conv": NETWORK["conv"]})
    jax.tree.map(np.testing.assert_array_equal, alone["conv"], quantized()["conv"])


def test_numpy_and_jax_leaves_give_the_same():
    as_jax, _ = corrq.quantize({"kernel": jnp.asarray(NETWORK["conv"]["kernel"])})
    jax.tree.map(np.testing.assert_array_equal, as_jax["kernel"], quantized()["conv"]["kernel"])


def test_more_leaves_than_a_batch_come_back_in_order():
    tree = [kernel(5, n) for n in range(2, 21)]
    seen = []
    found, report = corrq.quantize(tree, progress=seen.append)
    assert [row.path for row in report] == [str(i) for i in range(19)]
    assert sorted(seen, key=int) == [str(i) for i in range(19)]
    assert [q.shape for q in found] == [(5, n) for n in range(2, 21)]


def test_config_and_options_are_the_same_but_not_both():
    config = corrq.Config(bits=4, select="conv/kernel")
    by_config, _ = corrq.quantize(NETWORK, config=config)
    by_options, _ = corrq.quantize(NETWORK, select="conv/kernel")
    jax.tree.map(np.testing.assert_array_equal, by_config, by_options)
    with pytest.raises(corrq.InputError, match="either config or the single options, not both"):
        corrq.quantize(NETWORK, bits=3, config=config)
    with pytest.raises(corrq.InputError, match=r"config='linear': give a corrq_jax\.Config"):
        corrq.quantize(NETWORK, config="linear")


def test_config_is_frozen_and_hashable():
    config = corrq.Config(bits={"a": 2, "b": 3}, select=["x"])
    assert config.bits == (("a", 2), ("b", 3))
    assert config == corrq.Config(bits=(("a", 2), ("b", 3)), select=("x",))
    assert len({config, dataclasses.replace(config)}) == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.grid = "linear"


def test_quantize_inside_jit_says_what_to_do():
    with pytest.raises(corrq.InputError, match="kernel: quantize needs the values, and inside jit"):
        jax.jit(lambda w: corrq.quantize({"kernel": w})[1].file_nbytes)(kernel(4, 4))
