"""A named network and the photos to compare its quantized forms on."""

import dataclasses
import os
import warnings
from functools import cached_property
from typing import Any

import jax
import numpy as np

from corrq_jax import models
from corrq_jax.data import all_views, batches, load_photos, preprocessing, read_folder
from corrq_jax.errors import InputError
from corrq_jax.evaluation import Metrics, logits, metrics_from_logits
from corrq_jax.flax import Apply, functional
from corrq_jax.moments import Wiring, trace
from corrq_jax.tree import dequantize

BATCH = 48


@dataclasses.dataclass(frozen=True)
class Subject:
    """A float network with labelled pictures.

    Attributes:
        name: the network's name in `corrq_jax.models`.
        apply: the network as a pure function.
        params: its float parameters.
        images: float32[count, height, width, 3].
        labels: int32[count], -1 for unknown.
        views: pictures that come from one photo; the first of each is its centre.
    """

    name: str
    apply: Apply
    params: Any
    images: np.ndarray
    labels: np.ndarray
    views: int

    @property
    def photos(self) -> int:
        """Number of photos behind the pictures."""
        return len(self.images) // self.views

    def logits(self, params: Any) -> np.ndarray:
        """float32[count, classes] of the network with these parameters, quantized or not.

        They are decoded first, so that all share one compiled forward pass: compiling one for
        each combination of bits would take longer than running it.
        """
        pictures = batches(self.images, self.labels, min(BATCH, len(self.images)))
        return logits(self.apply, dequantize(params), pictures)

    @cached_property
    def reference(self) -> np.ndarray:
        """Logits of the float network."""
        return self.logits(self.params)

    @cached_property
    def wiring(self) -> Wiring:
        """How the float network's kernels hang together; read from the network, not the pictures.

        As far as it knows, its inputs have mean 0 and variance 1.
        """
        example = jax.ShapeDtypeStruct((1, *self.images.shape[1:]), self.images.dtype)
        return trace(self.apply, self.params, example)

    def measure(self, params: Any) -> tuple[Metrics, Metrics]:
        """Metrics on the centre view of each photo, and on all views against the float network."""
        found = self.reference if params is self.params else self.logits(params)
        centre = metrics_from_logits(found[:: self.views], self.labels[:: self.views])
        return centre, metrics_from_logits(found, self.labels, self.reference)


def subject(name: str, data: str | os.PathLike[str] | None = None, weights: Any = None) -> Subject:
    """Load a network and its pictures.

    Args:
        name: a name in `corrq_jax.models`.
        data: a folder with a folder of pictures for each class, named by the index of the class or
            one for each class of ImageNet; None for the 24 installed photos in 10 views each.
        weights: a file or arrays for `corrq_jax.models.load`; None for the installed ones.

    Raises:
        InputError: there is no such network, or the folder has no readable picture.
        MissingDependencyError: a package is not installed.
    """
    info = models.info(name)
    apply, params = functional(models.load(name, weights))
    prepare = preprocessing(info.preprocessing, info.resolution)
    if data is None:
        images, labels = all_views(load_photos(), prepare)
        return Subject(name, apply, params, images, labels, views=10)
    folder = read_folder(data)
    pairs = list(folder.examples(prepare))
    for path, reason in folder.corrupt.items():
        warnings.warn(f"left out {path}: {reason}", stacklevel=2)
    if not pairs:
        raise InputError(f"{data}: none of its {len(folder.files)} pictures could be read")
    class_of = _class_indices(folder.classes, info.classes)
    labels = np.array([class_of[label] for _, label in pairs], np.int32)
    return Subject(name, apply, params, np.stack([image for image, _ in pairs]), labels, views=1)


def _class_indices(folders: tuple[str, ...], classes: int) -> list[int]:
    """The class that each folder stands for; -1, unknown, where the names do not tell.

    Folders named by number are classes by index; as many folders as classes are all of them in
    order, as ImageNet's are by their WordNet names.
    """
    if all(name.isdecimal() and int(name) < classes for name in folders):
        return [int(name) for name in folders]
    if len(folders) == classes:
        return list(range(classes))
    warnings.warn(
        f"{len(folders)} class folders that are neither numbers nor all {classes} classes: top-1 "
        "and top-5 are not measured, only how closely the float network is followed",
        stacklevel=3,
    )
    return [-1] * len(folders)
