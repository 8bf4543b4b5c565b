"""What a tensor can be stored as: bytes and noise are known before anything is encoded."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import oracles
import pytest

import corrq_jax as corrq
from corrq_jax import layout, menu
from corrq_jax import leaf as leaves
from corrq_jax.config import Config
from corrq_jax.rescale import scaled
from corrq_jax.tensor import Rows

RNG = np.random.default_rng(0)
WIDTHS = tuple(range(1, 9))
TENSORS = {
    "blocks/0/conv/kernel": RNG.laplace(size=(3, 3, 8, 32)).astype(np.float32),
    "dense/kernel": RNG.normal(size=(250, 90)).astype(np.float32),  # binned
    "half": RNG.laplace(size=(30, 41)).astype(np.float16),
    "brain": RNG.laplace(size=(70, 10)).astype(jnp.bfloat16),
    "wide": RNG.normal(size=(16, 25)) * 1e-5,
    "few": np.resize(np.float32([0, 1, -2, 5, 3]), (25, 41)),
    "tiny": RNG.normal(size=(3, 4)).astype(np.float32),
}
ROWS = Rows(72, 32, 1, 72)


@pytest.fixture(scope="module")
def menus():
    """Every option of every tensor, in the two batches that `quantize` would make."""
    config = Config(bits_per_weight=4, coding="entropy")
    measured = [menu.measure(leaves.read(path, w)) for path, w in TENSORS.items()]
    conv = leaves.read("scaled", TENSORS["blocks/0/conv/kernel"])
    measured.append(menu.measure(scaled(conv, ROWS)))
    assert len(measured) == menu.BATCH
    return dict(
        zip([*TENSORS, "scaled"], menu.options(measured, config, WIDTHS, True), strict=True)
    )


@pytest.fixture(scope="module")
def encoded(menus):
    """(option, tensor, noise, its bytes in a file with the noise recorded) of some."""
    found = {}
    for path, options in menus.items():
        found[path] = []
        every = 12 if path == "scaled" else 6  # each number of levels compiles
        for option in [*options[:-1:every], options[-1]]:
            tensor, noise = menu.encode(option)
            row = SimpleNamespace(path=option.leaf.path, noise=noise)
            tree = {}
            node = tree
            *parents, last = option.leaf.path.split("/")
            for key in parents:
                node = node.setdefault(key, {})
            node[last] = tensor
            (nbytes,) = layout.plan(tree, [row]).leaf_nbytes()
            found[path].append((option, tensor, noise, nbytes))
    return found


def weights(path):
    return TENSORS.get(path, TENSORS["blocks/0/conv/kernel"])


NAMES = [*TENSORS, "scaled"]


@pytest.mark.parametrize("path", NAMES)
def test_bytes_are_an_upper_bound_or_a_prediction_and_close(path, encoded):
    for option, tensor, _, nbytes in encoded[path]:
        what = (option.bits, option.coding, tensor.levels.size)
        if option.coding == "packed":
            assert nbytes <= option.nbytes <= nbytes + 64 + 0.01 * nbytes, what
        else:  # a prediction, mostly a little too high
            assert 0.98 * nbytes - 32 <= option.nbytes <= nbytes + 64 + 0.02 * nbytes, what


@pytest.mark.parametrize("path", NAMES)
def test_noise_is_that_of_what_is_encoded(path, encoded):
    w = np.asarray(weights(path), np.float64)
    for option, tensor, noise, _ in encoded[path]:
        if tensor.levels.size == 1:  # a constant has no correlation
            assert noise == pytest.approx(1)
            continue
        exact = 1 - oracles.rho(w, np.asarray(tensor.dequantize(), np.float64)) ** 2
        # 11 bits of the density, and 8 of bfloat16's levels; what is below is rounding.
        limit = 0.05 if path == "brain" else 2e-3 if tensor.levels.size <= 64 else 1e-2
        floor = 2e-6 if path == "brain" else 2e-8 if path == "half" else 1e-9
        assert noise == pytest.approx(exact, rel=limit, abs=floor)
        # A prediction for all rows alike; then scales are refined.
        ours = {"rel": 0.1} if option.leaf.scales is not None else {"rel": 1e-12}
        assert noise == pytest.approx(option.noise, **ours, abs=1e-14)


@pytest.mark.parametrize("path", NAMES)
def test_tensors_are_as_the_options_say(path, encoded):
    for option, tensor, _, _ in encoded[path]:
        assert (tensor.bits, tensor.coding) == (option.bits, option.coding)
        assert 2 ** (tensor.bits - 1) < tensor.levels.size <= 2**tensor.bits or tensor.bits == 1
        assert tensor.shape == weights(path).shape
        assert tensor.dtype == weights(path).dtype.name
        assert (tensor.rows == ROWS) == (path == "scaled")


@pytest.mark.parametrize("path", ["dense/kernel", "half", "scaled"])
def test_options_of_a_tensor_of_many_weights(path, menus):
    packed = [o for o in menus[path] if o.coding == "packed"]
    assert [o.bits for o in packed] == list(WIDTHS)
    assert len(menus[path]) == len(packed) + 30
    assert (np.diff([o.nbytes for o in packed]) > 0).all()


@pytest.mark.parametrize(("path", "bits", "levels"), [("few", 3, 5), ("tiny", 4, 12)])
def test_few_distinct_weights_end_with_themselves(path, bits, levels, menus, encoded):
    *_, (option, tensor, noise, _) = encoded[path]
    assert option.quantizer is None
    assert (option.noise, noise, tensor.bits, tensor.levels.size) == (0, 0, bits, levels)
    np.testing.assert_array_equal(np.asarray(tensor.dequantize()), TENSORS[path])
    assert all(o.nbytes < option.nbytes for o in menus[path][:-1])


def test_boundaries_of_few_lengths_compile(menus):
    lengths = {len(o.quantizer.boundaries) for options in menus.values() for o in options[:-1]}
    assert lengths <= {2**bits - 1 for bits in WIDTHS}


@pytest.mark.parametrize("count", [1, 3])
def test_options_do_not_depend_on_the_batch(count, menus):
    paths = ["few", "half", "dense/kernel"][-count:]
    measured = [menu.measure(leaves.read(path, TENSORS[path])) for path in paths]
    config = Config(bits_per_weight=4, coding="entropy")
    for path, options in zip(paths, menu.options(measured, config, WIDTHS, True), strict=True):
        found = [(o.bits, o.coding, o.nbytes, o.noise) for o in options]
        assert found == [(o.bits, o.coding, o.nbytes, o.noise) for o in menus[path]]


def test_few_distinct_weights_take_no_more_bits_than_allowed():
    """There are more levels along a trellis, and fewer distinct weights than these."""
    w = np.random.default_rng(0).integers(-20, 20, size=(128, 128)).astype(np.float32)
    options = {"bits_per_weight": 10, "coding": "trellis"}
    for widths, bits, coding in ((3, 3, "trellis"), ((3, 6), 6, "packed")):
        qparams, _ = corrq.quantize({"kernel": w}, bits=widths, **options)
        assert (qparams["kernel"].bits, qparams["kernel"].coding) == (bits, coding)


def test_a_pattern_of_bits_pins_a_tensor_that_could_be_coded():
    """With entropy coding a pattern's widths are kept; other tensors are coded."""
    params = {path: TENSORS[path] for path in ("dense/kernel", "half")}
    qparams, _ = corrq.quantize(
        params, bits={"half": 5}, bits_per_weight=4.5, coding="entropy", select="*"
    )
    assert (qparams["half"].bits, qparams["half"].coding) == (5, "packed")
    assert qparams["dense/kernel"].coding == "entropy"


@pytest.mark.parametrize("widths", [(2, 8), (3,)])
def test_options_have_the_widths_that_are_asked_for(widths, menus):
    [options] = menu.options(
        [menu.measure(leaves.read("half", TENSORS["half"]))],
        Config(bits_per_weight=4),
        widths,
        False,
    )
    assert tuple(o.bits for o in options) == widths
    for option in options:
        same = next(o for o in menus["half"] if (o.bits, o.coding) == (option.bits, "packed"))
        # A single width has the optimum itself, several have the ladder's.
        assert (option.nbytes, option.noise) == (same.nbytes, pytest.approx(same.noise, rel=2e-3))
