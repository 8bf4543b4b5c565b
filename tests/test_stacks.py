"""Scanned layers: as if each were quantized by itself, and decoded one at a time inside scan."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import corrq_jax as corrq
import corrq_jax.flax
from corrq_jax import stacks
from corrq_jax.errors import InputError
from corrq_jax.readers import read_weights
from corrq_jax.tensor import is_quantized

LAYERS, WIDTH = 4, 16


def weights(seed=0):
    """Layers of very different sizes: one table of levels serves none of them well."""
    rng = np.random.default_rng(seed)
    scales = 4.0 ** np.arange(LAYERS)
    kernel = scales[:, None, None] * rng.normal(size=(LAYERS, WIDTH, WIDTH))
    blocks = {"query": {"kernel": kernel}, "bias": rng.normal(size=(LAYERS, WIDTH))}
    tree = {"blocks": blocks, "head": {"kernel": rng.normal(size=(WIDTH, 5))}}
    return jax.tree.map(np.float32, tree)


@pytest.mark.parametrize(
    "options", [{}, {"granularity": "channel"}, {"coding": "trellis"}], ids=str
)
def test_each_layer_is_as_if_alone(options):
    params = weights()
    qparams, report = stacks.quantize(params, bits=3, stacked="blocks", **options)
    stack, noise = qparams["blocks"]["query"]["kernel"], []
    assert (stack.shape, stack.codes.shape[0]) == ((WIDTH, WIDTH), LAYERS)
    decoded = stack.dequantize()
    for i, kernel in enumerate(params["blocks"]["query"]["kernel"]):
        alone, rows = corrq.quantize({"query": {"kernel": kernel}}, bits=3, **options)
        np.testing.assert_array_equal(decoded[i], alone["query"]["kernel"].dequantize())
        noise.append(rows.rows[0].noise)
    head, row = report.rows[1], report.rows[0]
    assert (row.path, row.shape) == ("blocks/query/kernel", (LAYERS, WIDTH, WIDTH))
    assert row.noise == pytest.approx(np.mean(noise))
    assert (head.path, len(report)) == ("head/kernel", 2)
    assert [skipped.path for skipped in report.skipped] == ["blocks/bias"]
    assert qparams["blocks"]["bias"] is params["blocks"]["bias"]
    assert jax.tree.structure(corrq.dequantize(qparams)) == jax.tree.structure(params)


def test_the_report_says_how_large_the_file_is(tmp_path):
    qparams, report = stacks.quantize(weights(), bits=3, stacked="blocks")
    size = corrq.save(tmp_path / "net.safetensors", qparams)
    assert size == report.file_nbytes == (tmp_path / "net.safetensors").stat().st_size
    back = corrq.load(tmp_path / "net.safetensors")
    jax.tree.map(np.testing.assert_array_equal, corrq.dequantize(back), corrq.dequantize(qparams))


def test_layers_of_fewer_levels_and_of_one():
    params = weights()
    kernel = params["blocks"]["query"]["kernel"]
    kernel[1] = 0.25  # constant
    kernel[2] = np.sign(kernel[2])  # two values: one bit by itself
    qparams, _ = stacks.quantize(params, bits=3, stacked="blocks")
    stack = qparams["blocks"]["query"]["kernel"]
    assert (stack.bits, stack.levels.shape) == (3, (LAYERS, 8))
    assert (np.diff(stack.levels) >= 0).all()
    decoded = np.asarray(stack.dequantize())
    np.testing.assert_array_equal(decoded[1:3], kernel[1:3])
    alone, _ = corrq.quantize({"kernel": kernel[0]}, bits=3)
    np.testing.assert_array_equal(decoded[0], alone["kernel"].dequantize())


def test_layers_along_a_trellis_and_one_that_is_constant():
    params = weights()
    params["blocks"]["query"]["kernel"][1] = 0.25
    qparams, _ = stacks.quantize(params, bits=3, stacked="blocks", coding="trellis")
    stack = qparams["blocks"]["query"]["kernel"]
    assert (stack.coding, stack.levels.shape) == ("trellis", (LAYERS, 16))
    decoded = np.asarray(stack.dequantize())
    assert (decoded[1] == 0.25).all()
    error = decoded[0] - params["blocks"]["query"]["kernel"][0]
    assert error.var() < 0.03  # of the variance; packed codes leave .03


@pytest.mark.parametrize(("few", "message"), [(True, "few distinct"), (False, "4 and 8 le")])
def test_layers_along_different_trellises_are_an_error(few, message):
    """Heavy tails are worth more levels than are normal weights."""
    rng = np.random.default_rng(0)
    kernel = np.stack([rng.standard_t(3, size=(32, 32)), rng.normal(size=(32, 32))])
    if few:
        kernel[1] = np.sign(kernel[1])
    with pytest.raises(InputError, match=f"a/kernel: its layers .*{message}.*coding='packed'"):
        stacks.quantize({"a": {"kernel": kernel}}, bits=1, stacked="a", coding="trellis")


def test_what_has_no_layers_to_quantize_is_left():
    params = weights()
    params["blocks"] |= {"none": np.zeros((0, 3, 3)), "key": jax.random.split(jax.random.key(0), 4)}
    qparams, report = stacks.quantize(params, bits=3, stacked="blocks")
    assert qparams["blocks"]["key"] is params["blocks"]["key"]
    reason_of = {skipped.path: skipped.reason for skipped in report.skipped}
    assert (reason_of["blocks/none"], reason_of["blocks/key"]) == ("empty", "a random key")


def test_inside_jit_there_are_no_layers():
    with pytest.raises(InputError, match="a/kernel: quantize needs the values"):
        jax.jit(lambda w: stacks.quantize({"a": {"kernel": w}}, stacked="a")[0])(np.ones((2, 3, 4)))


def test_a_stack_of_float64_stays_so(tmp_path):
    file, back = tmp_path / "net.safetensors", tmp_path / "back.safetensors"
    params = {"kernel": weights()["blocks"]["query"]["kernel"].astype(np.float64)}
    qparams, _ = stacks.quantize(params, bits=3, stacked="kernel")
    corrq.save(file, qparams)
    corrq.dequantize_file(file, back)
    decoded = qparams["kernel"].dequantize()
    assert decoded.dtype == np.float64
    np.testing.assert_array_equal(read_weights(back)["kernel"], decoded)
    alone, _ = corrq.quantize({"kernel": params["kernel"][1]}, bits=3)
    np.testing.assert_array_equal(decoded[1], alone["kernel"].dequantize())


def test_a_pattern_that_names_the_leaf_itself():
    tree = {"blocks": {"weight": weights()["blocks"]["query"]["kernel"]}}  # channels: axis 0
    options = {"bits": 3, "granularity": "channel"}
    expected, _ = stacks.quantize(tree, stacked="blocks", **options)
    found, _ = stacks.quantize(tree, stacked="*/weight", **options)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    layers = {"kernel": weights()["blocks"]["query"]["kernel"], "1": {"kernel": np.ones((3, 3))}}
    with pytest.raises(InputError, match="'1/kernel' would be a layer and another leaf, too"):
        stacks.quantize(layers, bits=3, stacked="kernel")


def test_patterns_see_the_layers():
    bits = {"blocks/*/query": 3, "head": 4}
    _, report = stacks.quantize(weights(), bits=bits, stacked="bl*s")
    assert [row.bits for row in report] == [3, 4]
    _, report = stacks.quantize(weights(), bits=3, stacked=("blocks/query/kernel", "blocks/bias"))
    assert [row.path for row in report] == ["blocks/query/kernel", "head/kernel"]
    tree = {"kernel": weights()["blocks"]["query"]["kernel"].astype(jnp.bfloat16)}
    qtree, _ = stacks.quantize({"a": [tree]}, bits=3, stacked="a")
    assert qtree["a"][0]["kernel"].dequantize().dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stacked": "tail"}, "stacked='tail' matches no leaf; the paths are: blocks/bias"),
        ({"stacked": "*"}, "count has no first axis of layers"),
        (
            {"stacked": "blocks", "bits": None, "bits_per_weight": 3.0},
            "stacked= with bits_per_weight: .* give bits",
        ),
        ({"stacked": "blocks", "coding": "entropy"}, "coding='entropy': layers would differ"),
        ({"stacked": "blocks", "coding": "entropy-trellis"}, "='entropy-trellis': layers would"),
        ({"stacked": "blocks", "select": "blocks/2/*"}, "quantized alike, or none"),
        ({"stacked": "blocks", "bits": {"*/2/*": 3}}, "quantized alike, or none"),
        ({"stacked": "blocks", "bits": {"*/2/*": 3, "*": 4}}, "query/kernel: .*the same bits"),
    ],
)
def test_what_cannot_be_stacked(options, message):
    params = weights() | {"count": np.float32(3)}
    with pytest.raises(InputError, match=message):
        stacks.quantize(params, **{"bits": 3, **options})


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return x + jnp.tanh(nn.Dense(WIDTH)(x)), None


class Net(nn.Module):
    """Scanned blocks, whose parameters are decoded within the step that uses them."""

    @nn.compact
    def __call__(self, x):
        decoded = nn.map_variables(Block, "params", corrq.dequantize, init=True)
        scanned = nn.scan(
            decoded, variable_axes={"params": 0}, split_rngs={"params": True}, length=LAYERS
        )
        x, _ = scanned(name="blocks")(x, None)
        return nn.Dense(5)(nn.BatchNorm(use_running_average=True)(x))


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(1).normal(size=(7, WIDTH)).astype(np.float32)


def largest_float(jaxpr):
    """Elements of the largest float32 array in a computation, loops' bodies included."""
    sizes = [0]
    for eqn in jaxpr.eqns:
        sizes += [v.aval.size for v in eqn.outvars if v.aval.dtype == jnp.float32]
        inner = (getattr(p, "jaxpr", p) for p in eqn.params.values())
        sizes += [largest_float(j) for j in inner if hasattr(j, "eqns")]
    return max(sizes)


def test_linen_decodes_a_layer_at_a_time(x):
    variables = Net().init(jax.random.key(0), x)
    options = {"bits": 3, "stacked": "blocks", "example": x, "apply": Net().apply}
    qvariables, report = corrq_jax.flax.quantize(variables, **options)
    assert report.rows[1].shape == (LAYERS, WIDTH, WIDTH)
    assert report.matched is None
    head = qvariables["params"]["Dense_0"]
    qvariables["params"]["Dense_0"] = corrq.dequantize(head)
    assert is_quantized(qvariables["params"]["blocks"]["Dense_0"]["kernel"])
    expected = Net().apply(corrq.dequantize(qvariables), x)
    np.testing.assert_allclose(Net().apply(qvariables, x), expected, rtol=1e-5, atol=1e-6)
    closed = jax.make_jaxpr(Net().apply)(qvariables, x)
    assert largest_float(closed.jaxpr) == WIDTH * WIDTH


@pytest.mark.parametrize("coding", ["packed", "trellis"])
def test_nnx_blocks_in_a_scan(x, coding):
    @nnx.vmap(in_axes=(0,), out_axes=0)
    def create(rngs):
        return nnx.Linear(WIDTH, WIDTH, rngs=rngs)

    _, params = corrq_jax.flax.functional(create(nnx.Rngs(0).split(LAYERS)))
    one, _ = corrq_jax.flax.functional(nnx.Linear(WIDTH, WIDTH, rngs=nnx.Rngs(0)))
    qparams, _ = stacks.quantize(params, bits=3, stacked="*", coding=coding)
    assert qparams["kernel"].coding == coding

    @jax.jit
    def run(params, x):
        return jax.lax.scan(lambda x, layer: (x + jnp.tanh(one(layer, x)), None), x, params)[0]

    expected = x
    for i in range(LAYERS):
        layer = jax.tree.map(lambda leaf, i=i: leaf[i], corrq.dequantize(qparams))
        expected = expected + jnp.tanh(one(layer, expected))
    np.testing.assert_allclose(run(qparams, x), expected, rtol=1e-5, atol=1e-5)
    assert largest_float(jax.make_jaxpr(run)(qparams, x).jaxpr) == WIDTH * WIDTH


def test_moments_are_matched_beside_a_stack(x):
    """What the trace does not follow, here the scan, is left alone."""
    variables = Net().init(jax.random.key(0), x)
    options = {"bits": 3, "stacked": "blocks", "example": x, "match_moments": True}
    _, report = corrq_jax.flax.quantize(variables, apply=Net().apply, **options)
    assert "params/blocks/Dense_0/kernel" in report.matched.unreached
