"""Batches of one fixed shape."""

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from corrq_jax.errors import InputError

BATCH = 48  # pictures at a time where nothing else is asked for: the views of the photos fill five


def batches(
    images: Iterable[np.ndarray], labels: Iterable[int], batch_size: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Groups images and labels; the last batch is padded with zeros.

    Args:
        images: an array[count, ...], or images of one shape one by one.
        labels: as many labels; -1 for unknown.
        batch_size: at least 1.

    Yields:
        images[batch_size, ...], labels int32[batch_size] and mask bool[batch_size], False for the
        padding, which has the label -1.

    Raises:
        InputError: `batch_size` is below 1, or there are not as many labels as images.
    """
    return example_batches(_pairs(images, labels), batch_size)


def example_batches(
    examples: Iterable[tuple[np.ndarray, int]], batch_size: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Groups (image, label) pairs, such as an image folder's, as `batches` does.

    Args:
        examples: images of equal shapes, each with its label.
        batch_size: at least 1.

    Returns:
        Images, int32 labels and a mask of each batch; the last one is filled up.

    Raises:
        InputError: the size is below 1 or, when that image comes, it has another shape.
    """
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}; at least 1 is needed")
    return _grouped(iter(examples), batch_size)


def _pairs(images: Iterable[Any], labels: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
    absent = object()
    for image, label in itertools.zip_longest(images, labels, fillvalue=absent):
        if image is absent or label is absent:
            raise InputError("there are not as many labels as images; give one for each image")
        yield image, label


def _grouped(examples: Iterator[tuple[np.ndarray, int]], batch_size: int):
    while group := list(itertools.islice(examples, batch_size)):
        first = np.asarray(group[0][0])
        images = np.zeros((batch_size, *first.shape), first.dtype)
        labels = np.full(batch_size, -1, np.int32)
        for index, (image, label) in enumerate(group):
            if np.shape(image) != first.shape:
                raise InputError(f"an image has shape {np.shape(image)}, others {first.shape}")
            images[index], labels[index] = image, label
        yield images, labels, np.arange(batch_size) < len(group)
