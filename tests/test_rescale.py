"""Scales of rows: found before the density, fitted to the codes, against NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import corrq_jax as corrq
from corrq_jax import encoding
from corrq_jax import leaf as leaves
from corrq_jax.core import density as core
from corrq_jax.core.fit import Method, Quantizer, fit_batch
from corrq_jax.granularity import rows_of
from corrq_jax.menu import BATCH
from corrq_jax.rescale import refine, scaled
from corrq_jax.tensor import Rows

RNG = np.random.default_rng(0)


def uneven(shape, axes=(-1,), spread=1.0, dtype=np.float32):
    """Gaussian weights whose channels have log-normal scales."""
    label = oracles.labels(shape, axes, 10**9)
    sizes = np.exp(spread * RNG.normal(size=label.max() + 1))
    return (RNG.normal(size=shape) * sizes[label]).astype(dtype)


def reference(w, label):
    """(scales, unit, scaled weights, whether a row lives), by float64 NumPy."""
    w, label = np.asarray(w).astype(np.float64).ravel(), label.ravel()
    rms = np.sqrt(np.bincount(label, w**2) / np.bincount(label))
    unit = 2.0 ** np.floor(np.log2(rms.max()))
    scales = np.where(rms < 2.0**-14 * unit, 0, rms / unit).astype(np.float16)
    with np.errstate(divide="ignore", invalid="ignore"):
        x = np.where(scales[label] > 0, w / (scales.astype(float) * unit)[label], 0)
    return scales, unit, x, scales > 0


def by_hand(leaf, bits, snapped):
    """A quantizer with equal steps over the range of a leaf, and its normalization."""
    norm = core.normalization(np.float32(leaf.lo), np.float32(leaf.hi))
    lo, hi = (float(norm.apply(jnp.float32(a))) for a in (leaf.lo, leaf.hi))
    edges = np.linspace(lo, hi, 2**bits + 1)
    boundaries = jnp.asarray(edges[1:-1], jnp.float32)
    boundaries = core.snap(boundaries) if snapped else boundaries
    return norm, Quantizer(boundaries, (edges[1:] + edges[:-1]) / 2, np.float64(0))


def quantized(w, granularity, bits=4, axes=(-1,), path="kernel"):
    """(leaf, encoded tensor, noise of its density) with the optimal quantizer."""
    leaf = leaves.read(path, w)
    rows = rows_of(path, w.shape, granularity, axes)
    leaf = leaf if rows is None else scaled(leaf, rows)
    density, norm = leaves.measure(leaf)
    arguments = (density, np.float32(leaf.lo), np.float32(leaf.hi), norm)
    batch = jax.tree.map(lambda a: np.stack([a] * BATCH), arguments)
    found = fit_batch(*batch, Method("optimal", "correlation", "mean", bits), 1)
    quantizer = Quantizer(found.boundaries[0], np.asarray(found.values[0]), found.noise[0])
    return leaf, encoding.encode(leaf, norm, quantizer, bits), float(found.noise[0])


LAYOUTS = [
    ((60, 40), (-1,), "channel"),
    ((60, 40), (-1,), 7),
    ((60, 40), (0,), "channel"),
    ((60, 40), (0,), 7),
    ((5, 6, 7, 8), (1, 2), 9),
    ((2400,), (), 16),
    ((300, 200), (-1,), "channel"),
    ((300, 200), (0,), 64),
    ((20, 40, 50), (1,), 30),
    ((2200, 1001), (-1,), "channel"),  # three pieces, which begin at different channels
    ((1500, 1001), (-1,), 32),
    ((1001, 1500), (0,), 32),
    ((1200, 1024), (-1,), "channel"),
]


@pytest.mark.parametrize(("shape", "axes", "granularity"), LAYOUTS)
@pytest.mark.parametrize("snapped", [True, False])
def test_encoding_agrees_with_numpy(shape, axes, granularity, snapped):
    w = uneven(shape, axes)
    rows = rows_of("w", shape, granularity, axes)
    leaf = scaled(leaves.read("w", w), rows)
    label = oracles.labels_of(rows, shape)
    scales, unit, x, _ = reference(w, label)
    np.testing.assert_allclose(leaf.scales.values.ravel(), scales, rtol=2**-10)
    assert leaf.scales.unit == unit
    pieces = np.concatenate([np.asarray(p)[:n] for p, n in leaf.pieces()])
    exact = (leaf.scales.values.astype(float) * unit).ravel()[label.ravel()]
    np.testing.assert_allclose(pieces * exact, w.ravel(), rtol=1e-6)
    assert (leaf.lo, leaf.hi) == (pieces.min(), pieces.max())
    np.testing.assert_allclose(pieces, x, rtol=2**-9)

    norm, quantizer = by_hand(leaf, 3, snapped)
    tensor = encoding.encode(leaf, norm, quantizer, 3)
    boundaries = np.asarray(quantizer.boundaries)
    codes = np.searchsorted(boundaries, pieces * np.asarray(norm.scale), side="left")
    levels = np.float32(quantizer.values / float(norm.scale) * unit)
    np.testing.assert_array_equal(tensor.unpacked(), codes)
    np.testing.assert_array_equal(tensor.levels, levels)
    expected = levels[codes] * leaf.scales.values.ravel()[label.ravel()]
    np.testing.assert_array_equal(np.asarray(tensor.dequantize()).ravel(), expected)
    assert (tensor.rows, tensor.scales.dtype) == (rows, jnp.float16)


@pytest.mark.parametrize(("shape", "axes", "granularity"), LAYOUTS)
def test_density_is_that_of_the_scaled_weights(shape, axes, granularity):
    w = uneven(shape, axes)
    rows = rows_of("w", shape, granularity, axes)
    w[oracles.labels_of(rows, shape) == 1] *= 1e-9
    w[oracles.labels_of(rows, shape) == 3] = 0
    leaf = scaled(leaves.read("w", w), rows)
    live = leaf.scales.values.ravel()[oracles.labels_of(rows, shape).ravel()] > 0
    assert leaf.scales.dead == (~live).sum() > 0
    x = np.concatenate([np.asarray(p)[:n] for p, n in leaf.pieces()])
    assert not x[~live].any()
    density, norm = leaves.measure(leaf)
    expected = jax.jit(core.density)(x[live])[0]
    assert (leaf.lo, leaf.hi) == (x[live].min(), x[live].max())
    assert norm.center == 0
    # Zeros have a bin for each sign, of which either may give up those of dead rows.
    for field in core.Density._fields:
        got, wanted = (np.array(getattr(d, field)) for d in (density, expected))
        middle = slice(core.BINS // 2 - 1, core.BINS // 2 + 1)
        assert got[middle].sum() == wanted[middle].sum()
        got[middle], wanted[middle] = 0, 0
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("shape", [(50, 40), (300, 200)])
def test_dead_rows_decode_to_zeros_and_leave_the_others_alone(shape):
    w = uneven(shape, spread=0.5)
    alone = w[:, 5:]
    w[:, 0] = 0
    w[:, 1:5] *= 1e-7
    leaf, tensor, noise = quantized(w, "channel")
    _, other, other_noise = quantized(np.ascontiguousarray(alone), "channel")
    assert noise == pytest.approx(other_noise, rel=1e-9)
    np.testing.assert_array_equal(tensor.levels, other.levels)
    np.testing.assert_array_equal(tensor.scales[:, 5:], other.scales)
    refined, _ = refine(leaf, tensor)
    for decoded in (tensor.dequantize(), refined.dequantize()):
        assert not np.asarray(decoded)[:, :5].any()


def test_a_live_row_has_a_normal_scale():
    w = uneven((300, 3), spread=0)
    w[:, 1] *= 2.0**-12
    leaf, tensor, _ = quantized(w, "channel")
    assert (np.asarray(tensor.scales) >= 2.0**-14).all()
    refined, _ = refine(leaf, tensor)
    assert corrq.correlation(w[:, 1], np.asarray(refined.dequantize())[:, 1]) > 0.99


def test_zeros_alone():
    leaf = scaled(leaves.read("w", np.zeros((4, 3), np.float32)), Rows(4, 3, 1, 4))
    assert leaf.is_constant
    assert leaf.scales.dead == 12


def test_rows_of_equal_weights_are_constant():
    w = np.ones((4, 3), np.float32) * np.float32([1, 2, 4])
    leaf = scaled(leaves.read("w", w), Rows(4, 3, 1, 4))
    assert leaf.is_constant
    assert leaf.lo == 1


def squared_error(w, tensor):
    decoded = np.asarray(tensor.dequantize()).astype(np.float64)
    return ((np.asarray(w).astype(np.float64) - decoded) ** 2).sum()


DTYPES = ["float16", jnp.bfloat16, "float32", "float64"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "granularity"), [((50, 40), "channel"), ((200, 150), 32)])
def test_refining_fits_each_row(dtype, shape, granularity):
    w = uneven(shape, dtype=dtype)
    w[:, 7] = 0
    leaf, tensor, _ = quantized(w, granularity)
    refined, noise = refine(leaf, tensor)
    label = oracles.labels_of(leaf.scales.rows, shape).ravel()
    wide = np.asarray(w).astype(np.float64).ravel()
    v = np.asarray(tensor.levels, np.float64)[tensor.unpacked()]
    gain = np.bincount(label, wide * v) / np.bincount(label, v * v)
    # Half a unit in the last place of float16, and what float32 sums are off.
    np.testing.assert_allclose(np.asarray(refined.scales).ravel(), gain, rtol=2**-11 + 1e-5)
    unrounded = dataclasses.replace(refined, dtype="float64").dequantize()
    rho = corrq.correlation(wide.reshape(shape), unrounded)
    assert noise == pytest.approx(1 - rho**2, rel=1e-4)
    assert np.sqrt(1 - noise) == pytest.approx(rho, abs=1e-6)
    assert refined.dtype == jnp.dtype(dtype).name
    assert (refined.rows, refined.codes) == (tensor.rows, tensor.codes)


@settings(max_examples=15)
@given(
    st.sampled_from([((30, 20), (-1,)), ((20, 30), (0,)), ((4, 10, 15), (1,))]),
    st.sampled_from(["channel", 2, 7]),
    st.integers(1, 8),
    st.integers(0, 2**32 - 1),
)
def test_refining_never_raises_the_error(layout, granularity, bits, seed):
    shape, axes = layout
    rng = np.random.default_rng(seed)
    w = (rng.normal(size=shape) ** 3 + rng.normal()).astype(np.float32)
    leaf = scaled(leaves.read("w", w), rows_of("w", shape, granularity, axes))
    tensor = encoding.encode(leaf, *by_hand(leaf, bits, snapped=False), bits)
    refined, noise = refine(leaf, tensor)
    # What float32 products are off.
    assert squared_error(w, refined) <= squared_error(w, tensor) * (1 + 1e-6)
    assert (np.asarray(refined.scales) >= 0).all()
    rho = corrq.correlation(w, refined.dequantize())
    if rho > 0:
        assert noise == pytest.approx(1 - rho**2, rel=1e-3, abs=1e-6)


def test_a_row_whose_levels_are_zero_keeps_its_scale():
    w = np.float32([[1, 0.6], [-1, -0.6], [1, 0.6], [1, 5]])
    leaf = scaled(leaves.read("w", w), Rows(4, 2, 1, 4))
    norm = core.normalization(np.float32(leaf.lo), np.float32(leaf.hi))
    quantizer = Quantizer(jnp.float32([0.0]), np.zeros(2), np.float64(0))
    tensor = encoding.encode(leaf, norm, quantizer, 1)
    refined, noise = refine(leaf, tensor)
    np.testing.assert_array_equal(refined.scales, tensor.scales)
    assert noise == 1


@pytest.mark.parametrize("power", [-100, -66, -41, 66, 100, 118])  # 1e-30 to 3e35
@pytest.mark.parametrize("shape", [(50, 40), (200, 150)])
def test_weights_of_any_size(power, shape):
    rng = np.random.default_rng(3)
    w = (rng.normal(size=shape) * np.exp(rng.normal(size=shape[-1]))).astype(np.float32)
    expected = refine(*quantized(w, "channel")[:2])[1]
    w = np.ldexp(w, power)
    leaf, tensor, _ = quantized(w, "channel")
    refined, noise = refine(leaf, tensor)
    assert noise == pytest.approx(expected, rel=1e-6)
    assert np.isfinite(refined.dequantize()).all()
    for decoded in (refined.dequantize(), jax.jit(corrq.dequantize)(refined)):
        assert 1 - corrq.correlation(w, decoded) ** 2 == pytest.approx(expected, rel=1e-3)


def test_the_largest_weights_of_a_dtype_stay_finite():
    for dtype in DTYPES:
        limit = float(jnp.finfo(dtype).max)
        w = (np.sign(RNG.normal(size=(40, 4))) * limit * (1 - 0.2 * RNG.random((40, 4)))) * 0.999
        w = w.astype(dtype)
        leaf, tensor, _ = quantized(w, "channel")
        refined, _ = refine(leaf, tensor)
        assert np.isfinite(np.asarray(refined.dequantize()).astype(np.float64)).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("level", [0.5, 1])  # refining, encoding would go beyond
def test_levels_and_scales_beyond_a_dtype_are_cut(dtype, level):
    w = np.full((60, 3), 0.98 * float(jnp.finfo(dtype).max)).astype(dtype)
    w[1:] = w[1:] * w.dtype.type(0.99)
    leaf = scaled(leaves.read("w", w), Rows(60, 3, 1, 60))
    scale = float(core.normalization(np.float32(leaf.lo), np.float32(leaf.hi)).scale)
    norm = core.Normalization(np.float32(0), np.float32(scale))
    middle = (leaf.lo + leaf.hi) / 2 * scale
    quantizer = Quantizer(
        jnp.float32([middle]), np.array([level, 2 * level]) * scale, np.float64(0)
    )
    tensor = encoding.encode(leaf, norm, quantizer, 1)
    assert set(tensor.unpacked()) == {0, 1}
    for found in (tensor, refine(leaf, tensor)[0]):
        assert np.isfinite(np.asarray(found.dequantize()).astype(np.float64)).all()


def test_dead_rows_count_in_the_noise():
    w = np.sign(RNG.normal(size=(8, 20_000))).astype(np.float32) * 2.0**-14.5
    w[:, 0] = [1, -1, 1, -1, 1, -1, 1, -1]
    leaf = scaled(leaves.read("w", w), Rows(8, 20_000, 1, 8))
    norm = core.normalization(np.float32(leaf.lo), np.float32(leaf.hi))
    values = np.array([-1, 1]) * float(norm.scale)
    tensor = encoding.encode(leaf, norm, Quantizer(jnp.float32([0.0]), values, np.float64(0)), 1)
    _, noise = refine(leaf, tensor)
    assert noise == pytest.approx(20_000 * 2.0**-29, rel=1e-3)
    assert noise == pytest.approx(1 - corrq.correlation(w, tensor.dequantize()) ** 2, rel=1e-5)


@pytest.mark.parametrize("size", [1e-290, 1e-309])
def test_very_small_float64(size):
    w = uneven((50, 40), dtype=np.float64) * size
    leaf, tensor, _ = quantized(w, "channel")
    refined, noise = refine(leaf, tensor)
    decoded = refined.dequantize() / size
    assert noise == pytest.approx(1 - corrq.correlation(w / size, decoded) ** 2, rel=1e-4)


def test_numpy_and_jax_leaves_give_the_same():
    w = uneven((200, 150))
    results = [refine(*quantized(a, 16)[:2]) for a in (w, jnp.asarray(w))]
    jax.tree.map(np.testing.assert_array_equal, *results)


@pytest.mark.parametrize("shape", [(50, 40), (200, 150)])
def test_permuted_channels_have_permuted_scales(shape):
    w = uneven(shape)
    order = RNG.permutation(shape[1])
    (tensor, noise), (other, other_noise) = (
        refine(*quantized(np.ascontiguousarray(a), "channel")[:2]) for a in (w, w[:, order])
    )
    np.testing.assert_array_equal(np.asarray(tensor.scales)[:, order], other.scales)
    np.testing.assert_array_equal(tensor.levels, other.levels)
    np.testing.assert_array_equal(np.asarray(tensor.dequantize())[:, order], other.dequantize())
    assert noise == pytest.approx(other_noise, rel=1e-4)


@pytest.mark.parametrize("shape", [(100, 100), (600, 200)])
def test_scales_of_channels_raise_the_correlation(shape):
    w = uneven(shape)
    rhos = []
    for granularity in ("tensor", "channel", 32):
        leaf, tensor, _ = quantized(w, granularity)
        if granularity != "tensor":
            tensor, _ = refine(leaf, tensor)
        rhos.append(corrq.correlation(w, tensor.dequantize()))
    assert 1 - rhos[0] > 1.5 * (1 - rhos[1])
    assert rhos[1] < rhos[2]


def test_the_noise_of_the_density_predicts_that_of_the_tensor():
    for mean in (0, 3):
        w = (RNG.normal(size=(3000, 200)) + mean) * np.exp(0.5 * RNG.normal(size=200))
        w = w.astype(np.float32)
        leaf, tensor, noise = quantized(w, "channel")
        exact = 1 - corrq.correlation(w, tensor.dequantize()) ** 2
        # Channels err alike to within what 3000 weights of each tell.
        assert noise * leaf.variance_ratio == pytest.approx(exact, rel=0.05)
    assert leaves.read("w", w).variance_ratio == 1


def test_few_distinct_weights_are_found_and_stored_without_scales():
    w = RNG.choice(np.float32([-1, 0, 3]), size=(300, 40))
    leaf = scaled(leaves.read("w", w), rows_of("w", w.shape, "channel"))
    values = leaves.distinct(leaf, 4)
    assert values.tolist() == [-1, 0, 3]
    tensor = encoding.encode_exactly(leaf, values)
    assert tensor.scales is None
    np.testing.assert_array_equal(tensor.dequantize(), w)
    w[-1, -1] = 7  # beyond what is looked at first
    assert leaves.distinct(leaves.read("w", w), 3) is None
    assert leaves.distinct(leaves.read("w", w), 4).size == 4


@pytest.mark.parametrize("dtype", ["float32", jnp.bfloat16])
@pytest.mark.parametrize("shape", [(50, 40), (1100, 1000)])
def test_a_leaf_on_another_device_gives_the_same(monkeypatch, dtype, shape):
    w = jnp.asarray(uneven(shape), dtype)
    expected = refine(*quantized(w, 32)[:2])
    # There, weights are sliced as they are, not as views in host memory.
    monkeypatch.setattr(leaves, "_flat", lambda array: array.reshape(-1))
    leaf, tensor, _ = quantized(w, 32)
    assert isinstance(leaf.flat, jax.Array)
    jax.tree.map(np.testing.assert_array_equal, refine(leaf, tensor), expected)


def test_no_compilation_for_a_shape(caplog):
    def compiled(function, *args):
        caplog.clear()
        with jax.log_compiles(True), caplog.at_level("WARNING"):
            function(*args)
        return [message for message in caplog.messages if "Compiling" in message]

    def run(shape, granularity):
        refine(*quantized(uneven(shape), granularity)[:2])

    run((1100, 1000), "channel")
    assert compiled(jax.jit(lambda x: x + 1), 1.0)
    assert not compiled(run, (1100, 1001), "channel")
    assert not compiled(run, (1200, 999), 32)
