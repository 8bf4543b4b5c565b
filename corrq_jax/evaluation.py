"""How well a network does, and how close it stays to a reference network.

A network is any pure function `apply(params, images) -> logits`. Batches all have one shape; a mask
tells the pictures from the padding of the last batch. The network is compiled once for each pair
of `apply` and shapes: pass the same function object every time, not a new lambda.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from corrq_jax.errors import InputError

Apply = Callable[[Any, jax.Array], jax.Array]
Batch = tuple[Any, Any, Any]  # images, labels, mask

UNKNOWN = -1  # the label of a picture whose class is not known


@dataclasses.dataclass(frozen=True)
class Metrics:
    """Averages over pictures.

    Attributes:
        count: number of pictures.
        labelled: how many of them have a known label.
        top1: fraction of the labelled pictures whose label has the highest logit; None if none
            is labelled. Among equal logits the first class wins.
        top5: the same, among the five highest.
        agreement: fraction of the pictures whose highest logit is that of the reference's; None
            without a reference, like the two below.
        kl: mean Kullback-Leibler divergence of the network from the reference,
            KL(softmax(reference) || softmax(logits)), in nats.
        correlation: Pearson correlation of all logits with the reference's; NaN if either are all
            equal or not finite.

    Pictures with a NaN among their logits count as wrong, and make `kl` and `correlation` NaN.
    """

    count: int
    labelled: int
    top1: float | None
    top5: float | None
    agreement: float | None = None
    kl: float | None = None
    correlation: float | None = None


def evaluate(
    apply: Apply, params: Any, batches: Iterable[Batch], reference: np.ndarray | None = None
) -> Metrics:
    """Measures a network on batches of pictures.

    Args:
        apply: a pure function `(params, images) -> logits`, float[batch, classes]; hashable.
        params: any pytree.
        batches: yields (images, labels, mask): images of one shape and dtype, labels
            int[batch] with -1 for unknown, mask bool[batch] with False for padding.
        reference: logits float[count, classes] to compare with, in the order of the pictures, from
            `logits`.

    Returns:
        The metrics; those that need a reference are None without one.

    Raises:
        InputError: there are no pictures, shapes differ, a label is out of range, or `reference`
            has another shape than the logits.
    """
    parts = []
    row = 0
    for images, labels, mask in _uniform(batches):
        output = _logits(apply, params, images)
        _check_labels(labels, mask, output.shape[1])
        expected = None
        if reference is not None:
            expected = _pad_rows(reference, row, mask, output.shape[1])
        row += int(mask.sum())
        parts.append(_measure(output, labels, mask, expected))
    if reference is not None and row != len(reference):
        raise InputError(f"the reference has {len(reference)} rows for {row} pictures")
    return _summarize(jax.device_get(parts))


def logits(apply: Apply, params: Any, batches: Iterable[Batch]) -> np.ndarray:
    """Computes the logits of all pictures, without the padding.

    Args:
        apply: as in `evaluate`.
        params: any pytree.
        batches: as in `evaluate`.

    Returns:
        float[count, classes], in the order of the pictures.

    Raises:
        InputError: there are no pictures, or shapes differ.
    """
    rows = [
        np.asarray(_logits(apply, params, images))[mask] for images, _, mask in _uniform(batches)
    ]
    if not rows:
        raise InputError("there are no batches; give at least one")
    return np.concatenate(rows)


def metrics_from_logits(
    logits: np.ndarray | jax.Array,
    labels: np.ndarray,
    reference: np.ndarray | jax.Array | None = None,
) -> Metrics:
    """Computes the metrics of `evaluate` from logits that are known already.

    Args:
        logits: float[count, classes].
        labels: int[count], -1 for unknown.
        reference: float[count, classes].

    Returns:
        The metrics; those that need a reference are None without one.

    Raises:
        InputError: there are no pictures, shapes differ, or a label is out of range.
    """
    if np.ndim(logits) != 2:
        raise InputError(f"logits have shape {np.shape(logits)}; (count, classes) is needed")
    labels, mask = _vector(labels, "labels", len(logits)), np.ones(len(logits), bool)
    _check_labels(labels, mask, logits.shape[1])
    if reference is not None and np.shape(reference) != np.shape(logits):
        raise InputError(
            f"the reference has shape {np.shape(reference)}, the logits {np.shape(logits)}"
        )
    return _summarize(jax.device_get([_measure(logits, labels, mask, reference)]))


class _Comparison(NamedTuple):
    """Sums over the pictures of a batch, and moments of all its logits."""

    agreement: jax.Array
    kl: jax.Array
    moments: jax.Array  # n, means of logits and reference, their squares and product about them


class _Part(NamedTuple):
    """Sums over the pictures of a batch."""

    counts: jax.Array  # int32[4]: pictures, labelled ones, right ones, right ones among five
    comparison: _Comparison | None


@functools.partial(jax.jit, static_argnames="apply")
def _forward(apply: Apply, params: Any, images: jax.Array) -> jax.Array:
    return apply(params, images)


@jax.jit
def _measure(
    logits: jax.Array, labels: jax.Array, mask: jax.Array, reference: jax.Array | None
) -> _Part:
    known = mask & (labels != UNKNOWN)
    rank = jnp.where(known, _rank(logits, jnp.where(known, labels, 0)), logits.shape[1])
    return _Part(
        counts=jnp.stack([x.sum() for x in (mask, known, known & (rank < 1), known & (rank < 5))]),
        comparison=None if reference is None else _compare(logits, reference, mask),
    )


def _compare(logits: jax.Array, reference: jax.Array, mask: jax.Array) -> _Comparison:
    valid = ~(jnp.isnan(logits).any(1) | jnp.isnan(reference).any(1))
    same = logits.argmax(1) == reference.argmax(1)
    return _Comparison(
        agreement=(mask & valid & same).sum(),
        kl=jnp.where(mask, _kl(reference, logits), 0).sum(),
        moments=_moments(logits, reference, mask),
    )


def _rank(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """How many classes come before the label's; all of them where a logit is NaN."""
    own = jnp.take_along_axis(logits, labels[:, None], axis=1)
    earlier = jnp.arange(logits.shape[1])[None] < labels[:, None]
    before = (logits > own) | ((logits == own) & earlier)
    return jnp.where(jnp.isnan(logits).any(1), jnp.iinfo(jnp.int32).max, before.sum(1))


def _kl(p: jax.Array, q: jax.Array) -> jax.Array:
    """KL(softmax(p) || softmax(q)) of each row; rounding cannot make it negative."""
    log_p, log_q = (
        jax.nn.log_softmax(p.astype(jnp.float32)),
        jax.nn.log_softmax(q.astype(jnp.float32)),
    )
    prob = jnp.exp(log_p)
    # Of NaN, `prob == 0` is False: it stays.
    return jnp.maximum(jnp.where(prob == 0, 0, prob * (log_p - log_q)).sum(1), 0)


def _moments(a: jax.Array, b: jax.Array, mask: jax.Array) -> jax.Array:
    keep = mask[:, None]
    n = (mask.sum() * a.shape[1]).astype(jnp.float32)
    a, b = (jnp.where(keep, x.astype(jnp.float32), 0) for x in (a, b))
    mean_a, mean_b = (x.sum() / jnp.maximum(n, 1) for x in (a, b))
    a, b = jnp.where(keep, a - mean_a, 0), jnp.where(keep, b - mean_b, 0)
    return jnp.stack([n, mean_a, mean_b, (a * a).sum(), (b * b).sum(), (a * b).sum()])


def _summarize(parts: list[_Part]) -> Metrics:
    if not parts or not (counts := np.sum([p.counts for p in parts], axis=0))[0]:
        raise InputError("there are no pictures; give at least one")
    count, labelled, top1, top5 = map(int, counts)
    metrics = Metrics(
        count=count,
        labelled=labelled,
        top1=top1 / labelled if labelled else None,
        top5=top5 / labelled if labelled else None,
    )
    compared = [p.comparison for p in parts if p.comparison is not None]
    if not compared:
        return metrics
    return dataclasses.replace(
        metrics,
        agreement=int(sum(c.agreement for c in compared)) / count,
        kl=math.fsum(float(c.kl) for c in compared) / count,
        correlation=_correlation(np.stack([c.moments for c in compared]).astype(np.float64)),
    )


def _correlation(moments: np.ndarray) -> float:
    """Joins moments about the batches' own means: sums about zero would cancel in float32."""
    if not np.isfinite(moments).all():
        return math.nan
    n, mean_a, mean_b, aa, bb, ab = moments.T
    da, db = mean_a - np.average(mean_a, weights=n), mean_b - np.average(mean_b, weights=n)
    aa, bb, ab = (aa + n * da * da).sum(), (bb + n * db * db).sum(), (ab + n * da * db).sum()
    return float(ab / math.sqrt(aa * bb)) if aa * bb > 0 else math.nan


def _logits(apply: Apply, params: Any, images: Any) -> jax.Array:
    try:
        hash(apply)
    except TypeError as error:
        raise InputError(f"apply must be hashable, such as a function, not {apply!r}") from error
    output = _forward(apply, params, images)
    if np.ndim(output) != 2 or len(output) != len(images):
        raise InputError(
            f"apply returned shape {np.shape(output)} for {len(images)} images; "
            "(batch, classes) is needed"
        )
    return output


def _uniform(batches: Iterable[Batch]) -> Iterator[tuple[Any, np.ndarray, np.ndarray]]:
    """The batches, checked to be of one shape and dtype, which would compile anew otherwise."""
    first = None
    for images, labels, mask in batches:
        kind = (np.shape(images), images.dtype)
        first = first or kind
        if kind != first:
            raise InputError(
                f"a batch of images has shape and dtype {kind}, the first one {first}; pad the "
                "last batch (corrq_jax.data.batches does)"
            )
        mask = _vector(mask, "mask", len(images))
        if mask.dtype != bool:
            raise InputError(f"mask has dtype {mask.dtype}; bool is needed")
        yield images, _vector(labels, "labels", len(images)), mask


def _vector(values: Any, what: str, length: int) -> np.ndarray:
    values = np.asarray(values)
    if values.shape != (length,):
        raise InputError(f"{what} has shape {values.shape}; ({length},) is needed")
    return values


def _check_labels(labels: np.ndarray, mask: np.ndarray, classes: int) -> None:
    if not np.issubdtype(labels.dtype, np.integer):
        raise InputError(f"labels have dtype {labels.dtype}; integers are needed")
    bad = labels[mask & ((labels < UNKNOWN) | (labels >= classes))]
    if bad.size:
        raise InputError(
            f"label {bad[0]} is out of range; give 0 to {classes - 1}, or {UNKNOWN} for unknown"
        )


def _pad_rows(reference: np.ndarray, start: int, mask: np.ndarray, classes: int) -> np.ndarray:
    """The reference's rows for the pictures of a batch, zeros for its padding."""
    if np.ndim(reference) != 2 or reference.shape[1] != classes:
        raise InputError(
            f"the reference has shape {np.shape(reference)}; (count, {classes}) is needed"
        )
    rows = reference[start : start + int(mask.sum())]
    if len(rows) != mask.sum():
        raise InputError(f"the reference has only {len(reference)} rows; one a picture is needed")
    padded = np.zeros((len(mask), classes), reference.dtype)
    padded[mask] = rows
    return padded
