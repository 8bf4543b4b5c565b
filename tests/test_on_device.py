"""Tensors on an accelerator are read as a whole: with the same result as in pieces on the host."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import corrq_jax as corrq
from corrq_jax import on_device
from corrq_jax.rows import Rows, Spread
from corrq_jax.tensor import UnpackedPieces


@pytest.fixture
def elsewhere(monkeypatch):
    """Let jax arrays pass for arrays of an accelerator."""
    monkeypatch.setattr(on_device, "holds", lambda array: isinstance(array, jax.Array))


def weights(shape, seed=0):
    return np.random.default_rng(seed).standard_t(4, shape).astype(np.float32)


def tree():
    shape = (131, 17, 9)  # odd: packed codes end within a byte; one, as each compiles
    return {
        "large": {"kernel": weights(shape)},
        "bfloat16": {"kernel": jnp.asarray(weights((130, 129), 1), jnp.bfloat16)},
        "small": {"kernel": weights((30, 20), 2)},
        "far": {"kernel": weights(shape, 3) * np.float32(1e-33)},  # scaled on the host
        "offset": {"kernel": weights(shape, 4) / 50 + 3},
        "few": {"kernel": np.sign(weights(shape, 5))},
        "constant": {"kernel": np.ones(shape, np.float32)},
    }


CASES = [
    {"bits": 3},
    {"bits": 4, "grid": "linear"},
    {"bits": 1, "grid": "exponential", "fit": "range"},
    {"bits": 4, "granularity": "channel"},
    {"bits": 4, "granularity": 32},
    {"bits": 3, "coding": "trellis", "granularity": "channel"},
    {"bits_per_weight": 3.5, "coding": "entropy", "granularity": "auto"},
]


@pytest.mark.parametrize("options", CASES, ids=str)
def test_whole_tensors_give_the_same_codes_as_pieces(options, elsewhere, monkeypatch):
    found, report = corrq.quantize(jax.tree.map(jnp.asarray, tree()), **options)
    monkeypatch.undo()
    expected, expected_report = corrq.quantize(tree(), **options)
    assert report == expected_report
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_codes_stay_there(elsewhere):
    found, _ = corrq.quantize({"kernel": jnp.asarray(weights((131, 153)))}, bits=3)
    assert isinstance(found["kernel"].codes, jax.Array)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("options", [{}, {"granularity": 16}], ids=str)
def test_decoded_there(options, dtype, elsewhere, monkeypatch):
    tree = {"kernel": jnp.asarray(weights((131, 160)), dtype)}
    found, _ = corrq.quantize(tree, bits=3, **options)
    monkeypatch.setattr(UnpackedPieces, "__getitem__", None)  # what decodes on the host
    there = found["kernel"].dequantize()
    monkeypatch.undo()
    np.testing.assert_array_equal(there, found["kernel"].dequantize())


def test_boundaries_within_a_bin_are_searched():
    w = jnp.asarray(weights(20_000))
    norm = on_device.core.normalization(*on_device.core.extent(w))
    boundaries = jnp.asarray(np.quantile(norm.apply(w), [0.3, 0.5001, 0.9]).astype(np.float32))
    _, exact = on_device.coding.lookup_table(boundaries)
    assert not exact
    packed, levels = on_device.codes(w, norm, None, boundaries, np.arange(4), 2)
    codes = on_device.coding.unpack(packed, w.size, 2)
    np.testing.assert_array_equal(levels, np.arange(4))
    np.testing.assert_array_equal(codes, np.searchsorted(boundaries, norm.apply(w), side="left"))


@pytest.mark.parametrize("rows", [Rows(6, 5, 1, 6), Rows(6, 5, 1, 4), Rows(1, 4, 7, 3)], ids=str)
def test_every_weight_gets_the_value_of_its_row(rows):
    values = weights(rows.shape)
    size = rows.before * rows.channels * rows.after
    expected = Spread(rows, values, size)(0, size)
    np.testing.assert_array_equal(on_device.spread(values, rows, size), expected)


def test_a_shape_compiles_once(elsewhere):
    corrq.quantize({"kernel": jnp.asarray(weights((150, 151)))}, bits=3)
    before = on_device.coded._cache_size(), on_device.density._cache_size()
    other = {f"{i}": {"kernel": jnp.asarray(weights((150, 151), i))} for i in range(3)}
    corrq.quantize(other, bits=3)
    assert (on_device.coded._cache_size(), on_device.density._cache_size()) == before
