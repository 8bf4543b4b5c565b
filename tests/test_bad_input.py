"""Input at and beyond the edge: a clear error, or the defined result."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import oracles
import pytest

import corrq_jax as corrq

RNG = np.random.default_rng(0)
W = RNG.normal(size=(40, 30)).astype(np.float32)
LARGE = (150, 120)  # More weights than `SORTED_SIZE`: their density is binned.


def quantized(w, **options):
    """The one row of the report, the levels and the array that comes back."""
    tree, report = corrq.quantize({"kernel": w}, **options)
    return report.rows[0], tree["kernel"], np.asarray(corrq.dequantize(tree)["kernel"])


def noise(w, w_hat):
    return 1 - oracles.rho(np.asarray(w, np.float64), np.asarray(w_hat, np.float64)) ** 2


def skipped(tree, **options):
    found, report = corrq.quantize(tree, **options)
    assert len(report) == 0
    old, new = (jax.tree.leaves(t) for t in (tree, found))
    assert all(a is b for a, b in zip(old, new, strict=True))
    return {s.path: s.reason for s in report.skipped}


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("size", [(4, 5), LARGE])
def test_nan_and_infinity_are_errors_that_name_path_and_count(size, dtype):
    w = np.ones(size, np.float32)
    w[1, 2], w[2, 0], w[3, 1] = np.nan, np.inf, -np.inf
    tree = {"layer": {"kernel": w.astype(jnp.dtype(dtype))}}
    message = rf"layer/kernel: 1 NaN and 2 infinite of {w.size} weights, .* index \(1, 2\); repair"
    with pytest.raises(corrq.InputError, match=message):
        corrq.quantize(tree)
    with pytest.raises(corrq.InputError, match=message):
        corrq.quantize(jax.tree.map(np.asfortranarray, tree))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, -1])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_one_bad_weight_anywhere_is_found(value, at, dtype):
    w = np.ones(LARGE, jnp.dtype(dtype))
    w.flat[at] = value
    with pytest.raises(corrq.InputError, match=f"of {w.size} weights"):
        corrq.quantize({"kernel": jnp.asarray(w)})


def test_bad_weights_of_leaves_that_stay_are_no_error():
    tree = {"kernel": W, "bias": np.array([np.nan, 1], np.float32), "bad": W * np.inf}
    _, report = corrq.quantize(tree, select="kernel")
    assert [row.path for row in report] == ["kernel"]


@pytest.mark.parametrize("shape", [(3, 4), LARGE, (1, 1)])
@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, -0.1, 1e30, 1e-40])
def test_constant_tensors_are_kept(value, shape):
    reasons = skipped({"kernel": np.full(shape, value, np.float32)})
    assert reasons == {"kernel": "constant: kept as it is, its correlation is undefined"}


METHODS = [
    {"grid": "optimal"},
    {"grid": "linear"},
    {"grid": "linear", "fit": "range", "levels": "grid"},
    {"grid": "exponential"},
    {"grid": "exponential", "levels": "grid", "zero": True},
    {"grid": "nf4"},
]


@pytest.mark.parametrize("shape", [(7, 9), LARGE])
@pytest.mark.parametrize("options", METHODS, ids=str)
def test_few_distinct_weights_are_stored_exactly(options, shape):
    values = np.sort(RNG.normal(size=11)).astype(np.float32)
    w = RNG.permutation(np.resize(values, np.prod(shape))).reshape(shape)
    row, tensor, w_hat = quantized(w, bits=4, **options)
    np.testing.assert_array_equal(w_hat, w)
    assert (row.bits, row.levels, row.noise, row.correlation) == (4, 11, 0, 1)
    assert tensor.levels.size == 11


@pytest.mark.parametrize(("count", "bits"), [(2, 1), (3, 2), (4, 2), (5, 3), (16, 4)])
def test_few_distinct_weights_take_as_few_bits_as_they_need(count, bits):
    values = RNG.permutation(np.arange(count, dtype=np.float32) ** 2 - 7)
    row, tensor, w_hat = quantized(np.resize(values, (10, 20)))
    assert (row.bits, row.levels) == (bits, count)
    np.testing.assert_array_equal(w_hat, np.resize(values, (10, 20)))
    assert (np.diff(tensor.levels) > 0).all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_few_distinct_weights_of_any_dtype_are_exact(dtype):
    w = np.resize(np.array([1 / 3, -2, 7e-5, 0]), LARGE).astype(jnp.dtype(dtype))
    row, _, w_hat = quantized(w)
    np.testing.assert_array_equal(w_hat, w)
    assert w_hat.dtype == w.dtype
    assert row.bits == 2


def test_one_weight_in_a_tensor_of_rank_two_is_constant():
    assert skipped({"kernel": np.ones((1, 1), np.float32)})["kernel"].startswith("constant")


def test_two_weights():
    row, _, w_hat = quantized(np.float32([[3, -5]]))
    np.testing.assert_array_equal(w_hat, [[3, -5]])
    assert (row.bits, row.noise) == (1, 0)


@pytest.mark.parametrize(
    ("leaf", "reason"),
    [
        (np.zeros((0, 3), np.float32), "empty"),
        (np.zeros((3, 0, 2), np.float32), "empty"),
        (np.float32(3), "rank 0"),
        (jnp.float32(3), "rank 0"),
        (np.zeros(5, np.float32), "rank 1"),
        (np.zeros((2, 2), np.int32), "dtype int32: only float16, bfloat16, float32, float64"),
        (np.zeros((2, 2), np.uint8), "dtype uint8"),
        (np.zeros((2, 2), bool), "dtype bool"),
        (np.zeros((2, 2), complex), "dtype complex128"),
        (np.zeros((2, 2), ml_dtypes.float8_e5m2), "dtype float8_e5m2"),
        (jax.random.key(0), "a random key"),
    ],
    ids=repr,
)
def test_what_is_no_kernel_is_left_alone(leaf, reason):
    assert skipped({"kernel": leaf})["kernel"].startswith(reason)
    tree = {"kernel": leaf}
    assert corrq.dequantize(tree)["kernel"] is leaf


@pytest.mark.parametrize(("leaf", "name"), [(3.5, "float"), (7, "int"), (True, "bool")])
def test_python_numbers_are_left_alone(leaf, name):
    assert skipped({"kernel": leaf}) == {"kernel": f"not an array: {name}"}


def test_a_selected_vector_is_quantized():
    tree, report = corrq.quantize({"bias": W[0]}, select="bias")
    assert report.rows[0].shape == (30,)
    assert noise(W[0], corrq.dequantize(tree)["bias"]) < 0.02


def test_a_selected_scalar_is_constant():
    assert skipped({"s": np.float32(3)}, select="s")["s"].startswith("constant")


@pytest.mark.parametrize("shape", [(40, 30), LARGE])
@pytest.mark.parametrize("scale", [1e30, 1e-30, 1e-37, 1e-42])
def test_scale_does_not_matter(scale, shape):
    w = RNG.normal(size=shape).astype(np.float32)
    plain, _, _ = quantized(w)
    scaled = (w.astype(np.float64) * scale).astype(np.float32)
    row, _, w_hat = quantized(scaled)
    # At 1e-42 the weights are multiples of 1.4e-45: a thousandth of themselves.
    assert row.noise == pytest.approx(plain.noise, rel=2e-2 if scale < 1e-40 else 1e-3)
    assert row.noise == pytest.approx(noise(scaled / scale, w_hat / scale), rel=5e-3)


def test_largest_float32():
    w = np.linspace(-1, 1, 1000, dtype=np.float32).reshape(20, 50) * np.finfo(np.float32).max
    row, _, w_hat = quantized(w)
    assert np.isfinite(w_hat).all()
    assert row.noise == pytest.approx(noise(w / 1e38, w_hat / 1e38), rel=1e-3)
    assert row.noise < 5e-3


@pytest.mark.parametrize("options", [m for m in METHODS if m.get("fit") != "range"][:-1], ids=str)
@pytest.mark.parametrize("outlier", [1e6, -1e6, 1e30])
def test_one_outlier_gets_a_level_of_its_own(outlier, options):
    w = RNG.normal(size=LARGE).astype(np.float32)
    w[3, 4] = outlier
    row, _, w_hat = quantized(w, **options)
    assert row.noise < 1e-6
    if options.get("levels") != "grid":
        assert w_hat[3, 4] == pytest.approx(outlier, rel=2**-11), "float16 of the density"


@pytest.mark.parametrize("outlier", [1e3, -1e6])
def test_the_best_levels_for_all_but_an_outlier(outlier):
    """15 levels for the rest: none is wasted on the range of the outlier."""
    w = RNG.normal(size=LARGE).astype(np.float32)
    w[0, 0] = outlier
    _, _, w_hat = quantized(w)
    rest = w.ravel()[1:]
    assert noise(rest, w_hat.ravel()[1:]) < 1.01 * 0.0109  # 15 levels, Gaussian (Max, 1960).


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("shape", [(40, 30), LARGE])
def test_other_dtypes(shape, dtype):
    w = RNG.normal(size=shape).astype(jnp.dtype(dtype))
    row, tensor, w_hat = quantized(w)
    assert (row.dtype, w_hat.dtype) == (dtype, w.dtype)
    assert tensor.levels.dtype == (np.float64 if dtype == "float64" else np.float32)
    # bfloat16 rounds the levels to 8 bits.
    loose = 3e-2 if dtype == "bfloat16" else 2e-3
    assert row.noise == pytest.approx(noise(w, w_hat), rel=loose)
    assert row.noise < 0.012


def test_float64_beyond_float32():
    for scale in (1e200, 1e-200, 1e-310):
        w = RNG.normal(size=(20, 20)) * scale
        row, _, w_hat = quantized(w)
        assert w_hat.dtype == np.float64
        assert row.noise == pytest.approx(noise(w / scale, w_hat / scale), rel=1e-3)
        assert row.noise < 0.02


@pytest.mark.parametrize("dtype", ["float16", "float64"])
@pytest.mark.parametrize("options", METHODS, ids=str)
def test_weights_near_the_maximum_of_a_dtype_stay_finite(options, dtype):
    largest = float(np.finfo(dtype).max)
    w = (np.linspace(-1, 1, 1200).reshape(30, 40) * largest).astype(dtype)
    row, _, w_hat = quantized(w, **options)
    assert np.isfinite(w_hat).all()
    assert noise(w / largest, w_hat / largest) < 0.05
    assert row.correlation > 0.97


@pytest.mark.parametrize("shape", [(40, 30), LARGE])
def test_memory_layout_does_not_matter(shape):
    w = RNG.normal(size=shape).astype(np.float32)
    _, tensor, expected = quantized(w)
    wide = np.zeros((shape[0], 2 * shape[1]), np.float32)
    wide[:, ::2] = w
    layouts = [
        np.asfortranarray(w),
        wide[:, ::2],
        w.astype(">f4"),
        w[::-1].copy()[::-1],
        jnp.asarray(w),
    ]
    for array in layouts:
        row, same, w_hat = quantized(array)
        assert row.dtype == "float32"
        np.testing.assert_array_equal(same.codes, tensor.codes)
        np.testing.assert_array_equal(w_hat, expected)


def test_what_cannot_be_stored_can_be_beside_what_is_quantized():
    tree = {"kernel": W, "key": jax.random.key(0), "object": object(), "odd": {1.5: W, 2.5: W[0]}}
    found, report = corrq.quantize(tree)
    assert [row.path for row in report] == ["kernel", "odd/1.5"]
    assert found["object"] is tree["object"]
    assert next(s for s in report.skipped if s.path == "object").nbytes == 0


def test_non_native_float64():
    w = RNG.normal(size=(20, 20))
    np.testing.assert_array_equal(quantized(w.astype(">f8"))[2], quantized(w)[2])


@pytest.mark.parametrize("shape", [(40, 30), LARGE])
@pytest.mark.parametrize("center", [1.0, -300.0])
def test_many_distinct_weights_within_a_few_float16_bins(center, shape):
    w = (center * (1 + 1e-4 * RNG.uniform(-1, 1, size=shape))).astype(np.float32)
    row, _, w_hat = quantized(w)
    # A uniform density in 16 equal cells has noise 1 / 256.
    assert noise(w, w_hat) == pytest.approx(row.noise, rel=2e-2)
    assert row.noise < 1.05 / 256


def test_two_clusters_too_narrow_for_float16():
    """Both signs, so nothing centres them: bins of float16 are all that is seen."""
    side = np.where(RNG.uniform(size=LARGE) < 0.5, -1, 1)
    w = (side * (1 + 1e-6 * RNG.uniform(size=LARGE))).astype(np.float32)
    row, _, w_hat = quantized(w)
    assert row.noise < 1e-9
    assert noise(w, w_hat) < 1e-9


@pytest.mark.parametrize("tree", [{}, [], None, (), {"a": None}, {"bias": np.ones(3, np.float32)}])
def test_nothing_to_quantize(tree):
    skipped(tree)
    _, report = corrq.quantize(tree)
    assert "nothing was quantized" in str(report)
    assert report.file_nbytes > 0


@pytest.mark.parametrize(
    ("bits", "message"),
    [
        (0, "bits=0: give a whole number from 1 to 8"),
        (9, "bits=9: give a whole number from 1 to 8"),
        (-1, "bits=-1"),
        (True, "bits=True: give a whole number from 1 to 8, or a mapping"),
        (2.5, r"bits=2\.5"),
        (float("nan"), "bits=nan"),
        (float("inf"), "bits=inf"),
        ("four", "bits='four'"),
        ("4", "bits='4'"),
        ({"kernel": 9}, r"bits\['kernel'\]=9: give a whole number from 1 to 8"),
        ({"kernel": "3"}, r"bits\['kernel'\]='3'"),
        ({}, "bits is an empty mapping: give at least one path pattern"),
        ([3], r"bits=\[3\]"),
    ],
)
def test_bits(bits, message):
    with pytest.raises(corrq.InputError, match=message):
        corrq.quantize({"kernel": W}, bits=bits)


@pytest.mark.parametrize("bits", [np.int64(4), np.uint8(4), 4.0, jnp.int32(4)])
def test_whole_numbers_of_any_type_are_bits(bits):
    row, _, _ = quantized(W, bits=bits)
    assert row.bits == 4
    assert type(row.bits) is int


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"grid": "cubic"},
            "grid='cubic': choose one of 'linear', 'exponential', 'optimal', 'nf4'",
        ),
        ({"grid": None}, "grid=None: choose one of"),
        ({"grid": ["linear"]}, "choose one of"),
        ({"grid": "linear", "fit": "l2"}, "fit='l2' .* has to be 'correlation' or 'range'"),
        ({"grid": "linear", "levels": 3}, "levels=3 with grid='linear': it has to be 'mean' or"),
        ({"fit": "range"}, "fit='range' with grid='optimal': it has to be 'correlation'"),
        ({"levels": "grid"}, "levels='grid' with grid='optimal': it has to be 'mean'"),
        ({"grid": "nf4", "fit": "correlation"}, "fit='correlation' with grid='nf4'"),
        ({"grid": "nf4", "levels": "mean"}, "levels='mean' with grid='nf4'"),
        ({"grid": "nf4", "bits": 3}, "bits=3 with grid='nf4': NF4 has 4 bits"),
        ({"zero": True}, "zero=True with grid='optimal': only 'exponential' takes it"),
        ({"grid": "exponential", "zero": True, "bits": 1}, "bits=1: .* from 2 to 8 .*is zero"),
        ({"select": ""}, "select='': give a predicate"),
        ({"select": ()}, r"select=\(\): give a predicate"),
        ({"select": 5}, "select=5: give a predicate"),
        ({"select": ("a", 3)}, "give a predicate"),
    ],
    ids=str,
)
def test_options(options, message):
    with pytest.raises(corrq.InputError, match=message):
        corrq.quantize({"kernel": W}, **options)


@pytest.mark.parametrize("options", [{"bits": {"conv": 3}}, {"select": "conv"}], ids=str)
def test_patterns_that_match_nothing_are_errors(options):
    message = "the path pattern 'conv' matches no leaf; the paths are: dense/bias, dense/kernel"
    with pytest.raises(corrq.InputError, match=message):
        corrq.quantize({"dense": {"kernel": W, "bias": W[0]}}, **options)
    with pytest.raises(corrq.InputError, match="the paths are: none"):
        corrq.quantize({}, **options)


def test_two_leaves_of_one_path_are_an_error():
    with pytest.raises(corrq.InputError, match="two leaves have the path 'a/b'; rename"):
        corrq.quantize({"a/b": W, "a": {"b": W}})


def test_zero_keeps_zero_even_far_from_it():
    w = RNG.uniform(5, 6, size=(40, 30)).astype(np.float32)
    _, tensor, w_hat = quantized(w, grid="exponential", levels="grid", zero=True)
    assert 0 in np.asarray(tensor.levels)
    assert np.isfinite(w_hat).all()
