"""A named network with pictures, and how close its quantized forms stay to it on them."""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any, NamedTuple

import jax
import numpy as np

from corrq_jax import models
from corrq_jax.data import (
    BATCH,
    FASHION_CLASSES,
    FASHION_MNIST,
    PHOTOS,
    Preprocess,
    Source,
    all_views,
    batches,
    load,
    load_photos,
    preprocessing,
    read_fashion_mnist,
    read_folder,
    tfds_source,
)
from corrq_jax.data.loading import WORKERS
from corrq_jax.data.names import imagenet_names
from corrq_jax.details import Predictions
from corrq_jax.errors import InputError
from corrq_jax.evaluation import Batch, Metrics, Progress, logits, metrics_from_logits
from corrq_jax.flax import Apply, functional
from corrq_jax.metrics import of_each
from corrq_jax.moments import Wiring, trace
from corrq_jax.precision import DTYPES
from corrq_jax.tree import dequantize

MOST_RECORDED = 10_000  # pictures; of more than these the answers to each are not kept


class Measured(NamedTuple):
    """How a network does.

    Attributes:
        photos: on the centre view of each photo.
        views: on all views, against the float network.
        predictions: for each view; None where there are more than `MOST_RECORDED`.
    """

    photos: Metrics
    views: Metrics
    predictions: Predictions | None


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
        pixels: turns inputs of the network into pictures again, uint8[..., height, width, 3 or 1];
            None where that is not known.
        classes: the names of the classes in order; () where they are not known.
    """

    name: str
    apply: Apply
    params: Any
    pictures: Iterable[Batch]
    views: int = 1
    data: str = ""
    dtype: str = "float32"
    pixels: Callable[[np.ndarray], np.ndarray] | None = None
    classes: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        """Number of pictures, views of photos included."""
        return len(self._reference().labels)

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

        Of its inputs it knows what such pictures are like on average.
        """
        return trace(self.apply, self.params, *expected_inputs(self.name))

    @property
    def labels(self) -> np.ndarray:
        """int32[count]: the class of each picture, -1 where it is not known."""
        return self._reference().labels

    def measure(self, params: Any, progress: Progress | None = None) -> tuple[Metrics, Metrics]:
        """The first two of `compare`."""
        return self.compare(params, progress)[:2]

    def compare(self, params: Any, progress: Progress | None = None) -> Measured:
        """Metrics on the centre view of each photo, and on all views against the float network.

        Args:
            params: the network's parameters, quantized or not.
            progress: as for `corrq_jax.evaluation.evaluate`.

        Raises:
            InputError: no picture can be read.
        """
        reference = self._reference(progress)
        found = reference if params is self.params else self._outputs(params, progress)
        if len(found.labels) != len(reference.labels):
            raise InputError(
                f"{self.data}: {len(found.labels)} pictures could be read, {len(reference.labels)} "
                "before; keep the pictures as they are while they are used"
            )
        return Measured(
            metrics_from_logits(found.logits[:: self.views], found.labels[:: self.views]),
            metrics_from_logits(found.logits, found.labels, reference.logits),
            _predictions(found.logits, reference.logits),
        )

    def _reference(self, progress: Progress | None = None) -> _Outputs:
        """Of the float network, computed once."""
        # As functools.cached_property does, which takes no argument.
        if "_float_outputs" not in self.__dict__:
            self.__dict__["_float_outputs"] = self._outputs(self.params, progress)
        return self.__dict__["_float_outputs"]

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


def _predictions(logits: np.ndarray, reference: np.ndarray) -> Predictions | None:
    """The answers, a few digits each; None for too many pictures, or for answers that are NaN."""
    if len(logits) > MOST_RECORDED:
        return None
    found = of_each(logits, reference)
    if not np.isfinite(found.confidence).all():
        return None
    kl = found.kl if np.isfinite(found.kl).all() else found.kl[:0]
    return Predictions(
        classes=found.classes.tolist(),
        kl=tuple(float(f"{value:.4g}") for value in kl),
        confidence=tuple(round(float(value), 3) for value in found.confidence),
    )


def expected_inputs(name: str) -> tuple[jax.ShapeDtypeStruct, np.ndarray, np.ndarray]:
    """A network's inputs for `corrq_jax.moments.trace`, without a picture.

    Args:
        name: a name in `corrq_jax.models`.

    Returns:
        Shape and dtype, and float64[channels] mean and variance, as they are on average.
    """
    info = models.info(name)
    size = info.resolution
    prepare = preprocessing(info.preprocessing, size)
    shape = (1, size, size, prepare.depth)
    return jax.ShapeDtypeStruct(shape, np.float32), *prepare.expected_moments()


def _room() -> float:
    """Bytes that decoded pictures may take: half of the memory that is free, where one can tell."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2
    except (AttributeError, ValueError, OSError):
        return 2e9


class _Kept:
    """Pictures that are read once, if there is room for them: a comparison needs many passes."""

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
        kept: list[Batch] = []
        nbytes, room = 0, _room()
        for batch in self._pictures:
            nbytes += batch[0].nbytes
            if nbytes <= room:
                kept.append(batch)
            else:
                kept.clear()
            yield batch
        if not self._pictures.count:
            name, reason = next(iter(self.corrupt.items()), ("no picture", "there is none"))
            raise InputError(
                f"none of the {len(self.corrupt)} pictures could be read; the first: {name}: "
                f"{reason}"
            )
        self._batches = kept or None


_PICTURES = {"imagenet": PHOTOS, "fashion_mnist": FASHION_MNIST}
"""What a network is measured on by default, by what it was trained on."""


def subject(
    name: str,
    data: str | os.PathLike[str] | None = None,
    weights: Any = None,
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
        data: "photos" for the 24 installed photos in 10 views each; "fashion_mnist", as for
            `corrq_jax.data.read_fashion_mnist`; a folder, as for `corrq_jax.data.read_folder`; or a
            data set of TFDS, as for `corrq_jax.data.tfds_source`. None for "fashion_mnist" if the
            network was trained on it, or else "photos".
        weights: as for `corrq_jax.models.load`.
        labels: the labels of a folder without class folders.
        split: of Fashion-MNIST or a TFDS data set.
        data_dir: where Fashion-MNIST's files are, or where TFDS keeps its data.
        download: let TFDS prepare a data set that is not there.
        limit: use so many pictures at most, spread evenly over the data set.
        batch_size: pictures at a time.
        dtype: what the network computes in, as for `corrq_jax.evaluation.in_dtype`.

    Raises:
        InputError: there is no such network or data set, or an option does not fit.
        FileFormatError: the weights, the labels or the pictures cannot be read.
        MissingDependencyError: a package is not installed.
    """
    info = models.info(name)
    data = _PICTURES[info.dataset] if data is None else data
    prepare = preprocessing(info.preprocessing, info.resolution)
    kind = _kind(data)
    # What can be told at once is told before the network is loaded, or fetched.
    if kind in _PICTURES.values() and kind != _PICTURES[info.dataset]:
        raise InputError(f"{data} does not have the classes of {name}, those of {info.dataset}")
    options = {"labels": labels, "split": split, "data_dir": data_dir, "limit": limit}
    _check_options(data, kind, options | {"download": download or None})
    if kind == "tfds" and (pathlib.Path(data).is_absolute() or str(data).startswith(".")):
        raise InputError(f"there is no folder {data}")
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}; at least 1 is needed")
    if dtype not in DTYPES:
        raise InputError(f"dtype is {dtype!r}; give one of {', '.join(DTYPES)}")
    # Before the network, since they may be missing.
    photos = _photos(prepare, batch_size) if kind == PHOTOS else None
    fashion = read_fashion_mnist(split or "test", data_dir) if kind == FASHION_MNIST else None
    apply, params = functional(models.load(name, weights))
    if photos is not None:
        title = f"{PHOTOS}, 10 views each"
        shown = (prepare.pixels, imagenet_names())
        return Subject(name, apply, params, photos, 10, title, dtype, *shown)
    classes = jax.eval_shape(apply, params, expected_inputs(name)[0]).shape[-1]
    source: Source
    if fashion is not None:
        source = fashion
    elif kind == "folder":
        source = read_folder(data, labels, classes=classes)
    else:
        source = _tfds(str(data), split, data_dir, classes, download)
    title = source.identity
    if kind == "folder":
        title = f"{pathlib.Path(data).resolve().name}, {title}"
    # Small pictures in memory are decoded at once, without the threads that need grain.
    workers = 0 if kind == FASHION_MNIST else WORKERS
    found = load(source, prepare, batch_size, limit=limit, workers=workers)
    if len(found.indices) < len(source):
        title += f", {len(found.indices)} of them"
    names = {"imagenet": imagenet_names(), "fashion_mnist": FASHION_CLASSES}[info.dataset]
    names = names if classes == len(names) else ()
    return Subject(name, apply, params, _Kept(found), 1, title, dtype, prepare.pixels, names)


def _kind(data: str | os.PathLike[str]) -> str:
    if pathlib.Path(data).is_dir():
        return "folder"
    return str(data) if str(data) in _PICTURES.values() else "tfds"


def _photos(prepare: Preprocess, batch_size: int) -> list[Batch]:
    images, labels = all_views(load_photos(), prepare)
    return list(batches(images, labels, min(batch_size, len(images))))


_OPTIONS = {
    "folder": {"labels", "limit"},
    PHOTOS: set(),
    FASHION_MNIST: {"split", "data_dir", "limit"},
    "tfds": {"split", "data_dir", "download", "limit"},
}


def _check_options(data: Any, kind: str, options: Mapping[str, Any]) -> None:
    """Options are for some kinds of data only."""
    given = [name for name, value in options.items() if value is not None]
    if unfit := [name for name in given if name not in _OPTIONS[kind]]:
        raise InputError(
            f"{', '.join(unfit)} cannot be used with {data}: labels are for a folder, download for "
            "a data set of TFDS, split and data_dir for one and for fashion_mnist, limit for all "
            "but photos"
        )


def _tfds(name: str, split: str | None, data_dir: Any, classes: int, download: bool) -> Any:
    try:
        return tfds_source(name, split, data_dir, classes=classes, download=download)
    except InputError as error:
        raise InputError(f"{name} is no folder, and as a data set of TFDS: {error}") from error
