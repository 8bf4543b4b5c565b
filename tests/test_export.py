"""Exported tensors, read by a decoder that knows the documented layout and nothing else."""

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import corrq_jax as corrq
from corrq_jax import stacks
from corrq_jax.errors import InputError
from corrq_jax.export import to_numpy, unpacked_codes
from corrq_jax.granularity import rows_of
from corrq_jax.tensor import QuantizedTensor


def decoded(tensor):
    """By the text at the head of corrq_jax/export.py, bit by bit."""
    size, bits = int(np.prod(tensor["shape"])), tensor["bits"]
    weights = np.empty(size, tensor["levels"].dtype)
    u = []
    spread = len(tensor["levels"]).bit_length() - 1 - bits if tensor["trellis"] else 0
    stride = max(1, int(size * (np.sqrt(5) - 1) / 2)) if spread > 1 else 1
    while np.gcd(stride, size) > 1:
        stride += 1
    for turn in range(size):
        i = turn * stride % size
        code = 0
        for b in range(bits):
            j = i * bits + b
            code |= (int(tensor["codes"][j // 8]) >> (j % 8) & 1) << b
        if tensor["trellis"]:
            u = [*u, code & 1] if turn % 1024 else [0] * 8 + [code & 1]
            if spread == 1:
                code = 4 * (code >> 1) + 2 * (u[-1] ^ u[-3] ^ u[-6]) + u[-4]
            else:
                g = sum(u[-1 - j] << (8 - j) for j in range(1, 9))
                code = (code << spread) + (157 * g % 256 >> (8 - spread))
        weights[i] = tensor["levels"][code]
    if tensor["scales"] is not None:
        rows = tensor["rows"]
        view = weights.reshape(rows["before"], rows["channels"], rows["after"])
        for c in range(rows["channels"]):
            for n in range(rows["before"] * rows["after"]):
                at = n // rows["after"], c, n % rows["after"]
                scale = tensor["scales"][n // rows["group"], c]
                view[at] = view[at] * scale.astype(weights.dtype)
    dtype = ml_dtypes.bfloat16 if tensor["dtype"] == "bfloat16" else tensor["dtype"]
    return weights.reshape(tensor["shape"]).astype(dtype)


@pytest.mark.parametrize(("bits", "levels"), [(5, 64), (3, 32), (2, 32), (1, 16)])
def test_a_trellis_is_followed_by_the_rule(bits, levels):
    w = np.random.default_rng(0).normal(size=(100, 93)).astype(np.float32)  # ten segments
    tree, _ = corrq.quantize({"kernel": w}, bits=bits, coding="trellis")
    exported = to_numpy(tree)["kernel"]
    assert exported["trellis"]
    assert len(exported["levels"]) == levels
    np.testing.assert_array_equal(decoded(exported), tree["kernel"].dequantize())


def kernel(shape=(3, 5, 4, 6)):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@settings(max_examples=40)
@given(
    bits=st.integers(1, 8),
    granularity=st.sampled_from(["tensor", "channel", 7]),
    dtype=st.sampled_from(["float32", "float64", "float16", "bfloat16"]),
    path=st.sampled_from(["kernel", "query/kernel", "embedding"]),
    seed=st.integers(0, 99),
)
def test_a_decoder_of_its_own_agrees(bits, granularity, dtype, path, seed):
    rng, shape = np.random.default_rng(seed), (3, 5, 4, 6)
    rows = rows_of(path, shape, granularity)
    wide = np.float64 if dtype == "float64" else np.float32
    tensor = QuantizedTensor(
        codes=rng.integers(0, 256, 360 * bits // 8, np.uint8),
        levels=np.sort(rng.normal(size=2**bits)).astype(wide),
        scales=None if rows is None else rng.uniform(0.5, 2, rows.shape).astype(np.float16),
        rows=rows,
        **{"shape": shape, "dtype": dtype, "bits": bits},
    )
    exported, expected = to_numpy({path: tensor})[path], np.asarray(tensor.dequantize())
    assert (decoded(exported).dtype, exported["dtype"]) == (expected.dtype, expected.dtype.name)
    np.testing.assert_array_equal(decoded(exported), expected)
    np.testing.assert_array_equal(unpacked_codes(exported).ravel(), tensor.unpacked())


def test_a_stack():
    qtree, _ = stacks.quantize({"kernel": kernel()}, bits=3, granularity="channel", stacked="*")
    tensor = to_numpy(qtree)["kernel"]
    parts = [dict(zip(("codes", "levels", "scales"), p, strict=True)) for p in layers(tensor)]
    found = np.stack([decoded(tensor | part) for part in parts])
    np.testing.assert_array_equal(found, qtree["kernel"].dequantize())
    codes = np.stack([unpacked_codes(tensor | part) for part in parts])
    np.testing.assert_array_equal(unpacked_codes(tensor), codes)


def layers(tensor):
    return zip(tensor["codes"], tensor["levels"], tensor["scales"], strict=True)


def test_all_leaves_are_plain_numpy():
    tree = {"a": {"kernel": kernel()}, "b": [jnp.ones(3), np.float32(2)]}
    exported = to_numpy(corrq.quantize(tree, bits=4)[0])
    assert exported.keys() == {"a/kernel", "b/0", "b/1"}
    assert all(type(exported[path]) is np.ndarray for path in ("b/0", "b/1"))
    assert type(exported["a/kernel"]["codes"]) is type(exported["a/kernel"]["levels"]) is np.ndarray
    assert exported["a/kernel"]["codes"].nbytes == kernel().size // 2
    with pytest.raises(InputError, match="b: object is not an array of numbers"):
        to_numpy({"b": object()})
