"""What a report shows of single layers and single pictures: records on numpy alone."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from corrq_jax.errors import InputError
from corrq_jax.fields import read_record, read_records, set_float, set_int, set_tuple

FLOAT = "float"
"""The float network's name among `Pictures.predictions`."""


@dataclasses.dataclass(frozen=True)
class Histogram:
    """How the weights of a tensor are spread, over equal bins that leave outliers out.

    Attributes:
        low: lower edge of the first bin.
        high: upper edge of the last.
        counts: weights in each bin; the last one has its upper edge.
        minimum: the smallest weight.
        maximum: the largest.
        size: number of weights, those outside the bins included.
    """

    low: float
    high: float
    counts: tuple[int, ...]
    minimum: float
    maximum: float
    size: int

    def __post_init__(self) -> None:
        for name in ("low", "high", "minimum", "maximum"):
            set_float(self, name)
        set_tuple(self, "counts", np.int64)
        set_int(self, "size")
        if not self.low < self.high or not self.counts or min(self.counts) < 0:
            raise InputError("a Histogram needs low < high and counts of at least 0, one or more")
        if sum(self.counts) > self.size:
            raise InputError(f"a Histogram of {self.size} weights counts {sum(self.counts)}")


@dataclasses.dataclass(frozen=True)
class LevelTable:
    """The cells of a tensor's quantizer, six digits each: enough for drawing them.

    Attributes:
        levels: the quantized values that occur, ascending.
        boundaries: between each two of them, half-way between the last weight below and the first
            one above. With scales cells overlap a little, as scales are fitted to the codes.
        histogram: of the weights in units of their scales, where they have scales, as levels and
            boundaries are then; None where the weights are as they are.
    """

    levels: tuple[float, ...]
    boundaries: tuple[float, ...]
    histogram: Histogram | None = None

    def __post_init__(self) -> None:
        for name in ("levels", "boundaries"):
            set_tuple(self, name, np.float64)
        if len(self.boundaries) != len(self.levels) - 1:
            raise InputError(
                f"a LevelTable of {len(self.levels)} levels and {len(self.boundaries)} boundaries; "
                "there is one between each two"
            )


@dataclasses.dataclass(frozen=True)
class Predictions:
    """What one network says of each picture.

    Attributes:
        classes: the best class of each.
        kl: the Kullback-Leibler divergence from the float network's output, in nats; empty where it
            is not finite for all.
        confidence: the probability of the best class.
    """

    classes: tuple[int, ...]
    kl: tuple[float, ...]
    confidence: tuple[float, ...]

    def __post_init__(self) -> None:
        set_tuple(self, "classes", np.int64)
        for name in ("kl", "confidence"):
            set_tuple(self, name, np.float64)
        counts = {len(self.classes), len(self.confidence), len(self.kl) or len(self.classes)}
        if len(counts) > 1:
            raise InputError("Predictions need one class, confidence and divergence a picture")


@dataclasses.dataclass(frozen=True)
class Thumbnail:
    """A picture small enough to be shown in a page.

    Attributes:
        index: its number among the pictures, which `Predictions` follow.
        uri: the picture as an address that holds it, ``data:image/...``.
    """

    index: int
    uri: str

    def __post_init__(self) -> None:
        set_int(self, "index")
        if not isinstance(self.uri, str) or not self.uri.startswith("data:image/"):
            raise InputError("Thumbnail.uri has to start with data:image/")


@dataclasses.dataclass(frozen=True)
class Pictures:
    """The pictures that networks were compared on, and what each network says of them.

    Attributes:
        labels: the class of each picture, -1 where it is not known.
        views: pictures that come from one photo, one after the other; 1 where each is a photo.
        names: names of classes, by their index as text; of those that occur, where they are known.
        thumbnails: some of the pictures.
        predictions: by `corrq_jax.results.Result.key`, and of the float network by `FLOAT`.
    """

    labels: tuple[int, ...]
    views: int
    names: Mapping[str, str]
    thumbnails: tuple[Thumbnail, ...]
    predictions: Mapping[str, Predictions]

    def __post_init__(self) -> None:
        set_tuple(self, "labels", np.int64)
        set_int(self, "views")
        object.__setattr__(self, "thumbnails", tuple(self.thumbnails))
        for name in ("names", "predictions"):
            object.__setattr__(self, name, dict(getattr(self, name)))
        count = len(self.labels)
        if self.views < 1 or count % self.views:
            raise InputError(f"Pictures of {count} labels with {self.views} views a photo")
        if any(len(found.classes) != count for found in self.predictions.values()):
            raise InputError(f"Pictures of {count} labels need as many predictions of each network")
        if any(not 0 <= one.index < count for one in self.thumbnails):
            raise InputError(f"a Thumbnail has an index from 0 to {count - 1}")

    def name(self, index: int) -> str:
        """The name of a class, or its number."""
        return self.names.get(str(index), f"class {index}")


def read_pictures(values: Any, where: str) -> Pictures | None:
    """`Pictures` from JSON, or None from null."""
    if not isinstance(values, dict):
        return None if values is None else read_record(Pictures, values, where)
    values = dict(values)
    if isinstance(predictions := values.get("predictions"), dict):
        values["predictions"] = {
            key: read_record(Predictions, value, f"{where}.predictions[{key!r}]")
            for key, value in predictions.items()
        }
    if "thumbnails" in values:
        values["thumbnails"] = read_records(Thumbnail, values["thumbnails"], f"{where}.thumbnails")
    return read_record(Pictures, values, where)


def read_table(values: Any, where: str) -> LevelTable | None:
    """A `LevelTable` from JSON, or None from null."""
    if values is None:
        return None
    if isinstance(values, dict) and values.get("histogram") is not None:
        histogram = read_record(Histogram, values["histogram"], f"{where}.histogram")
        values = {**values, "histogram": histogram}
    return read_record(LevelTable, values, where)
