"""A batch shared by eight devices: the numbers of one device, and work that is really spread.

JAX counts its devices once a process, so this file runs itself with eight virtual CPU devices and
reads what they found from its output.
"""

import dataclasses
import functools
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import corrq_jax as corrq
from corrq_jax import evaluation
from corrq_jax.flax import functional

DEVICES = 8
PICTURES, SIZE, CLASSES = 29, 12, 10
BATCH = 11  # padded to 16 for eight devices; the last batch holds 7 pictures


class Network(nnx.Module):
    """Two convolutions, a normalization and a classifier."""

    def __init__(self, rngs):
        self.stem = nnx.Conv(3, 16, (3, 3), strides=2, rngs=rngs)
        self.norm = nnx.BatchNorm(16, epsilon=1e-5, use_running_average=True, rngs=rngs)
        self.depthwise = nnx.Conv(16, 16, (3, 3), feature_group_count=16, rngs=rngs)
        self.head = nnx.Linear(16, CLASSES, rngs=rngs)

    def __call__(self, images):
        x = nnx.relu(self.norm(self.stem(images)))
        return self.head(nnx.relu(self.depthwise(x)).mean((1, 2)))


class Watched:
    """A network that counts its traces, and records how arrays lie in each compiled step."""

    def __init__(self, apply):
        self.apply, self.traces, self.layouts = apply, 0, []

    def __call__(self, params, images):
        self.traces += 1
        logits = self.apply(params, images)
        kernel = jax.tree.leaves(params["stem"]["kernel"])[0]  # its codes if it is quantized
        for name, array in {"kernel": kernel, "images": images, "logits": logits}.items():
            record = functools.partial(self.record, name, array.shape)
            jax.debug.inspect_array_sharding(array, callback=record)
        return logits

    def record(self, name, shape, sharding):
        devices = sorted(device.id for device in sharding.device_set)
        self.layouts.append((name, devices, shape, sharding.shard_shape(shape)))


def batches(images, labels):
    """Batches of BATCH pictures; the padding of the last one holds what must not count."""
    for start in range(0, len(images), BATCH):
        mask = np.arange(start, start + BATCH) < len(images)
        picked = np.where(mask, np.arange(start, start + BATCH), 0)
        yield np.where(mask[:, None, None, None], images[picked], np.nan), labels[picked], mask


def findings():
    """What the devices of this process find; plain values."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(PICTURES, SIZE, SIZE, 3)).astype(np.float32)
    pictures = list(batches(images, rng.integers(-1, CLASSES, PICTURES)))
    apply, params = functional(Network(nnx.Rngs(0)))
    devices = {"one": jax.local_devices()[:1], "three": jax.local_devices()[:3], "all": None}
    reference = evaluation.logits(apply, params, pictures, devices=devices["one"])
    reference += 0.3 * reference.std() * rng.normal(size=reference.shape).astype(np.float32)
    found = {"devices": jax.local_device_count()}
    for kind, tree in (("float", params), ("quantized", corrq.quantize(params, bits=3)[0])):
        for where, chosen in devices.items():
            watched = Watched(apply)
            metrics = evaluation.evaluate(watched, tree, pictures, reference, devices=chosen)
            rows = evaluation.logits(watched, tree, pictures, devices=chosen)
            evaluation.evaluate(watched, jax.tree.map(np.copy, tree), pictures, devices=chosen)
            found[f"{kind} on {where}"] = {
                "metrics": dataclasses.asdict(metrics),
                "logits": rows.tolist(),
                "traces": watched.traces,
                "layouts": watched.layouts,
            }
    watched = Watched(apply)
    with jax.default_device(jax.local_devices()[2]):
        evaluation.evaluate(watched, params, pictures)
    found["by default on the third"] = watched.layouts
    few = [(jnp.asarray(images[:3]), np.full(3, -1), np.arange(3) != 1)]
    found["few"] = evaluation.logits(apply, params, few).tolist()
    return found


@pytest.fixture(scope="module")
def found():
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={DEVICES}"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    command = [sys.executable, "-W", "error", __file__]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["devices"] == DEVICES
    return found


KINDS = pytest.mark.parametrize("kind", ["float", "quantized"])


@KINDS
@pytest.mark.parametrize("where", ["three", "all"])
def test_many_devices_find_what_one_finds(found, kind, where):
    one, many = found[f"{kind} on one"], found[f"{kind} on {where}"]
    # Sums of some hundred float32 terms of order one, in another order.
    np.testing.assert_allclose(many["logits"], one["logits"], rtol=1e-5, atol=1e-6)
    for name in ("count", "labelled", "top1", "top5", "agreement"):
        assert many["metrics"][name] == one["metrics"][name], name
    for name in ("kl", "correlation"):
        assert many["metrics"][name] == pytest.approx(one["metrics"][name], rel=1e-5), name


@KINDS
def test_the_numbers_tell_something(found, kind):
    metrics = found[f"{kind} on one"]["metrics"]
    assert metrics["count"] == PICTURES
    assert 0 < metrics["labelled"] < PICTURES
    for name in ("top1", "top5", "agreement", "correlation"):
        assert 0 < metrics[name] < 1, name
    assert metrics["kl"] > 1e-3


@KINDS
@pytest.mark.parametrize(
    ("where", "devices", "share"), [("one", 1, 11), ("three", 3, 4), ("all", 8, 2)]
)
def test_the_batch_is_spread_and_the_parameters_are_whole(found, kind, where, devices, share):
    layouts = {name: layout for name, *layout in found[f"{kind} on {where}"]["layouts"]}
    for name in ("images", "logits"):
        on, whole, part = layouts[name]
        assert (len(on), whole[0], part[0]) == (devices, devices * share, share), name
        assert part[1:] == whole[1:]
    on, whole, part = layouts["kernel"]
    assert (len(on), part) == (devices, whole)


def test_the_default_device_is_heeded(found):
    assert [on for _, on, *_ in found["by default on the third"]] == [[2]] * 3


@KINDS
@pytest.mark.parametrize("where", ["one", "three", "all"])
def test_one_compiled_step_for_all_passes(found, kind, where):
    case = found[f"{kind} on {where}"]
    assert case["traces"] == 1
    assert sorted(name for name, *_ in case["layouts"]) == ["images", "kernel", "logits"]


def test_fewer_pictures_than_devices_on_a_device_already(found):
    expected = np.array(found["float on one"]["logits"])[[0, 2]]
    # As above.
    np.testing.assert_allclose(found["few"], expected, rtol=1e-5, atol=1e-6)


if __name__ == "__main__":
    print(json.dumps(findings()))
