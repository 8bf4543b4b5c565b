"""Thumbnails of pictures and names of classes, for what networks say of them."""

import dataclasses
from collections.abc import Iterable, Iterator

import numpy as np

from corrq_jax.data.thumbnails import thumbnail
from corrq_jax.details import Pictures, Thumbnail
from corrq_jax.fidelity import Subject

MOST = 48  # thumbnails: about 150 kB


def illustrated(pictures: Pictures, subject: Subject) -> Pictures:
    """Pictures with thumbnails of the centre views of at most `MOST` photos, spread evenly.

    Args:
        pictures: without thumbnails.
        subject: whose pictures they are.
    """
    thumbnails = tuple(_thumbnails(subject, _spread(len(pictures.labels), pictures.views)))
    return dataclasses.replace(pictures, thumbnails=thumbnails, names=_names(pictures, subject))


def _spread(count: int, views: int) -> list[int]:
    """Indices of the first view of some photos, ascending."""
    photos = count // views
    chosen = np.unique(np.linspace(0, photos - 1, min(photos, MOST)).round().astype(int))
    return [views * int(photo) for photo in chosen]


def _thumbnails(subject: Subject, chosen: Iterable[int]) -> Iterator[Thumbnail]:
    if subject.pixels is None:
        return
    wanted, start = list(chosen), 0
    for images, _, mask in subject.pictures:
        valid = np.flatnonzero(np.asarray(mask))
        while wanted and wanted[0] < start + valid.size:
            index = wanted.pop(0)
            pixels = subject.pixels(np.asarray(images[valid[index - start]]))
            yield Thumbnail(index, thumbnail(pixels))
        start += valid.size
        if not wanted:
            return


def _names(pictures: Pictures, subject: Subject) -> dict[str, str]:
    """The names of all classes that are a label or an answer."""
    met = {*pictures.labels, *(c for p in pictures.predictions.values() for c in p.classes)}
    return {str(c): subject.classes[c] for c in sorted(met) if 0 <= c < len(subject.classes)}
