"""Trellis-coded tensors: quantized, decoded, stored."""

import re
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import corrq_jax as corrq
from corrq_jax.core.correlation import correlation


def weights(shape, seed=0):
    return np.random.default_rng(seed).standard_t(4, shape).astype(np.float32)


TREE = {
    "large": {"kernel": weights((701, 23))},
    "small": {"kernel": weights((30, 17), 1) / 7 + 2},
    "half": {"kernel": jnp.asarray(weights((40, 30), 2), jnp.bfloat16)},
    "few": {"kernel": np.sign(weights((20, 30), 3))},
    "tiny": {"kernel": weights((2, 3), 4)},
}


@pytest.mark.parametrize("coding", ["trellis", "entropy-trellis"])
@pytest.mark.parametrize(
    "options",
    [{"bits": 2}, {"bits": 7}, {"bits": 3, "granularity": "channel"}, {"bits_per_weight": 4.0}],
    ids=str,
)
def test_tensors_decode_to_what_the_report_says(options, coding, tmp_path):
    tree, report = corrq.quantize(TREE, coding=coding, **options)
    # Entropy-coded 7 bits need more than 256 levels along a trellis.
    assert coding in {row.coding for row in report} or options == {"bits": 7}
    decoded = corrq.dequantize(tree)
    for row in report:
        name, leaf = row.path.split("/")
        rho = correlation(TREE[name][leaf], decoded[name][leaf])
        # bfloat16 rounds what is decoded, and the small one lies at a mean of many deviations.
        loose = 0.1 if name == "half" else 1e-3
        assert row.noise == pytest.approx(1 - rho**2, rel=loose, abs=1e-6), row.path
    jitted = jax.jit(corrq.dequantize)(tree)
    jax.tree.map(np.testing.assert_array_equal, decoded, jitted)
    size = corrq.save(tmp_path / "net.safetensors", tree)
    assert size == (tmp_path / "net.safetensors").stat().st_size == report.file_nbytes
    loaded = corrq.load(tmp_path / "net.safetensors")
    assert jax.tree.structure(loaded) == jax.tree.structure(tree)
    jax.tree.map(np.testing.assert_array_equal, loaded, tree)


def test_entropy_coded_it_takes_fewer_bytes_for_the_same_noise():
    """A bit is worth 6.02 dB; 1.53 lie between uniform levels and Shannon's bound."""
    tree = {"kernel": weights((300, 400))}
    plain = corrq.quantize(tree, bits_per_weight=3.0, coding="entropy")[1].rows[0]
    both = corrq.quantize(tree, bits_per_weight=3.0, coding="entropy-trellis")[1].rows[0]
    assert both.coding == "entropy-trellis"
    gained = (
        10 * np.log10(plain.noise / both.noise) + 6.02 * 8 * (plain.nbytes - both.nbytes) / 120_000
    )
    assert gained > 0.9  # 1.2 less the levels, and less what lies between two steps of either


def test_it_is_better_than_the_best_levels_in_the_bytes_of_a_few_more():
    plain = corrq.quantize(TREE, bits=4)[1]
    along = corrq.quantize(TREE, bits=4, coding="trellis")[1]
    for before, after in zip(plain, along, strict=True):
        if before.path == "large/kernel":
            assert after.noise < 0.5 * before.noise
        assert after.noise <= before.noise
        # At most 48 levels more, and a word in the header.
        assert after.nbytes <= before.nbytes + 48 * 4 + 30


def test_levels_are_the_means_of_their_weights():
    tensor = corrq.quantize(TREE["large"], bits=3, coding="trellis")[0]["kernel"]
    index, w = tensor.level_indices(), TREE["large"]["kernel"].reshape(-1).astype(np.float64)
    assert tensor.levels.shape == (32,)
    for i in np.unique(index):
        assert float(tensor.levels[i]) == pytest.approx(w[index == i].mean(), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(
    ("shape", "levels"), [((10, 12), 8), ((40, 60), 16), ((100, 90), 32), ((200, 190), 64)]
)
def test_larger_tensors_have_more_levels_and_less_noise(shape, levels, tmp_path):
    """Noise of 2 bits, beside that of the best four levels; files and jit know all of them."""
    w = weights(shape, 5)
    tree, report = corrq.quantize({"kernel": w}, bits=2, coding="trellis")
    best = corrq.quantize({"kernel": w}, bits=2)[1].rows[0].noise
    assert tree["kernel"].levels.shape == (levels,)
    assert report.rows[0].noise < {8: 0.9, 16: 0.65, 32: 0.5, 64: 0.45}[levels] * best
    decoded = corrq.dequantize(tree)["kernel"]
    assert 1 - correlation(w, decoded) ** 2 == pytest.approx(report.rows[0].noise, rel=1e-3)
    corrq.save(tmp_path / "net.safetensors", tree)
    loaded = corrq.load(tmp_path / "net.safetensors")
    np.testing.assert_array_equal(decoded, jax.jit(corrq.dequantize)(loaded)["kernel"])


def test_few_weights_are_stored_as_they_are_and_eight_bits_are_packed():
    tree, report = corrq.quantize(TREE, bits=4, coding="trellis")
    rows = {row.path: row for row in report}
    assert (rows["few/kernel"].coding, rows["few/kernel"].noise) == ("packed", 0)
    assert (rows["tiny/kernel"].coding, rows["tiny/kernel"].noise) == ("packed", 0)
    assert rows["large/kernel"].coding == tree["large"]["kernel"].coding == "trellis"
    wide = corrq.quantize(TREE["large"], bits=8, coding="trellis")[1]
    assert wide.rows[0].coding == "packed"


@pytest.mark.parametrize("codings", [("packed", "trellis"), ("entropy", "entropy-trellis")])
def test_a_budget_is_kept_and_used(codings):
    plain, along = (corrq.quantize(TREE, bits_per_weight=3.0, coding=c)[1] for c in codings)
    size = sum(row.size for row in along)
    assert 8 * sum(row.nbytes for row in along) / size <= 3.0
    assert sum(row.noise for row in along) < sum(row.noise for row in plain)


@pytest.mark.parametrize("coding", ["trellis", "entropy-trellis"])
def test_a_target_of_correlation_is_met(coding):
    report = corrq.quantize(TREE, min_correlation=0.99, coding=coding)[1]
    assert min(row.correlation for row in report) >= 0.99


@pytest.mark.parametrize(("shape", "levels"), [((10, 12), 8), ((120, 90), 32)])
def test_a_stack_decodes_as_its_tensors(shape, levels):
    made = [corrq.quantize(weights(shape, i), bits=2, coding="trellis")[0] for i in range(3)]
    assert [tensor.levels.shape for tensor in made] == [(levels,)] * 3
    stack = jax.tree.map(lambda *a: jnp.stack(a), *made)
    expected = np.stack([t.dequantize() for t in made])
    np.testing.assert_array_equal(stack.dequantize(), expected)
    np.testing.assert_array_equal(jax.jit(corrq.dequantize)(stack), expected)


def test_the_same_bytes_every_time():
    first, second = (corrq.quantize(TREE, bits=3, coding="trellis")[0] for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_a_file_with_too_few_levels_is_refused(tmp_path):
    path = tmp_path / "net.safetensors"
    corrq.save(path, corrq.quantize(TREE["large"], bits=3)[0])
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    text, values = raw[8 : 8 + length].rstrip(), raw[8 + length :]
    # As the format says: the first checksum is that of the header with all of them zero.
    text = text.replace(rb"{\"bits\":3", rb"{\"coding\":\"trellis\",\"bits\":3")
    text += b" " * (-len(text) % 8)
    digits = re.search(rb'crc32\\":\\"([0-9a-f]+)', text)[1]
    crc = zlib.crc32(text.replace(digits, b"0" * len(digits)))
    text = text.replace(digits, f"{crc:08x}".encode() + digits[8:])
    path.write_bytes(len(text).to_bytes(8, "little") + text + values)
    with pytest.raises(corrq.FileFormatError, match="has a code 7 and levels for 4"):
        corrq.load(path)


@pytest.mark.parametrize("grid", ["linear", "exponential", "nf4"])
def test_only_free_levels_are_coded_along_it(grid):
    with pytest.raises(corrq.InputError, match="only 'optimal'"):
        corrq.quantize(TREE, bits=4, grid=grid, coding="trellis")
