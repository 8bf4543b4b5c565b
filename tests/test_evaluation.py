"""Metrics against their definitions in NumPy float64, masks, ties, NaN, retraces, and speed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from corrq_jax import data, evaluation
from corrq_jax.errors import InputError


def identity(params, images):
    return images * params


def definition(logits, labels, reference):
    """The metrics, from their definitions, in float64."""
    logits, reference = np.float64(logits), np.float64(reference)
    order = np.argsort(-logits, axis=1, kind="stable")
    known = labels >= 0
    hits = order == labels[:, None]
    p, q = (np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in (reference, logits))
    return {
        "count": len(labels),
        "labelled": known.sum(),
        "top1": hits[known, 0].mean(),
        "top5": hits[known, :5].any(1).mean(),
        "agreement": (logits.argmax(1) == reference.argmax(1)).mean(),
        "kl": (p * np.log(p / q)).sum(1).mean(),
        "correlation": np.corrcoef(logits.ravel(), reference.ravel())[0, 1],
    }


@pytest.fixture
def case():
    rng = np.random.default_rng(0)
    reference = rng.normal(size=(23, 12)).astype(np.float32) * 2 + 3
    logits = reference + rng.normal(size=reference.shape).astype(np.float32)
    return logits, rng.integers(-1, 12, 23), reference


def one(batch_size, *arrays):
    return list(data.batches(*arrays, batch_size))


@pytest.mark.parametrize("batch_size", [1, 5, 23, 40])
def test_metrics_equal_their_definitions(case, batch_size):
    logits, labels, reference = case
    expected = definition(logits, labels, reference)
    found = evaluation.evaluate(
        identity, jnp.float32(1), one(batch_size, logits, labels), reference
    )
    for name, value in expected.items():
        # Sums of float32 logits of order one.
        assert getattr(found, name) == pytest.approx(value, rel=2e-5), name
    whole = evaluation.metrics_from_logits(logits, labels, reference)
    assert whole.kl == pytest.approx(found.kl, rel=1e-5)
    assert (whole.top1, whole.top5, whole.agreement) == (found.top1, found.top5, found.agreement)


def test_without_a_reference_and_without_labels(case):
    logits, labels, _ = case
    found = evaluation.metrics_from_logits(logits, labels)
    assert found.top1 is not None
    assert (found.agreement, found.kl, found.correlation) == (None, None, None)
    found = evaluation.metrics_from_logits(logits, np.full(len(logits), -1), logits)
    assert (found.count, found.labelled, found.top1, found.top5) == (23, 0, None, None)
    assert (found.agreement, found.kl) == (1, 0)
    assert found.correlation == pytest.approx(1, abs=1e-6)


def test_correlation_survives_a_large_offset(case):
    logits, labels, reference = case
    batches = one(5, logits + np.float32(1000), labels)
    found = evaluation.evaluate(identity, jnp.float32(1), batches, reference)
    expected = np.corrcoef((logits + np.float32(1000)).ravel(), reference.ravel())[0, 1]
    assert found.correlation == pytest.approx(expected, rel=1e-4)


def test_equal_logits_have_no_correlation(case):
    logits, labels, reference = case
    constant = np.full_like(logits, 0.1)  # whose mean is another number when it is rounded
    for size in (5, 16, len(logits)):
        batches = one(size, constant, labels)
        found = evaluation.evaluate(identity, jnp.float32(1), batches, reference)
        assert np.isnan(found.correlation), size


def test_padding_never_counts_whatever_it_holds(case):
    logits, labels, reference = case
    batches = one(16, logits, labels)
    images, padded_labels, mask = (x.copy() for x in batches[-1])
    images[~mask], padded_labels[~mask] = np.nan, 99
    expected = evaluation.evaluate(identity, jnp.float32(1), batches, reference)
    batches[-1] = images, padded_labels, mask
    assert evaluation.evaluate(identity, jnp.float32(1), batches, reference) == expected


def test_mask_may_have_holes(case):
    logits, labels, reference = case
    mask = np.arange(23) % 3 > 0
    found = evaluation.evaluate(identity, jnp.float32(1), [(logits, labels, mask)], reference[mask])
    expected = definition(logits[mask], labels[mask], reference[mask])
    assert found.kl == pytest.approx(expected["kl"], rel=2e-5)
    assert found.top1 == pytest.approx(expected["top1"])
    rows = evaluation.logits(identity, jnp.float32(1), [(logits, labels, mask)])
    np.testing.assert_array_equal(rows, logits[mask])


def test_ties_go_to_the_first_class():
    logits = np.zeros((8, 8), np.float32)
    found = evaluation.metrics_from_logits(logits, np.arange(8))
    assert (found.top1, found.top5) == (1 / 8, 5 / 8)


def test_nan_is_never_right():
    logits = np.eye(6, dtype=np.float32)
    logits[0, 0] = np.nan  # jnp.argmax would choose it
    logits[1, 5] = np.nan
    logits[2] = np.nan
    found = evaluation.metrics_from_logits(logits, np.arange(6), logits)
    assert (found.top1, found.top5, found.agreement) == (0.5, 0.5, 0.5)
    assert np.isnan(found.kl)
    assert np.isnan(found.correlation)


def test_infinitely_unlikely_classes_keep_kl_finite():
    logits = np.array([[0, -np.inf, 1]], np.float32)
    assert evaluation.metrics_from_logits(logits, np.array([2]), logits).kl == 0


def test_fewer_than_five_classes():
    found = evaluation.metrics_from_logits(np.eye(3, dtype=np.float32), np.array([0, 0, -1]))
    assert (found.top1, found.top5) == (0.5, 1)


def test_logits_of_half_precision(case):
    logits, labels, reference = case
    half = jnp.asarray(logits, jnp.bfloat16)
    expected = definition(np.float32(half), labels, reference)
    found = evaluation.metrics_from_logits(half, labels, reference)
    assert found.kl == pytest.approx(expected["kl"], rel=2e-5)
    assert found.correlation == pytest.approx(expected["correlation"], rel=2e-5)


@jax.tree_util.register_pytree_node_class
class Scaled:
    """A pytree node that is not an array, as quantized weights are."""

    def __init__(self, scale, values):
        self.scale, self.values = scale, values

    def tree_flatten(self):
        return (self.values,), self.scale

    @classmethod
    def tree_unflatten(cls, scale, children):
        return cls(scale, *children)


def test_the_network_is_traced_once(case):
    logits, labels, _ = case
    traces = []

    def apply(params, images):
        traces.append(1)
        return images * params["w"].scale * params["w"].values

    batches = one(10, logits, labels)
    reference = evaluation.logits(apply, {"w": Scaled(2.0, jnp.ones(12))}, batches)
    np.testing.assert_array_equal(reference, 2 * logits)
    for factor in (1.0, 0.5, 2.0):
        params = {"w": Scaled(2.0, jnp.full(12, factor, jnp.float32))}
        evaluation.evaluate(apply, params, batches)
        evaluation.evaluate(apply, params, batches, reference)
    assert len(traces) == 1
    evaluation.evaluate(apply, {"w": Scaled(3.0, jnp.ones(12))}, batches)
    assert len(traces) == 2


class Clock:
    """Stands for the module `time`; every picture read takes a second, compilation a hundred."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now

    def read(self, batches):
        for batch in batches:
            self.now += len(batch[0])
            yield batch


@pytest.mark.parametrize("of", [evaluation.evaluate, evaluation.logits])
def test_speed_leaves_out_compilation_and_the_first_batch(case, monkeypatch, of):
    logits, labels, _ = case
    clock, told = Clock(), []
    monkeypatch.setattr(evaluation, "time", clock)

    def apply(params, images):
        clock.now += 100
        return images * params

    def progress(pictures, rate):
        told.append((pictures, rate, clock.now))

    of(apply, jnp.float32(1), clock.read(one(4, logits, labels)), progress=progress)
    # The first is fetched at once, each other one when two more are started: 4 s later each.
    assert told == [
        (4, None, 104),
        (8, 4 / 12, 116),
        (12, 8 / 16, 120),
        (16, 12 / 20, 124),
        (20, 16 / 20, 124),
        (23, 19 / 20, 124),  # 20 s for 19 pictures and one of padding
    ]


def test_a_standing_clock_gives_no_speed(case, monkeypatch):
    logits, labels, _ = case
    monkeypatch.setattr(evaluation, "time", Clock())
    told = []
    evaluation.evaluate(
        identity,
        jnp.float32(1),
        one(12, logits, labels),
        progress=lambda *now: told.append(now),
    )
    assert told == [(12, None), (23, None)]


@pytest.mark.parametrize("of", [evaluation.evaluate, evaluation.logits])
def test_results_are_fetched_late_but_not_too_late(case, monkeypatch, of):
    logits, labels, _ = case
    events = []
    fetch = jax.device_get
    monkeypatch.setattr(jax, "device_get", lambda x: (events.append("fetch"), fetch(x))[1])

    def read():
        for batch in one(4, logits, labels):
            events.append("read")
            yield batch

    of(identity, jnp.float32(1), read())
    assert events == ["read"] * 3 + ["fetch", "read"] * 3 + ["fetch"] * 3


def test_devices_are_chosen(case):
    logits, labels, reference = case
    batches = one(10, logits, labels)
    expected = evaluation.evaluate(identity, jnp.float32(1), batches, reference)
    for devices in (jax.local_devices()[:1], tuple(jax.local_devices()[:1])):
        found = evaluation.evaluate(identity, jnp.float32(1), batches, reference, devices=devices)
        assert found == expected
    for default in ("cpu", jax.local_devices()[0]):
        with jax.default_device(default):
            assert evaluation.evaluate(identity, jnp.float32(1), batches, reference) == expected
    for devices in ([], [jax.local_devices()[0]] * 2, ["cpu"]):
        with pytest.raises(InputError, match=r"devices is .*; give one or more of jax\.local_dev"):
            evaluation.evaluate(identity, jnp.float32(1), batches, devices=devices)


def test_arrays_of_jax_are_taken(case):
    logits, labels, reference = case
    expected = evaluation.evaluate(identity, jnp.float32(1), one(10, logits, labels), reference)
    arrays = [tuple(map(jnp.asarray, batch)) for batch in one(10, logits, labels)]
    found = evaluation.evaluate(identity, jnp.float32(1), arrays, jnp.asarray(reference))
    assert found == expected


def test_bad_arguments(case):
    logits, labels, reference = case
    batches = one(10, logits, labels)
    good = np.ones(23, bool)

    def refused(match, *arguments, function=identity):
        with pytest.raises(InputError, match=match):
            evaluation.evaluate(function, jnp.float32(1), *arguments)

    refused("no pictures", [])
    refused("no pictures", [(logits, labels, ~good)])
    refused("pad the last batch", [*batches, (logits[:3], labels[:3], good[:3])])
    refused("pad the last batch", [*batches, (np.float16(logits[:10]), labels[:10], good[:10])])
    refused("mask has dtype int64", [(logits, labels, np.ones(23, int))])
    refused("mask has shape", [(logits, labels, good[:5])])
    refused("labels has shape", [(logits, labels[:5], good)])
    refused("labels have dtype float64", [(logits, np.zeros(23), good)])
    refused("label 12 is out of range; give 0 to 11", [(logits, np.full(23, 12), good)])
    refused("label -2 is out of range", [(logits, np.full(23, -2), good)])
    refused("only 22 rows", batches, reference[:-1])
    refused("24 rows for 23 pictures", batches, np.ones((24, 12), np.float32))
    refused(r"\(count, 12\) is needed", batches, reference[:, :5])
    refused(r"\(batch, classes\) is needed", batches, function=lambda p, x: x.sum(1))

    class Unhashable:
        __hash__ = None

        def __call__(self, params, images):
            return images

    refused("apply must be hashable", batches, function=Unhashable())
    with pytest.raises(InputError, match="no batches"):
        evaluation.logits(identity, jnp.float32(1), [])
    with pytest.raises(InputError, match="the reference has shape"):
        evaluation.metrics_from_logits(logits, labels, reference[:3])
    with pytest.raises(InputError, match=r"\(count, classes\) is needed"):
        evaluation.metrics_from_logits(logits[0], labels)
