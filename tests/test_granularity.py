"""Which weights share a scale, in real layers, and the passes between weights and rows."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

import corrq_jax as corrq
from corrq_jax import paths
from corrq_jax.flax import functional
from corrq_jax.granularity import channel_axes, fold, lengths, rows_of
from corrq_jax.rows import Rows, Spread


def kernels(model, *inputs):
    """Shapes of the leaves of rank 2 and more by path, of an NNX or a Linen module."""
    if isinstance(model, nn.Module):
        tree = jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]
    else:
        tree = functional(model)[1]
    return {path: x.shape for path, x in paths.flatten(tree)[0] if x.ndim > 1}


def axes_by_path(model, *inputs):
    found = kernels(model, *inputs)
    return {path: channel_axes(f"net/{path}", shape) for path, shape in found.items()}


IMAGE = np.zeros((1, 8, 8, 4), np.float32)
TOKENS = np.zeros((1, 5, 12), np.float32)


@pytest.mark.parametrize(
    ("model", "example", "axis"),
    [
        (nn.Dense(7), TOKENS, 1),
        (nn.Conv(6, (3, 3)), IMAGE, 3),
        (nn.Conv(8, (3, 3), feature_group_count=4), IMAGE, 3),
        (nn.Conv(6, (3,)), TOKENS, 2),
        (nn.ConvTranspose(6, (3, 3)), IMAGE, 3),
        (nn.Embed(50, 6), np.zeros((1, 3), int), 0),
    ],
)
def test_channels_of_linen_layers(model, example, axis):
    assert list(axes_by_path(model, example).values()) == [(axis,)]


@pytest.mark.parametrize(
    ("make", "axis"),
    [
        (lambda rngs: nnx.Linear(12, 7, rngs=rngs), 1),
        (lambda rngs: nnx.Conv(4, 6, (3, 3), rngs=rngs), 3),
        (lambda rngs: nnx.Conv(4, 8, (3, 3), feature_group_count=4, rngs=rngs), 3),
        (lambda rngs: nnx.Conv(4, 6, (3,), rngs=rngs), 2),
        (lambda rngs: nnx.ConvTranspose(4, 6, (3, 3), rngs=rngs), 3),
        (lambda rngs: nnx.Embed(50, 6, rngs=rngs), 0),
    ],
)
def test_channels_of_nnx_layers(make, axis):
    assert list(axes_by_path(nnx.eval_shape(lambda: make(nnx.Rngs(0)))).values()) == [(axis,)]


@pytest.mark.parametrize(
    "found",
    [
        axes_by_path(nn.MultiHeadAttention(num_heads=3, qkv_features=12), TOKENS),
        axes_by_path(nnx.eval_shape(lambda: nnx.MultiHeadAttention(3, 12, 12, rngs=nnx.Rngs(0)))),
    ],
    ids=["linen", "nnx"],
)
def test_channels_of_attention(found):
    projections = {f"{name}/kernel": (1, 2) for name in ("query", "key", "value")}
    biases = {path: axes for path, axes in found.items() if path.endswith("bias")}
    assert found == biases | projections | {"out/kernel": (2,)}


def test_a_channel_is_what_makes_one_output():
    layer = nnx.Conv(4, 8, (3, 3), feature_group_count=4, rngs=nnx.Rngs(0))
    (axis,) = channel_axes("kernel", layer.kernel.shape)
    kernel = np.zeros(layer.kernel.shape, np.float32)
    kernel[(*(slice(None),) * axis, 5)] = 1
    layer.kernel[...] = jnp.asarray(kernel)
    out = np.asarray(layer(np.ones((1, 6, 6, 4), np.float32)))
    assert np.flatnonzero(out.any(axis=(0, 1, 2))).tolist() == [5]


@pytest.mark.parametrize(
    ("path", "shape", "axes"),
    [
        ("net/depthwise_conv/depthwise_kernel:0", (3, 3, 32, 1), (2, 3)),
        ("block1/depthwise/kernel", (3, 3, 32, 1), (2, 3)),
        ("block1/dwconv/kernel", (3, 3, 32, 2), (2, 3)),
        ("layers/depthwise_conv1d/vars/0", (3, 32, 1), (1, 2)),
        ("block1/depthwise/kernel", (3, 3, 1, 32), (3,)),
        ("block1/depthwise/pointwise/kernel", (1, 1, 32, 8), (3,)),
        ("conv.weight", (32, 16, 3, 3), (0,)),
        ("lstm.weight_ih_l0", (64, 16), (0,)),
        ("attention.in_proj_weight", (48, 16), (0,)),
        ("embeddings/word_embeddings/embedding", (100, 8), (0,)),
        ("embedding/embeddings:0", (100, 8), (0,)),
        ("embed/embedding/value", (100, 8), (0,)),
        ("patch_embedding/kernel", (16, 16, 3, 64), (3,)),
        ("mlp/key/kernel", (16, 64), (1,)),
        ("dense/bias", (8,), ()),
        ("scalar", (), ()),
    ],
)
def test_channels_by_name_and_shape(path, shape, axes):
    assert channel_axes(path, shape) == axes


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        *(((4, 6), (0,)), ((4, 6), (1,)), ((4, 6), (0, 1)), ((2, 3, 4, 5), (3,))),
        *(((2, 3, 4, 5), (1, 2)), ((2, 3, 4, 5), (-2,)), ((2, 3, 4, 5), (0,)), ((9,), ())),
    ],
)
@pytest.mark.parametrize("granularity", ["channel", 2, 5, 1000])
def test_rows_are_those_of_index_arithmetic(shape, axes, granularity):
    rows = rows_of("w", shape, granularity, axes)
    length = np.prod(shape) // int(np.prod([shape[a] for a in axes]))
    group = length if granularity == "channel" else min(granularity, length)
    expected = oracles.labels(shape, axes, group)
    if rows is None:
        assert group == 1 or expected.max() == 0
    else:
        np.testing.assert_array_equal(oracles.labels_of(rows, shape), expected)
        np.testing.assert_array_equal(lengths(rows).ravel().repeat(rows.channels), _counts(rows))


def _counts(rows):
    return np.bincount(oracles.labels_of(rows, (rows.before, rows.channels, rows.after)).ravel())


def test_rows_that_are_not_worth_a_scale():
    assert rows_of("w", (3, 4), "tensor") is None
    assert rows_of("w", (10, 1), "channel") is None
    assert rows_of("w", (10,), "channel") is None
    assert rows_of("w", (10,), 10) is None
    assert rows_of("w", (1, 10), "channel") is None
    assert rows_of("w", (0, 10), "channel") is None
    assert rows_of("w", (10, 0), 4) is None
    assert rows_of("w", (10,), 4) == Rows(10, 1, 1, 4)
    assert rows_of("w", (10, 3), 64) == rows_of("w", (10, 3), "channel") == Rows(10, 3, 1, 10)


@pytest.mark.parametrize("granularity", [1, 0, -4, "row", 2.0, None, True])
def test_granularity_that_is_not_allowed(granularity):
    with pytest.raises(corrq.InputError, match=r"a/kernel: granularity=.* 2 or more"):
        rows_of("a/kernel", (4, 4), granularity)


@pytest.mark.parametrize("axes", [(0, 2), (3,), (-4,), (1, 1), (1, -2), "0", 1.0, None])
def test_axes_that_are_not_allowed(axes):
    if axes is None:
        assert rows_of("a/kernel", (2, 3, 4), "channel", axes) == Rows(6, 4, 1, 6)
        return
    with pytest.raises(corrq.InputError, match=r"a/kernel: channel axes .* from -3 to 2"):
        rows_of("a/kernel", (2, 3, 4), "channel", axes)


def test_axes_override():
    assert rows_of("w", (2, 3, 4), "channel", -2) == Rows(2, 3, 4, 8)
    assert rows_of("w", (2, 3, 4), "channel", [2, 1]) == Rows(2, 12, 1, 2)


@settings(max_examples=200)
@given(st.tuples(*[st.integers(1, 7)] * 3), st.integers(1, 50), st.integers(1, 60))
def test_folding_and_spreading_in_pieces(sides, group, piece):
    before, channels, after = sides
    rows = Rows(before, channels, after, min(group, before * after))
    label = oracles.labels_of(rows, sides).ravel()
    rng = np.random.default_rng(0)
    w, values = rng.normal(size=label.size), rng.normal(size=rows.shape)
    spread = Spread(rows, values, piece)
    total, largest = np.zeros(rows.shape), np.full(rows.shape, -np.inf)
    for start in range(0, w.size, piece):
        x = w[start : start + piece]
        fold(np.add, total, rows, x, start)
        fold(np.maximum, largest, rows, x, start)
        expected = values.ravel()[label[start : start + piece]]
        np.testing.assert_array_equal(spread(start, x.size), expected)
    np.testing.assert_allclose(total.ravel(), np.bincount(label, w), rtol=1e-12, atol=1e-12)
    expected = [w[label == row].max() for row in range(values.size)]
    np.testing.assert_array_equal(largest.ravel(), expected)
