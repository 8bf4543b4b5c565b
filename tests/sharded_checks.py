"""Arrays on a mesh of devices: the results of one device, and weights that stay where they are.

Run by test_sharded.py with eight devices. What it is compared with, the same weights on one
device, has tests of its own.
"""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import corrq_jax as corrq
from corrq_jax import on_device, sharded_leaf
from corrq_jax.core import coding
from corrq_jax.core.density import CHUNK, SORTED_SIZE, Normalization
from corrq_jax.export import to_numpy
from corrq_jax.flax import functional
from corrq_jax.orbax import from_arrays, to_arrays

AXES = pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
BOTH = P("x", None, "y")
QUICK = corrq.Config(bits=3, grid="linear", fit="range")  # compiles in a fraction of the time
ALL = dataclasses.replace(QUICK, select="*")


def mesh_of(kind=AxisType.Auto, shape=(4, 2)):
    return jax.make_mesh(shape, ("x", "y"), axis_types=(kind, kind))


def put(array, spec, kind=AxisType.Auto):
    return jax.device_put(array, NamedSharding(mesh_of(kind), spec))


def weights(shape=(8, 256, 16), dtype=np.float32, seed=0):
    return np.random.default_rng(seed).laplace(size=shape).astype(dtype)


def trees():
    """The same tree as it is and by name of a sharding; wide, and narrow enough to be sorted."""
    wide, narrow, half = weights(), weights((8, 8, 4)), weights(dtype=jnp.bfloat16)
    few = np.random.default_rng(1).choice([-1.0, -0.0, 0.0, 2.5], (8, 256, 16)).astype(np.float32)
    far = weights() + 1000  # centered
    return {"wide": wide, "narrow": narrow, "half": half, "few": few, "far": far}


def collectives(compiled):
    """(what, the type of its result) of everything that goes from device to device."""
    names = (
        "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter|collective-broadcast"
    )
    found = re.findall(rf"= (.+?) ({names})(?:-start)?\(", compiled.as_text())
    return sorted((what, re.sub(r"\{.*?\}", "", kind)) for kind, what in found)


def assert_same(sharded, expected):
    np.testing.assert_array_equal(sharded.levels, expected.levels)
    np.testing.assert_array_equal(sharded.whole().codes, expected.codes)
    assert (sharded.shape, sharded.dtype, sharded.bits) == (
        expected.shape,
        expected.dtype,
        expected.bits,
    )


@pytest.fixture(scope="module")
def expected():
    return corrq.quantize(trees(), bits=3)


def check(tree, expected, report):
    """Results are those of one device, and codes and weights lie where the weights did."""
    found, sharded_report = corrq.quantize(tree, bits=3)
    assert [row for row in report if row.path in tree] == list(sharded_report)
    for name, w in tree.items():
        q = found[name]
        assert_same(q, expected[name])
        own = w.sharding.shard_shape(w.shape)
        assert q.codes.sharding.device_set == w.sharding.device_set
        assert q.codes.addressable_shards[0].data.size == coding.packed_size(np.prod(own), q.bits)
        for decoded in (q.dequantize(), jax.jit(corrq.dequantize)(q)):
            assert decoded.sharding.is_equivalent_to(w.sharding, w.ndim)
            np.testing.assert_array_equal(decoded, expected[name].dequantize())
        if w.size > SORTED_SIZE and name != "few":
            assert w._npy_value is None  # the array was never fetched


@AXES
def test_the_result_is_that_of_one_device_and_stays_sharded(kind, expected):
    check({name: put(w, BOTH, kind) for name, w in trees().items()}, *expected)


@pytest.mark.parametrize("spec", [P("x"), P(None, ("y", "x")), P()], ids=str)
def test_whatever_the_sharding(spec, expected):
    check({name: put(trees()[name], spec) for name in ("wide", "narrow")}, *expected)


def test_more_than_one_chunk_on_a_device():
    w = weights((2, CHUNK + CHUNK // 2 + 3))
    found, _ = corrq.quantize({"w": put(w, P(None))}, bits=2)  # whole on each device
    assert_same(found["w"], corrq.quantize({"w": w}, bits=2)[0]["w"])


def test_a_budget_is_shared_out_alike():
    tree = {"one": weights(), "two": weights(seed=1) ** 3}
    expected, report = corrq.quantize(tree, bits_per_weight=2.5)
    found, sharded_report = corrq.quantize(
        jax.tree.map(lambda w: put(w, BOTH), tree), bits_per_weight=2.5
    )
    assert sharded_report == report
    for name, q in found.items():
        assert_same(q, expected[name])


@AXES
def test_no_weight_leaves_its_device(kind):
    w = put(weights(), BOTH, kind)
    sharding = w.sharding
    norm = Normalization(np.float32(0), np.float32(1024))
    extremes = [("all-reduce", "f32[]"), ("all-reduce", "f32[]"), ("all-reduce", "s32[]")]
    counts = [("all-reduce", "s32[65536]")]
    extent = sharded_leaf._extent.lower(w, sharding).compile()
    density = sharded_leaf._density.lower(w, norm, sharding).compile()
    assert collectives(extent) == extremes
    assert collectives(density) == counts
    for assign, cells in (
        (coding.assign_by_table, np.zeros(1 << 16, np.uint8)),
        (coding.assign_by_search, np.zeros(7, np.float32)),
    ):
        encoded = sharded_leaf._codes.lower(w, norm, cells, sharding, 3, assign).compile()
        assert collectives(encoded) == []
    in_one = jax.jit(lambda w: corrq.quantize_array(w, QUICK, sharding=sharding))
    assert collectives(in_one.lower(w).compile()) == sorted(extremes + counts)
    q, _ = in_one(w)
    assert collectives(jax.jit(corrq.dequantize).lower(q).compile()) == []


def test_a_gather_would_be_seen():
    w = put(weights(), BOTH)
    gathered = jax.jit(lambda w: w + 1, out_shardings=NamedSharding(mesh_of(), P()))
    assert any(what == "all-gather" for what, _ in collectives(gathered.lower(w).compile()))


@pytest.mark.parametrize(
    ("shape", "kind"), [((8, 256, 16), AxisType.Auto), ((8, 8, 4), AxisType.Explicit)], ids=str
)
def test_in_jit_and_in_shard_map(shape, kind):
    w, config, spec = weights(shape), QUICK, BOTH
    expected, rho = corrq.quantize_array(w, config)
    sharded = put(w, spec, kind)
    jitted, found = jax.jit(lambda w: corrq.quantize_array(w, config, sharding=sharded.sharding))(
        sharded
    )
    assert_same(jitted, expected)
    assert found == rho
    assert_same(corrq.quantize_array(sharded, config)[0], expected)
    if kind == AxisType.Explicit:
        assert_same(jax.jit(corrq.quantize_array, static_argnums=1)(sharded, config)[0], expected)

    specs = dataclasses.replace(jitted, codes=spec, levels=P())
    mesh = sharded.sharding.mesh
    mapped = jax.shard_map(
        lambda w: corrq.quantize_array(w, config, sharding=spec)[0],
        mesh=mesh,
        in_specs=spec,
        out_specs=specs,
    )(sharded)
    assert_same(mapped, expected)
    decode = jax.shard_map(corrq.dequantize, mesh=mesh, in_specs=(specs,), out_specs=spec)
    np.testing.assert_array_equal(decode(mapped), expected.dequantize())


@AXES
def test_a_stack_of_sharded_tensors(kind):
    layers = [put(weights(seed=i), BOTH, kind) for i in range(2)]
    quantized = [corrq.quantize({"w": w}, bits=3)[0]["w"] for w in layers]
    expected = np.stack([q.dequantize() for q in quantized])
    stack = jax.tree.map(lambda *a: jnp.stack(a), *quantized)
    for decoded in (stack.dequantize(), jax.jit(corrq.dequantize)(stack)):
        np.testing.assert_array_equal(decoded, expected)
    _, scanned = jax.lax.scan(lambda carry, q: (carry, q.dequantize()), None, stack)
    np.testing.assert_array_equal(scanned, expected)


def test_one_compilation_a_shape_and_sharding():
    corrq.quantize({"w": put(weights(), BOTH)}, bits=3)
    programs = (sharded_leaf._extent, sharded_leaf._density, sharded_leaf._codes)
    before = [program._cache_size() for program in programs]
    corrq.quantize(
        {"a": put(weights(seed=5), P("x")), "b": put(weights(), P("x"))}, bits=3, select="*"
    )
    assert [program._cache_size() for program in programs] == before


def test_a_flax_module_runs_on_the_shards():
    model = nnx.Sequential(
        nnx.Linear(64, 512, rngs=nnx.Rngs(0)), nnx.relu, nnx.Linear(512, 8, rngs=nnx.Rngs(1))
    )
    apply, params = functional(model)
    x = weights((4, 64), seed=3)
    expected = apply(corrq.quantize(params, bits=4)[0], x)
    specs = {64: P(None, ("x", "y")), 512: P(("x", "y"), None)}
    sharded = jax.tree.map(lambda w: put(w, specs[w.shape[0]] if w.ndim == 2 else P()), params)
    quantized, _ = corrq.quantize(sharded, bits=4)
    step = jax.jit(apply)
    # Activations cross over, of at most 4 * 512 numbers; neither codes nor weights do.
    crossing = [kind for _, kind in collectives(step.lower(quantized, x).compile())]
    assert "f32[4,8]" in crossing
    assert set(crossing) <= {"f32[4,8]", "f32[4,512]"}
    # Sums of 512 float32 terms of order one, in another order.
    np.testing.assert_allclose(step(quantized, x), expected, rtol=1e-5, atol=1e-5)


def test_one_file_as_of_one_device(tmp_path, expected):
    corrq.save(tmp_path / "one", expected[0])
    found, _ = corrq.quantize({n: put(w, BOTH) for n, w in trees().items()}, bits=3)
    corrq.save(tmp_path / "many", found)
    assert (tmp_path / "many").read_bytes() == (tmp_path / "one").read_bytes()


def test_exports_keep_blocks_or_join_them(expected):
    found, _ = corrq.quantize({n: put(w, BOTH) for n, w in trees().items()}, bits=3)
    plain, same = to_numpy(expected[0]), to_numpy(found)
    for name in found:
        np.testing.assert_array_equal(same[name]["codes"], plain[name]["codes"])
    for name, q in from_arrays(to_arrays(found)).items():
        assert q.blocks == found[name].blocks
        assert q.codes is found[name].codes  # where it was
        assert_same(q, expected[0][name])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_named(bad):
    w = weights()
    w[3, 7, 1] = bad
    with pytest.raises(corrq.InputError, match=r"net/w: . NaN and . infinite of 32768"):
        corrq.quantize({"net": {"w": put(w, P("x"))}})


def test_what_is_not_supported_is_named():
    tree = {"w": put(weights(), P("x"))}
    with pytest.raises(corrq.InputError, match=r"w: .*granularity='channel'"):
        corrq.quantize(tree, bits=3, granularity="channel")
    with pytest.raises(corrq.InputError, match=r"w: .*coding='entropy'"):
        corrq.quantize(tree, bits=3, coding="entropy")
    with pytest.raises(corrq.InputError, match=r"w: .*2\*\*-100"):
        corrq.quantize({"w": put(weights() * np.float32(2**-120), P("x"))})
    with jax.enable_x64(True), pytest.raises(corrq.InputError, match="w: float64"):
        corrq.quantize({"w": put(weights(dtype=np.float64), P("x"))})
    constant, report = corrq.quantize({"w": put(np.zeros((8, 256), np.float32), P("x"))})
    assert "constant" in report.skipped[0].reason
    assert isinstance(constant["w"], jax.Array)


def test_tensors_on_accelerators_of_their_own(monkeypatch):
    """Let a CPU's devices pass for accelerators: no call takes arrays of two of them."""
    first, second, small = weights(), weights(seed=1), weights((8, 8, 4))
    expected, rows = corrq.quantize([first, second, small], config=ALL)
    monkeypatch.setattr(on_device, "holds", lambda array: isinstance(array, jax.Array))
    one, two = jax.devices()[:2]
    places = [one, two, two]
    there = [jax.device_put(w, d) for w, d in zip([first, second, small], places, strict=True)]
    found, same = corrq.quantize(there, config=ALL)
    assert same == rows
    assert [found[i].codes.devices() for i in (0, 1)] == [{one}, {two}]
    jax.tree.map(np.testing.assert_array_equal, found, expected)
