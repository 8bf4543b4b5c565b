"""Every formulation of the histogram counts the same, and as NumPy does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corrq_jax.core import correlation as corr
from corrq_jax.core import histogram as core
from corrq_jax.core.density import BIN_POINTS

WAYS = {f.__name__: jax.jit(f) for f in (core.by_scatter, core.by_copies, core.by_digits)}


def keys(size, seed=0):
    """Crowded as weights are, the ends of the range included."""
    rng = np.random.default_rng(seed)
    found = np.clip(rng.normal(40_000, 900, size), 0, core.KEYS - 1).astype(np.int32)
    found[::7] = rng.integers(0, core.KEYS, found[::7].shape)
    found[: min(size, 2)] = (0, core.KEYS - 1)[:size]
    return found


@pytest.mark.parametrize("size", [1, 2, 1000, core.STEP, core.STEP + 1, 3 * core.STEP - 5])
@pytest.mark.parametrize("way", [*WAYS, "histogram"])
def test_counts_are_numpys(way, size):
    some = keys(size, size)
    function = WAYS.get(way, jax.jit(core.histogram))
    expected = np.bincount(some, minlength=core.KEYS)
    found = function(some)
    assert found.dtype == jnp.int32
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("way", WAYS)
def test_more_of_one_key_than_low_precision_can_count(way):
    """bfloat16 stops counting at 256, float16 at 2048."""
    same = np.full(core.STEP + 4097, 33_333, np.int32)
    assert int(WAYS[way](same)[33_333]) == same.size


def test_the_platform_chooses():
    def lowered(platform):
        some = jax.ShapeDtypeStruct((1000,), jnp.int32)
        return jax.jit(core.histogram).trace(some).lower(lowering_platforms=(platform,)).as_text()

    assert "dot_general" in lowered("tpu")
    assert str(core.COPIES * core.KEYS) in lowered("cuda")
    assert "dot_general" not in lowered("cuda")
    assert "dot_general" not in lowered("cpu")
    assert str(core.COPIES * core.KEYS) not in lowered("cpu")


# XLA takes subnormal float32 for 0; no bin has an edge among them.
EDGES = st.floats(-70_000, 70_000, width=32, allow_subnormal=False)


@given(st.lists(EDGES, min_size=1, max_size=9), st.booleans())
@settings(max_examples=50)
def test_edges_by_counting_are_those_of_bisection(boundaries, few):
    points = np.array(BIN_POINTS)
    if few:  # as of sorted weights: few points, the last one repeated
        points = np.sort(np.concatenate([points[::5000], np.full(core.KEYS - 14, 9e4, np.float32)]))
    some = np.sort(np.array([*boundaries, points[0], points[-1], points[777]], np.float32))
    expected = np.searchsorted(points, some, side="right")
    for way in (corr._edges_by_counting, corr._edges_by_bisection):
        np.testing.assert_array_equal(way(points, some), expected)
