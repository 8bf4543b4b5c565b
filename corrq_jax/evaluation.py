"""How well a network does on batches of pictures, on one device or on many.

A network is any pure function `apply(params, images) -> logits`. Batches all have one shape; a mask
tells the pictures from the padding of the last batch. The network is compiled once for each pair
of `apply` and shapes: pass the same function object every time, not a new lambda. It is a step of
its own, apart from the sums of `corrq_jax.metrics`, so that passes with a reference, without one
and for the logits alone share it.

Every device holds all parameters and works on its share of each batch. The host only starts work:
while a device computes, the next pictures are read and sent, and results are fetched late.
"""

import collections
import dataclasses
import functools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from corrq_jax.errors import InputError
from corrq_jax.metrics import (
    UNKNOWN,
    Metrics,
    change_interval,
    check_labels,
    measure,
    metrics_from_logits,
    share_interval,
    summarize,
    vector,
)
from corrq_jax.precision import Apply, in_dtype

__all__ = [
    "UNKNOWN",
    "Metrics",
    "change_interval",
    "evaluate",
    "in_dtype",
    "logits",
    "metrics_from_logits",
    "share_interval",
]

Batch = tuple[Any, Any, Any]  # images, labels, mask
Progress = Callable[[int, float | None], object]  # pictures done, pictures a second

AHEAD = 2  # batches that are started before the result of an earlier one is fetched


def evaluate(
    apply: Apply,
    params: Any,
    batches: Iterable[Batch],
    reference: np.ndarray | None = None,
    *,
    devices: Sequence[Any] | None = None,
    dtype: Any = None,
    progress: Progress | None = None,
) -> Metrics:
    """Measures a network on batches of pictures.

    Args:
        apply: a pure function `(params, images) -> logits`, float[batch, classes]; hashable. The
            logits of a picture must not depend on the other pictures of its batch.
        params: any pytree.
        batches: yields (images, labels, mask): images of one shape and dtype, labels
            int[batch] with -1 for unknown, mask bool[batch] with False for padding. Up to three
            batches are in use at a time: yield new arrays, not one that is filled anew.
        reference: logits float[count, classes] to compare with, in the order of the pictures, from
            `logits`.
        devices: local devices that share each batch; None for all of jax's default platform, or
            for the device that `jax.default_device` names. A batch that they do not divide is
            padded here, so that a batch may have any size.
        dtype: None, or what to compute in, such as "bfloat16"; see `in_dtype`.
        progress: called after each batch as `progress(pictures_done, pictures_per_second)`. The
            clock starts when the result of the first batch is there: compilation and the first
            batch count in neither the pictures of the rate nor its time, and the first rate is
            None. The time of reading pictures does count, and so does that of padding.

    Returns:
        The metrics; those that need a reference are None without one.

    Raises:
        InputError: there are no pictures, shapes differ, a label is out of range, `reference`
            has another shape than the logits, or `devices` or `dtype` cannot be used.

    >>> import jax.numpy as jnp, numpy as np
    >>> def network(params, images):
    ...     return images @ params
    >>> batch = np.eye(4, 3, dtype=np.float32), np.array([0, 1, 0, -1]), np.arange(4) < 3
    >>> found = evaluate(network, jnp.eye(3), [batch, batch], progress=lambda n, rate: print(n))
    3
    6
    >>> found.count, round(found.top1, 3)
    (6, 0.667)
    """
    run = _Run.prepared(apply, params, devices, dtype)
    reference = None if reference is None else np.asarray(reference)
    return summarize(list(_fetched(_parts(run, batches, reference), progress)))


def logits(
    apply: Apply,
    params: Any,
    batches: Iterable[Batch],
    *,
    devices: Sequence[Any] | None = None,
    dtype: Any = None,
    progress: Progress | None = None,
) -> np.ndarray:
    """Computes the logits of all pictures, without the padding.

    Args:
        apply: as in `evaluate`, like all others.
        params: any pytree.
        batches: their labels are not looked at.
        devices: local devices that share each batch.
        dtype: None, or what to compute in.
        progress: called after each batch.

    Returns:
        float[count, classes], in the order of the pictures; float32 if there is a `dtype`.

    Raises:
        InputError: there are no batches, shapes differ, or `devices` or `dtype` cannot be used.

    >>> import jax.numpy as jnp, numpy as np
    >>> def network(params, images):
    ...     return images @ params
    >>> batch = np.eye(4, 3, dtype=np.float32), np.full(4, -1), np.arange(4) < 3
    >>> logits(network, jnp.eye(3), [batch], dtype="bfloat16").shape
    (3, 3)
    """
    run = _Run.prepared(apply, params, devices, dtype)
    started = ((int(mask.sum()), (run(images), mask)) for images, _, mask in _uniform(batches))
    rows = [output[: len(mask)][mask] for output, mask in _fetched(started, progress)]
    if not rows:
        raise InputError("there are no batches; give at least one")
    return np.concatenate(rows)


@dataclasses.dataclass(frozen=True)
class _Run:
    """A network whose parameters lie on every one of its devices."""

    apply: Apply
    params: Any
    split: NamedSharding  # of the first axis of a batch over the devices
    direct: bool  # the only device is where the compiled step sends NumPy arrays itself

    @classmethod
    def prepared(cls, apply: Apply, params: Any, devices: Any, dtype: Any) -> "_Run":
        try:
            hash(apply)
        except TypeError as error:
            raise InputError(
                f"apply must be hashable, such as a function, not {apply!r}"
            ) from error
        mesh = Mesh(np.array(_checked(devices)), ("batch",))
        return cls(
            apply=apply if dtype is None else in_dtype(apply, dtype),
            params=jax.device_put(params, NamedSharding(mesh, PartitionSpec())),
            split=NamedSharding(mesh, PartitionSpec("batch")),
            direct=devices is None and mesh.size == 1,
        )

    def __call__(self, images: Any) -> jax.Array:
        """float[batch, classes], the batch padded for the devices; only started."""
        images = self.spread(images)
        output = _forward(self.apply, self.params, images)
        if np.ndim(output) != 2 or len(output) != len(images):
            raise InputError(
                f"apply returned shape {np.shape(output)} for {len(images)} images; "
                "(batch, classes) is needed"
            )
        return output

    def spread(self, array: Any) -> Any:
        """An array with the devices' shares of its first axis, and zeros to make them even."""
        if self.direct and isinstance(array, np.ndarray):
            return array  # much faster than device_put where batches are small
        extra = -len(array) % self.split.mesh.size
        if extra:
            # An array that is on a device already must not come back to be padded.
            pad = jnp.pad if isinstance(array, jax.Array) else np.pad
            array = pad(array, [(0, extra)] + [(0, 0)] * (array.ndim - 1))
        return jax.device_put(array, self.split)


@functools.partial(jax.jit, static_argnames="apply")
def _forward(apply: Apply, params: Any, images: jax.Array) -> jax.Array:
    return apply(params, images)


def _checked(devices: Sequence[Any] | None) -> list[Any]:
    if devices is None:
        default = getattr(jax.config, "jax_default_device", None)
        if default is None:
            return jax.local_devices()
        # A device, or the name of a platform.
        return jax.local_devices(backend=default)[:1] if isinstance(default, str) else [default]
    devices = list(devices)
    local = set(devices) & set(jax.local_devices(backend=_platform(devices)))
    if not devices or len(local) < len(devices):
        raise InputError(
            f"devices is {devices}; give one or more of jax.local_devices(), each once, or None"
        )
    return devices


def _platform(devices: list[Any]) -> str | None:
    """The first device's: those of another are then not among its local ones."""
    return getattr(devices[0], "platform", None) if devices else None


def _parts(
    run: _Run, batches: Iterable[Batch], reference: np.ndarray | None
) -> Iterator[tuple[int, Any]]:
    """Starts batch by batch: how many pictures, and their sums."""
    row = 0
    for images, labels, mask in _uniform(batches):
        output = run(images)
        check_labels(labels, mask, output.shape[1])
        expected = None
        if reference is not None:
            expected = run.spread(_pad_rows(reference, row, mask, output.shape[1]))
        pictures = int(mask.sum())
        row += pictures
        yield pictures, measure(output, run.spread(labels), run.spread(mask), expected)
    if reference is not None and row != len(reference):
        raise InputError(f"the reference has {len(reference)} rows for {row} pictures")


def _fetched(started: Iterator[tuple[int, Any]], progress: Progress | None) -> Iterator[Any]:
    """The results on the host, each fetched when later batches are started already.

    That bounds the batches which take memory on the devices, too.
    """
    waiting: collections.deque[tuple[int, Any]] = collections.deque()
    speed = _Speed(progress)

    def fetch() -> Any:
        pictures, result = waiting.popleft()
        result = jax.device_get(result)
        speed.done(pictures)
        return result

    for index, item in enumerate(started):
        waiting.append(item)
        # The clock starts with the first result: to fetch it late would be to start it late.
        if len(waiting) > AHEAD or (progress is not None and index == 0):
            yield fetch()
    while waiting:
        yield fetch()


class _Speed:
    """Counts pictures, and the time since those of the first batch were done."""

    def __init__(self, progress: Progress | None) -> None:
        self.progress = progress
        self.pictures = 0
        self.first: tuple[int, float] | None = None

    def done(self, pictures: int) -> None:
        now = time.perf_counter()
        self.pictures += pictures
        rate = None
        if self.first is None:
            self.first = self.pictures, now
        elif now > self.first[1]:
            rate = (self.pictures - self.first[0]) / (now - self.first[1])
        if self.progress is not None:
            self.progress(self.pictures, rate)


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
        mask = vector(mask, "mask", len(images))
        if mask.dtype != bool:
            raise InputError(f"mask has dtype {mask.dtype}; bool is needed")
        yield images, vector(labels, "labels", len(images)), mask


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
