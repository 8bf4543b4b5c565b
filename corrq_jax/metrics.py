"""The metrics of a network, from its logits.

Sums over the pictures of a batch are one compiled function; they are joined on the host, where a
pass over many batches costs no precision.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from corrq_jax.errors import InputError

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
            without a reference, like those below.
        kl: mean Kullback-Leibler divergence of the network from the reference,
            KL(softmax(reference) || softmax(logits)), in nats.
        correlation: Pearson correlation of all logits with the reference's; NaN if either are all
            equal or not finite.
        lost: labelled pictures whose label has the reference's highest logit, but not this one's.
        gained: the reverse; `change_interval` makes of the two how sure the change of `top1` is.

    Pictures with a NaN among their logits count as wrong, and make `kl` and `correlation` NaN.
    """

    count: int
    labelled: int
    top1: float | None
    top5: float | None
    agreement: float | None = None
    kl: float | None = None
    correlation: float | None = None
    lost: int | None = None
    gained: int | None = None


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

    >>> import numpy as np
    >>> found = metrics_from_logits(np.eye(3, dtype=np.float32), np.array([0, 1, 0]))
    >>> found.count, round(found.top1, 3), found.top5
    (3, 0.667, 1.0)
    """
    if np.ndim(logits) != 2:
        raise InputError(f"logits have shape {np.shape(logits)}; (count, classes) is needed")
    labels, mask = vector(labels, "labels", len(logits)), np.ones(len(logits), bool)
    check_labels(labels, mask, logits.shape[1])
    if reference is not None and np.shape(reference) != np.shape(logits):
        raise InputError(
            f"the reference has shape {np.shape(reference)}, the logits {np.shape(logits)}"
        )
    return summarize(jax.device_get([measure(logits, labels, mask, reference)]))


# The 97.5 % point of the standard normal distribution.
_Z = 1.959963984540054


def share_interval(right: float, count: float) -> tuple[float, float]:
    """The 95 % confidence interval of a share, after Wilson.

    Of `count` independent pictures, `right` have some property; how many of all pictures have it?
    For p = right / count and z = 1.96 the ends are ::

        (p + z^2 / 2n ± z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)

    Wilson, "Probable inference, the law of succession, and statistical inference", JASA 1927.

    Args:
        right: 0 to `count`.
        count: at least 1; less than all pictures where they resemble each other, and any fraction.

    Returns:
        The lower and the upper end, between 0 and 1.

    Raises:
        InputError: a number is out of range.

    >>> low, high = share_interval(930, 1000)
    >>> round(low, 4), round(high, 4)
    (0.9125, 0.9442)
    """
    if not 0 <= right <= count or count < 1:
        raise InputError(f"{right} of {count}: give a count of at least 1 and 0 to {count} of it")
    share, excess = right / count, _Z * _Z / count
    centre = share + excess / 2
    half = math.sqrt(excess * (share * (1 - share) + excess / 4))
    # Rounding may leave [0, 1] at its ends.
    return max(0.0, (centre - half) / (1 + excess)), min(1.0, (centre + half) / (1 + excess))


def change_interval(lost: int, gained: int, count: int) -> tuple[float, float]:
    """The 95 % confidence interval of the change of a share, both measured on the same pictures.

    Only the pictures that changed say something, as in McNemar's test, so that it is narrower than
    the intervals of the two shares suggest. With half a picture added to each cell of the table of
    right and wrong, m = n + 2 and d = (gained - lost) / m, the ends are ::

        d ± z sqrt((lost + gained + 1) / m - d^2) / sqrt(m)

    Agresti and Min, "Simple improved confidence intervals for comparing matched proportions",
    Statistics in Medicine 2005.

    Args:
        lost: pictures that were right and are wrong now.
        gained: pictures that were wrong and are right now.
        count: all pictures.

    Returns:
        The lower and the upper end, between -1 and 1.

    Raises:
        InputError: a number is out of range.

    >>> low, high = change_interval(40, 20, 1000)
    >>> round(low, 4), round(high, 4)
    (-0.0352, -0.0047)
    """
    if min(lost, gained) < 0 or lost + gained > count or count < 1:
        raise InputError(
            f"{lost} lost, {gained} gained of {count}: give a count of at least 1 and parts of it"
        )
    total = count + 2
    change = (gained - lost) / total
    half = _Z * math.sqrt(((lost + gained + 1) / total - change * change) / total)
    return max(-1.0, change - half), min(1.0, change + half)


class Each(NamedTuple):
    """What a network says of each picture.

    Attributes:
        classes: int32[count], the best class.
        confidence: float32[count], its probability.
        kl: float32[count], KL(softmax(reference) || softmax(logits)) in nats.
    """

    classes: np.ndarray
    confidence: np.ndarray
    kl: np.ndarray


def of_each(logits: np.ndarray, reference: np.ndarray) -> Each:
    """The answers behind `metrics_from_logits`, picture by picture.

    Args:
        logits: float[count, classes].
        reference: float[count, classes].

    >>> of_each(np.float32([[0, 0, 9]]), np.float32([[0, 0, 9]])).classes.tolist()
    [2]
    """
    return Each(*map(np.asarray, _of_each(logits, reference)))


@jax.jit
def _of_each(logits: jax.Array, reference: jax.Array) -> tuple[jax.Array, ...]:
    shares = jax.nn.softmax(logits.astype(jnp.float32))
    return logits.argmax(1), shares.max(1), _kl(reference, logits)


class _Comparison(NamedTuple):
    """Sums over the pictures of a batch, and moments of all its logits."""

    agreement: jax.Array
    kl: jax.Array
    moments: jax.Array  # n, means of logits and reference, their squares and product about them
    changes: jax.Array  # int32[2]: labelled pictures that only the reference, only the logits find


class Part(NamedTuple):
    """Sums over the pictures of a batch."""

    counts: jax.Array  # int32[4]: pictures, labelled ones, right ones, right ones among five
    comparison: _Comparison | None


@jax.jit
def measure(
    logits: jax.Array, labels: jax.Array, mask: jax.Array, reference: jax.Array | None
) -> Part:
    """Sums over the pictures of a batch; on many devices, over all of them.

    Args:
        logits: float[batch, classes].
        labels: int[batch], checked, -1 for unknown.
        mask: bool[batch], False for padding, whatever the other arguments hold there.
        reference: float[batch, classes] or None.

    Returns:
        What `summarize` joins.
    """
    known = mask & (labels != UNKNOWN)
    labels = jnp.where(known, labels, 0)
    rank = _rank(logits, labels)
    right = known & (rank < 1)
    comparison = None
    if reference is not None:
        before = known & (_rank(reference, labels) < 1)
        changes = jnp.stack([(before & ~right).sum(), (right & ~before).sum()])
        comparison = _compare(logits, reference, mask, changes)
    return Part(
        counts=jnp.stack([x.sum() for x in (mask, known, right, known & (rank < 5))]),
        comparison=comparison,
    )


def _compare(
    logits: jax.Array, reference: jax.Array, mask: jax.Array, changes: jax.Array
) -> _Comparison:
    valid = ~(jnp.isnan(logits).any(1) | jnp.isnan(reference).any(1))
    same = logits.argmax(1) == reference.argmax(1)
    return _Comparison(
        agreement=(mask & valid & same).sum(),
        kl=jnp.where(mask, _kl(reference, logits), 0).sum(),
        moments=_moments(logits, reference, mask),
        changes=changes,
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

    def about_mean(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        # Seen from the highest, equal logits have a mean without rounding, and no variance.
        x = x.astype(jnp.float32)
        top = jnp.where(mask.any(), x.max(where=keep, initial=-jnp.inf), 0)
        x = jnp.where(keep, x - top, 0)
        mean = x.sum() / jnp.maximum(n, 1)
        return top + mean, jnp.where(keep, x - mean, 0)

    (mean_a, a), (mean_b, b) = about_mean(a), about_mean(b)
    return jnp.stack([n, mean_a, mean_b, (a * a).sum(), (b * b).sum(), (a * b).sum()])


def summarize(parts: Sequence[Part]) -> Metrics:
    """Joins the sums of all batches, NumPy arrays, to the metrics.

    Raises:
        InputError: there are no pictures.
    """
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
    lost, gained = map(int, np.sum([c.changes for c in compared], axis=0))
    return dataclasses.replace(
        metrics,
        lost=lost if labelled else None,
        gained=gained if labelled else None,
        agreement=int(sum(c.agreement for c in compared)) / count,
        kl=math.fsum(float(c.kl) for c in compared) / count,
        correlation=_correlation(np.stack([c.moments for c in compared]).astype(np.float64)),
    )


def _correlation(moments: np.ndarray) -> float:
    """Joins moments about the batches' own means: sums about zero would cancel in float32."""
    if not np.isfinite(moments).all():
        return math.nan
    n, *means, aa, bb, ab = moments.T
    # Differences first: equal means have none, which their average would round.
    da, db = (mean - np.average(mean, weights=n) for mean in (m - m[0] for m in means))
    aa, bb, ab = (aa + n * da * da).sum(), (bb + n * db * db).sum(), (ab + n * da * db).sum()
    return float(ab / math.sqrt(aa * bb)) if aa * bb > 0 else math.nan


def vector(values: Any, what: str, length: int) -> np.ndarray:
    """An argument as a NumPy array[length].

    Raises:
        InputError: it has another shape.
    """
    values = np.asarray(values)
    if values.shape != (length,):
        raise InputError(f"{what} has shape {values.shape}; ({length},) is needed")
    return values


def check_labels(labels: np.ndarray, mask: np.ndarray, classes: int) -> None:
    """Checks labels int[count] where mask bool[count] is True; indices in JAX are not checked.

    Raises:
        InputError: they are no integers, or one is neither a class nor -1.
    """
    if not np.issubdtype(labels.dtype, np.integer):
        raise InputError(f"labels have dtype {labels.dtype}; integers are needed")
    bad = labels[mask & ((labels < UNKNOWN) | (labels >= classes))]
    if bad.size:
        raise InputError(
            f"label {bad[0]} is out of range; give 0 to {classes - 1}, or {UNKNOWN} for unknown"
        )
