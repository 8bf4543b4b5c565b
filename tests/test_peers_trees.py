"""Peers on parameter trees: their form, rows, and what bits buy."""

import math

import jax.numpy as jnp
import numpy as np
import oracles
import pytest

import corrq_jax as corrq
from corrq_jax.peers import (
    CHANNEL,
    PEERS,
    TENSOR,
    kmeans,
    stored_bits,
)

BY_NAME = {peer.name: peer for peer in PEERS}
every_peer = pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)


def weights(*shape, seed=0, scale=0.1):
    """Student's t: tails as heavy as those of real kernels."""
    return (scale * np.random.default_rng(seed).standard_t(4, shape)).astype(np.float32)


def tree():
    return {
        "conv": {"kernel": weights(3, 3, 4, 6), "bias": weights(6)},
        "dense": {"kernel": jnp.asarray(weights(24, 10), jnp.bfloat16)},
        "constant": {"kernel": np.ones((3, 3))},
        "empty": {"kernel": np.zeros((0, 3))},
        "step": np.int32(3),
        "name": "a",
    }


@every_peer
def test_trees_keep_their_form_and_rows_say_what_was_lost(peer):
    params, bits = tree(), peer.bits[-1]
    decoded, rows = peer.quantize_tree(params, bits)
    assert [row.path for row in rows] == ["conv/kernel", "dense/kernel"]
    for name, row in zip(("conv", "dense"), rows, strict=True):
        w, kept = params[name]["kernel"], decoded[name]["kernel"]
        w_hat, nbytes = peer.quantize(w, bits)
        assert (kept.shape, kept.dtype) == (w.shape, w.dtype)
        np.testing.assert_array_equal(kept, w_hat.astype(w.dtype))
        assert (row.size, row.nbytes) == (w.size, nbytes)
        exact = oracles.rho(np.asarray(w, np.float64), w_hat)
        assert row.noise == pytest.approx(1 - exact**2, rel=1e-6, abs=1e-12)
    for name in ("constant", "empty", "step", "name"):
        assert decoded[name] is params[name] or decoded[name]["kernel"] is params[name]["kernel"]
    assert decoded["conv"]["bias"] is params["conv"]["bias"]
    assert stored_bits(rows) == pytest.approx(8 * sum(r.nbytes for r in rows) / (216 + 240))


def test_select_chooses():
    _, rows = BY_NAME["k-means, tensor"].quantize_tree(tree(), 2, lambda path, _: "bias" in path)
    assert [row.path for row in rows] == ["conv/bias"]
    assert math.isnan(stored_bits(()))


def test_a_lost_tensor_has_noise_one():
    # Narrower than hqq's 1e-4 and on one side of a rounding boundary: all codes are equal.
    w = np.linspace(1e-6, 2e-6, 64, dtype=np.float32).reshape(8, 8)
    _, (row,) = BY_NAME["HQQ, blocks of 64"].quantize_tree({"kernel": w}, 4)
    assert row.noise == 1


def test_more_is_better():
    """Orders that the methods promise on weights of heavy tails; no figures."""
    w = weights(512, 64, seed=5)

    def noise(name, bits):
        return 1 - corrq.correlation(w, BY_NAME[name].quantize(w, bits)[0]) ** 2

    for kind in ("int absmax", "int min-max"):
        assert noise(f"{kind}, groups of 64", 4) < noise(f"{kind}, channel", 4)
        assert noise(f"{kind}, channel", 4) < noise(f"{kind}, tensor", 4)
    assert noise("NF4, blocks of 64", 4) < noise("NF4, channel", 4)
    for peer in PEERS:
        found = [noise(peer.name, bits) for bits in peer.bits]
        assert found == sorted(found, reverse=True), peer.name
    assert noise("k-means, tensor", 3) < noise("int min-max, tensor", 3)


def test_kmeans_family_gives_each_group_its_own_codebook():
    w = weights(300, 2)
    decoded, nbytes = kmeans(CHANNEL.split(w), 2)
    assert nbytes == 2 * 4 * 2
    for column, group in zip(w.T, decoded, strict=True):
        alone, _ = kmeans(TENSOR.split(column), 2)
        np.testing.assert_array_equal(group, alone[0])
