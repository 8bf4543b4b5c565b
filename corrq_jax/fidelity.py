"""A named network with pictures, and how close its quantized forms stay to it on them."""

import dataclasses
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any, NamedTuple

import jax
import numpy as np

from corrq_jax import models
from corrq_jax.data import (
    Preprocess,
    all_views,
    batches,
    load,
    load_photos,
    preprocessing,
    read_folder,
    tfds_source,
)
from corrq_jax.errors import InputError
from corrq_jax.evaluation import Batch, Metrics, Progress, logits, metrics_from_logits
from corrq_jax.flax import Apply, functional
from corrq_jax.moments import Wiring, trace
from corrq_jax.tree import dequantize

BATCH = 48
PHOTOS = "photos"  # the data set that is installed

# Decoded pictures of small data sets stay in memory, for a comparison passes over them many times.
_KEPT_NBYTES = 4e9


class _Outputs(NamedTuple):
    """Of all pictures, in order: logits float32[count, classes] and labels int32[count]."""

    logits: np.ndarray
    labels: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
    """A float network with labelled pictures.

    Attributes:
        name: the network's name in `corrq_jax.models`.
        apply: the network as a pure function.
        params: its float parameters.
        pictures: batches as for `corrq_jax.evaluation.evaluate`, the same in each pass.
        views: pictures that come from one photo; the first of each is its centre.
        data: what the pictures are, so that other pictures have another text.
        dtype: what the network computes in.
    """

    name: str
    apply: Apply
    params: Any
    pictures: Iterable[Batch]
    views: int = 1
    data: str = ""
    dtype: str = "float32"

    @property
    def count(self) -> int:
        """Number of pictures, views of photos included."""
        return len(self._reference.labels)

    @property
    def photos(self) -> int:
        """Number of photos behind the pictures."""
        return self.count // self.views

    @property
    def corrupt(self) -> Mapping[str, str]:
        """Why, by the name of each picture that could not be read in the latest pass."""
        return getattr(self.pictures, "corrupt", {})

    @cached_property
    def wiring(self) -> Wiring:
        """How the float network's kernels hang together; read from the network, not the pictures.

        Of its inputs it knows what photos are like on average.
        """
        return trace(self.apply, self.params, *expected_inputs(self.name))

    def measure(self, params: Any, progress: Progress | None = None) -> tuple[Metrics, Metrics]:
        """Metrics on the centre view of each photo, and on all views against the float network.

        Args:
            params: the network's parameters, quantized or not.
            progress: as for `corrq_jax.evaluation.evaluate`.

        Raises:
            InputError: no picture can be read.
        """
        reference = self._reference
        found = reference if params is self.params else self._outputs(params, progress)
        if len(found.labels) != len(reference.labels):
            raise InputError(
                f"{self.data}: {len(found.labels)} pictures could be read, {len(reference.labels)} "
                "before; keep the pictures as they are while they are used"
            )
        centre = metrics_from_logits(found.logits[:: self.views], found.labels[:: self.views])
        return centre, metrics_from_logits(found.logits, found.labels, reference.logits)

    @cached_property
    def _reference(self) -> _Outputs:
        return self._outputs(self.params)

    def _outputs(self, params: Any, progress: Progress | None = None) -> _Outputs:
        """Parameters are decoded first, so that all share one compiled forward pass.

        Compiling one for each combination of bits would take longer than running it.
        """
        labels = []

        def read() -> Iterator[Batch]:
            for batch in self.pictures:
                labels.append(np.asarray(batch[1])[np.asarray(batch[2])])
                yield batch

        dtype = None if self.dtype == "float32" else self.dtype
        rows = logits(self.apply, dequantize(params), read(), dtype=dtype, progress=progress)
        return _Outputs(rows, np.concatenate(labels))


def expected_inputs(name: str) -> tuple[jax.ShapeDtypeStruct, np.ndarray, np.ndarray]:
    """A network's inputs for `corrq_jax.moments.trace`, without a picture.

    Args:
        name: a name in `corrq_jax.models`.

    Returns:
        Shape and dtype, and float64[3] mean and variance of the channels, of photos on average.
    """
    info = models.info(name)
    size = info.resolution
    prepare = preprocessing(info.preprocessing, size)
    return jax.ShapeDtypeStruct((1, size, size, 3), np.float32), *prepare.expected_moments()


class _Kept:
    """Pictures that are read once, if there is room for them."""

    def __init__(self, pictures: Any):
        self._pictures = pictures
        self._batches: list[Batch] | None = None

    @property
    def corrupt(self) -> Mapping[str, str]:
        return self._pictures.corrupt

    def __iter__(self) -> Iterator[Batch]:
        if self._batches is not None:
            yield from self._batches
            return
        kept: list[Batch] | None = []
        nbytes = 0
        for batch in self._pictures:
            nbytes += batch[0].nbytes
            kept = None if kept is None or nbytes > _KEPT_NBYTES else [*kept, batch]
            yield batch
        if not self._pictures.count:
            raise InputError(
                f"{self._pictures.source.identity}: none of its {len(self._pictures.corrupt)} "
                "pictures could be read"
            )
        self._batches = kept


def subject(
    name: str,
    data: str | os.PathLike[str] = PHOTOS,
    weights: Any = "imagenet",
    *,
    labels: str | os.PathLike[str] | None = None,
    split: str | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    download: bool = False,
    limit: int | None = None,
    batch_size: int = BATCH,
    dtype: str = "float32",
) -> Subject:
    """Load a network and its pictures.

    Args:
        name: a name in `corrq_jax.models`.
        data: "photos" for the 24 installed photos in 10 views each; a folder, as for
            `corrq_jax.data.read_folder`; or a data set of TFDS, as for
            `corrq_jax.data.tfds_source`.
        weights: as for `corrq_jax.models.load`.
        labels: the labels of a folder without class folders.
        split: of a TFDS data set.
        data_dir: where TFDS keeps its data.
        download: let TFDS prepare a data set that is not there.
        limit: use so many pictures at most, spread evenly over the data set.
        batch_size: pictures at a time.
        dtype: what the network computes in, as for `corrq_jax.evaluation.in_dtype`.

    Raises:
        InputError: there is no such network or data set, or an option does not fit.
        FileFormatError: the weights or the labels cannot be read.
        MissingDependencyError: a package is not installed.
    """
    info = models.info(name)
    prepare = preprocessing(info.preprocessing, info.resolution)
    is_folder = pathlib.Path(data).is_dir()
    if str(data) == PHOTOS and not is_folder:
        if labels or split or data_dir or download or limit:
            raise InputError(
                "labels, split, data_dir, download and limit are for folders and TFDS; the photos "
                "have none of them"
            )
        return _of_photos(name, weights, prepare, batch_size, dtype)
    if is_folder:
        source = read_folder(data, labels, classes=info.classes)
    elif labels is not None:
        raise InputError(f"{data} is not a folder; labels are for one")
    else:
        source = tfds_source(str(data), split, data_dir, classes=info.classes, download=download)
    pictures = load(source, prepare, batch_size, limit=limit)
    identity = source.identity if limit is None else f"{source.identity}, {limit} of them"
    apply, params = functional(models.load(name, weights))
    return Subject(name, apply, params, _Kept(pictures), 1, identity, dtype)


def _of_photos(
    name: str, weights: Any, prepare: Preprocess, batch_size: int, dtype: str
) -> Subject:
    images, labels = all_views(load_photos(), prepare)
    pictures = list(batches(images, labels, min(batch_size, len(images))))
    apply, params = functional(models.load(name, weights))
    return Subject(name, apply, params, pictures, 10, f"{PHOTOS}, 10 views each", dtype)
