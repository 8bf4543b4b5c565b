"""The peers against slow loops on single weights, and what each of them promises."""

import math
from statistics import NormalDist

import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peer_loops import loop_absmax, loop_groups, loop_hqq, loop_min_max, loop_nf4

import corrq_jax as corrq
from corrq_jax.errors import InputError
from corrq_jax.peers import (
    CHANNEL,
    PEERS,
    TENSOR,
    Layout,
    half_quadratic,
    peers,
)
from corrq_jax.peers.normal_float import DYNAMIC, NF4, quantized_scales

BY_NAME = {peer.name: peer for peer in PEERS}
EVERY = [(peer, bits) for peer in PEERS for bits in peer.bits]
NEAR = 5e-7  # the loops are in float64, the peers in float32


def name_of(value):
    return getattr(value, "name", str(value))


every_peer = pytest.mark.parametrize("peer", PEERS, ids=name_of)
every_width = pytest.mark.parametrize(("peer", "bits"), EVERY, ids=name_of)


def weights(*shape, seed=0, scale=0.1):
    """Student's t: tails as heavy as those of real kernels."""
    return (scale * np.random.default_rng(seed).standard_t(4, shape)).astype(np.float32)


LOOPED = [(p, b) for p, b in EVERY if "k-means" not in p.name and "double" not in p.name]
SLOW = {"int absmax": loop_absmax, "int min-max": loop_min_max, "NF4": loop_nf4}


@pytest.mark.parametrize(("peer", "bits"), LOOPED, ids=name_of)
@pytest.mark.parametrize("shape", [(5, 150), (3, 64), (1, 70), (2, 7), (1, 1)], ids=str)
def test_slow_loops_agree(peer, bits, shape):
    w = weights(*shape, seed=bits)
    family = peer.name.split(",")[0]
    groups = loop_groups(w, peer.name)
    slow = loop_hqq(groups, bits) if family == "HQQ" else [SLOW[family](g, bits) for g in groups]
    slow = np.concatenate(slow).reshape(shape)
    fast, _ = peer.quantize(w, bits, channel_axis=0)
    # hqq's float16 zero points are decided by rounding errors too: one unit in their last place.
    slack = 2e-3 * np.ptp(w) if family == "HQQ" else NEAR
    assert_same_codes(w, fast, slow, slack, ties=len(groups))


def assert_same_codes(w, fast, slow, slack, ties):
    """A weight halfway between two codes is decided by rounding errors: either is as near.

    By construction that is where symmetric integers have the largest magnitude of each group.
    """
    apart = np.abs(fast - slow)
    tied = np.isclose(np.abs(w - fast), np.abs(w - slow), rtol=1e-3, atol=slack)
    assert ((apart <= slack) | tied).all()
    assert (apart > slack).sum() <= ties


def test_all_codes_of_absmax_are_used():
    w = np.float32([[-1.75, 1.75, 0.3]])  # 3 bits and a largest magnitude of 3.5 steps
    assert BY_NAME["int absmax, tensor"].quantize(w, 3)[0].tolist() == [[-2.0, 1.5, 0.5]]


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("seed", range(8))
def test_a_ragged_group_of_hqq_stops_when_the_loop_does(bits, seed):
    # Here zero points still move when the iteration stops; what fills the last group has no say.
    w = weights(1, 64 + 3, seed=seed, scale=1) + np.float32(0.5)
    slow = np.concatenate(loop_hqq(loop_groups(w, "HQQ, blocks of 64"), bits))
    fast, _ = BY_NAME["HQQ, blocks of 64"].quantize(w, bits, channel_axis=0)
    assert_same_codes(w[0], fast[0], slow, slack=2e-3, ties=1)


def test_nf4_is_the_published_table_of_normal_quantiles():
    quantile = NormalDist().inv_cdf
    highest = 0.9677083  # QLoRA's offset, (1 - 1/32 + 1 - 1/30) / 2
    up = [quantile(p) for p in np.linspace(highest, 0.5, 9)[:-1]]
    down = [-quantile(p) for p in np.linspace(highest, 0.5, 8)[:-1]]
    expected = np.sort([*down, 0.0, *up]) / max(up)
    np.testing.assert_allclose(NF4, expected, atol=1e-6)


def test_the_dynamic_code_is_fine_near_zero_and_near_one():
    assert DYNAMIC.size == len(set(DYNAMIC.tolist())) == 256
    assert DYNAMIC[-1] == 1
    assert 0 in DYNAMIC
    np.testing.assert_array_equal(DYNAMIC[:127], -DYNAMIC[128:255][::-1])
    assert DYNAMIC[128] == pytest.approx(0.55e-6)  # the one part of [0.1, 1] at 1e-6
    assert np.diff(DYNAMIC[DYNAMIC > 0.1]).max() < 0.0142


def test_double_quantization_keeps_scales_to_a_percent_of_their_spread():
    scales = np.abs(weights(700, seed=1)) + 1
    decoded, nbytes = quantized_scales(scales)
    assert nbytes == 700 + 4 * 3 + 4
    # The code's widest gap, at the ends, is 0.0141 of the largest deviation of a block.
    assert np.abs(decoded - scales).max() <= 0.0071 * np.abs(scales - scales.mean()).max() + 1e-6
    one, two = (BY_NAME[f"NF4, blocks of 64{kind}"] for kind in ("", ", double"))
    w = weights(100, 64, seed=2)
    single, double = one.quantize(w, 4)[0], two.quantize(w, 4)[0]
    assert 0 < np.abs(single - double).max() < 0.03 * np.abs(w).max()


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6, 8])
@pytest.mark.parametrize("size", [300, 5000])
def test_kmeans_is_all_but_exact(bits, size):
    w = weights(size, 1, seed=size + bits)
    noise = 1 - oracles.rho(w, BY_NAME["k-means, tensor"].quantize(w, bits)[0]) ** 2
    # A local optimum, the further the more levels there are for the thousand cells; and the float16
    # codebook, a relative 2**-11 of a level at most.
    share = 1.05 if bits == 8 else 1.002
    assert noise <= share * oracles.kmeans_noise(w, 2**bits) + 1e-7


def test_kmeans_survives_outliers_that_starve_the_density():
    w = weights(20_000, 1, seed=3, scale=1e-3)
    w[:3, 0] = 10, -20, 300
    noise = 1 - oracles.rho(w, BY_NAME["k-means, tensor"].quantize(w, 8)[0]) ** 2
    # Float16 levels are 2**-11 of 300 apart from it: noise 2**-22 and less.
    assert noise < 1e-6


def test_kmeans_keeps_few_distinct_values():
    w = np.random.default_rng(0).choice(np.float32([-0.5, 0.25, 1.0]), (40, 5))
    np.testing.assert_array_equal(BY_NAME["k-means, tensor"].quantize(w, 2)[0], w)


@pytest.mark.parametrize(("scale", "entry"), [(1.0, 2), (1e-6, 4), (1e6, 4)])
def test_the_codebook_is_float16_where_float16_can_hold_it(scale, entry):
    w = weights(50, 20, scale=scale)
    w_hat, nbytes = BY_NAME["k-means, tensor"].quantize(w, 3)
    assert nbytes == 50 * 20 * 3 // 8 + 8 * entry
    assert len(np.unique(w_hat)) == 8


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_hqq_has_less_of_the_error_that_it_minimizes(bits):
    # Weights of the order of one: the shrinkage has the unit of the weights.
    groups = Layout(size=64).split(weights(256, 64, seed=bits, scale=1))

    def error(decoded):
        return (np.abs(groups.weights - decoded) ** 0.7).sum()

    plain = error(half_quadratic(groups, bits, iterations=0)[0])
    assert error(half_quadratic(groups, bits)[0]) < 0.99 * plain


def test_hqq_depends_on_the_unit_of_the_weights():
    w, peer = weights(32, 64, scale=1), BY_NAME["HQQ, groups of 64"]
    assert np.abs(peer.quantize(w / 64, 3)[0] * 64 - peer.quantize(w, 3)[0]).max() > 0.01
    # Narrower than 1e-4, a group is as good as constant to it.
    tiny = w * np.float32(1e-6)
    assert corrq.correlation(tiny, peer.quantize(tiny, 3)[0]) ** 2 < 0.9


# Sizes, by hand: 6 channels of 70 inputs at b bits, then what is beside the codes.
SIZES = [
    ("int absmax, tensor", 3, 158 + 4),
    ("int absmax, channel", 3, 158 + 6 * 4),
    ("int absmax, groups of 64", 3, 158 + 12 * 4),  # each channel has a ragged second group
    ("int min-max, tensor", 3, 158 + 4 + 1),  # one zero point of 3 bits
    ("int min-max, channel", 3, 158 + 6 * 4 + 3),  # 18 bits
    ("int min-max, groups of 64", 8, 420 + 12 * 4 + 12),
    ("NF4, channel", 4, 210 + 6 * 4),
    ("NF4, groups of 64", 4, 210 + 12 * 4),
    ("NF4, blocks of 64", 4, 210 + 7 * 4),  # 6.6 blocks
    ("NF4, blocks of 64, double", 4, 210 + 7 + 4 + 4),
    ("HQQ, groups of 64", 3, 158 + 12 * 2 * 2),
    ("HQQ, blocks of 64", 3, 158 + 7 * 2 * 2),
    ("k-means, tensor", 3, 158 + 8 * 2),
]


@pytest.mark.parametrize(("name", "bits", "nbytes"), SIZES)
def test_sizes_by_hand(name, bits, nbytes):
    assert BY_NAME[name].quantize(weights(70, 6), bits)[1] == nbytes
    assert {name for name, _, _ in SIZES} == BY_NAME.keys()


@pytest.mark.parametrize(
    ("shape", "axis", "torch"),
    [
        ((7, 5), -1, (1, 0)),
        ((3, 3, 4, 5), -1, (3, 2, 0, 1)),
        ((3, 3, 1, 5), 3, (3, 2, 0, 1)),
        ((5, 4, 3, 3), 0, (0, 1, 2, 3)),
        ((6,), -1, (0,)),
        ((), -1, ()),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "layout", [TENSOR, CHANNEL, Layout(True, 4), Layout(False, 4), Layout(True, 999)], ids=str
)
def test_groups_are_consecutive_weights_in_pytorchs_order(shape, axis, torch, layout):
    w = np.arange(1, 1 + math.prod(shape), dtype=np.float32).reshape(shape)
    rows = w.transpose(torch).reshape(shape[torch[0]] if torch else 1, -1)
    groups = layout.split(w, axis)
    kept = [g[:n].tolist() for g, n in zip(groups.weights, groups.counts, strict=True)]
    assert all((g[n:] == 0).all() for g, n in zip(groups.weights, groups.counts, strict=True))
    lines = rows if layout.per_channel else rows.reshape(1, -1)
    size = layout.size or lines.shape[1]
    expected = [
        line[i : i + size].tolist() for line in lines for i in range(0, lines.shape[1], size)
    ]
    assert kept == expected
    np.testing.assert_array_equal(layout.join(groups.weights, w, axis), w)


seeds = st.integers(0, 10_000)
shapes = st.tuples(st.integers(1, 90), st.integers(1, 5))


@settings(max_examples=40)
@given(seed=seeds, shape=shapes, bits=st.integers(2, 8), offset=st.floats(-1, 1))
def test_integers_are_within_half_a_step(seed, shape, bits, offset):
    w = weights(*shape, seed=seed) + np.float32(offset)
    for name, layout in (
        ("tensor", TENSOR),
        ("channel", CHANNEL),
        ("groups of 64", Layout(True, 64)),
    ):
        groups = layout.split(w).weights
        largest = np.abs(groups).max(axis=1, keepdims=True)
        width = np.maximum(groups.max(1), 0) - np.minimum(groups.min(1), 0)
        for kind, step in (
            ("absmax", largest / (2 ** (bits - 1) - 0.5)),
            ("min-max", width[:, None] / (2**bits - 1)),
        ):
            w_hat, _ = BY_NAME[f"int {kind}, {name}"].quantize(w, bits)
            error = np.abs(layout.split(w_hat).weights - groups)
            assert (error <= step / 2 * (1 + 1e-4) + 1e-6 * largest).all()


@settings(max_examples=25)
@given(seed=seeds, shape=shapes)
def test_once_quantized_stays_as_it_is(seed, shape):
    w = weights(*shape, seed=seed)
    for name, bits in (
        ("NF4, channel", 4),
        ("NF4, blocks of 64", 4),
        ("k-means, tensor", 1),
        ("k-means, tensor", 3),
        ("k-means, tensor", 8),
    ):
        once, _ = BY_NAME[name].quantize(w, bits)
        twice, _ = BY_NAME[name].quantize(once, bits)
        np.testing.assert_array_equal(once, twice, err_msg=name)
    for bits in (2, 4, 8):
        # Both ends of the range are levels again, up to rounding; codes on integers do not move.
        once, _ = BY_NAME["int min-max, channel"].quantize(w, bits)
        twice, _ = BY_NAME["int min-max, channel"].quantize(once, bits)
        ends = np.ptp(np.vstack([once, 0 * once[:1]]), axis=0)
        whole = np.isclose(ends, np.ptp(np.vstack([w, 0 * w[:1]]), axis=0), rtol=1e-5)
        np.testing.assert_allclose(once[:, whole], twice[:, whole], atol=1e-6)


@settings(max_examples=15)
@given(seed=seeds, shape=shapes, power=st.integers(-3, 3))
def test_twice_the_weights_are_twice_the_levels(seed, shape, power):
    w, factor = weights(*shape, seed=seed), np.float32(2.0**power)
    for peer in PEERS:
        bits = peer.bits[len(peer.bits) // 2]
        scaled, alone = peer.quantize(w * factor, bits)[0], peer.quantize(w, bits)[0] * factor
        if "k-means" in peer.name:
            # Not its float16 levels: the smallest are rounded to a grid that does not scale.
            errors = [float(np.square(w_hat - w * factor).sum()) for w_hat in (scaled, alone)]
            negligible = 1e-6 * float(np.square(alone).sum())
            assert errors[0] == pytest.approx(errors[1], rel=0.05, abs=negligible)
        elif "HQQ" not in peer.name:  # see above
            np.testing.assert_array_equal(scaled, alone, err_msg=peer.name)


@every_width
def test_a_code_has_no_more_values_than_its_bits(peer, bits):
    w = weights(64, 3, seed=bits)
    w_hat, _ = peer.quantize(w, bits)
    for group in peer.layout.split(w_hat).weights:
        assert len(np.unique(group)) <= 2**bits


@every_width
def test_zeros_constants_and_single_weights(peer, bits):
    zeros, nbytes = peer.quantize(np.zeros((70, 3)), bits)
    np.testing.assert_array_equal(zeros, np.zeros((70, 3)))
    assert nbytes > 0
    for w in (np.full((70, 3), 0.3), np.full((1, 1), -0.3), np.float32(0.3), np.ones(5) / 3):
        w_hat, nbytes = peer.quantize(w, bits)
        assert w_hat.shape == np.shape(w)
        assert w_hat.dtype == np.float32
        # One step of the coarsest, two bits, where the largest magnitude is 1.5 steps.
        assert np.abs(w_hat - w).max() <= 0.3 / 1.5 / 2 * 1.12
        assert nbytes >= math.ceil(w_hat.size * bits / 8)
    mixed = weights(70, 3)
    mixed[:, 1] = 0
    assert np.isfinite(peer.quantize(mixed, bits)[0]).all()


@every_peer
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_dtypes_are_computed_with_in_float32(peer, dtype):
    bits = peer.bits[-1]
    w = np.asarray(jnp.asarray(weights(40, 4), "float16"))
    w = np.asarray(jnp.asarray(w, dtype)) if dtype != "float64" else w.astype(np.float64)
    w_hat, nbytes = peer.quantize(w, bits)
    again, same = peer.quantize(w.astype(np.float32), bits)
    assert w_hat.dtype == np.float32
    np.testing.assert_array_equal(w_hat, again)
    assert nbytes == same


@every_peer
@pytest.mark.parametrize("scale", [1e-45, 1e-30, 1e30])
def test_extreme_units_raise_no_warning(peer, scale):
    w = (weights(40, 4, scale=1) * scale).astype(np.float32)
    assert np.isfinite(peer.quantize(w, peer.bits[-1])[0]).all()


def test_what_cannot_be_quantized_is_said():
    peer = BY_NAME["NF4, channel"]
    with pytest.raises(InputError, match="NF4, channel has 4 bits, not 3"):
        peer.quantize(weights(4, 4), 3)
    with pytest.raises(InputError, match="channel_axis=2: the array has 2 axes"):
        peer.quantize(weights(4, 4), 4, channel_axis=2)
    with pytest.raises(InputError, match=r"got int64\[2\]; give at least one weight of float16"):
        peer.quantize(np.array([1, 2]), 4)
    with pytest.raises(InputError, match="at least one weight"):
        peer.quantize(np.zeros((0, 3), np.float32), 4)
    for bad in (np.nan, np.inf, 1e38, 1e300):
        with pytest.raises(InputError, match="finite and at most 1e\\+37"):
            peer.quantize(np.array([[bad, 1.0]]), 4)
    with pytest.raises(InputError, match="a/kernel: weights have to be finite"):
        peer.quantize_tree({"a": {"kernel": np.array([[np.nan, 1.0]])}}, 4)
    with pytest.raises(InputError, match="no peer 'NF5'; choose from: int absmax, tensor; int"):
        peers(["NF5"])
