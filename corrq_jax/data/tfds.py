"""Pictures of TensorFlow Datasets (TFDS), read without TensorFlow.

Good for measuring ImageNet's classes: `imagenet2012` (its files are placed by hand),
`imagenet_v2/matched-frequency` (10,000 new pictures) and `imagenette` (10 of the classes).
"""

import dataclasses
import importlib.util
import os
from collections.abc import Sequence
from typing import Any

from corrq_jax.data.classes import IMAGENET_CLASSES, indices_by_wordnet
from corrq_jax.data.source import Record
from corrq_jax.errors import InputError, MissingDependencyError, require

# TFDS lists and encodes pictures with TensorFlow when it prepares them, and 4.9.10 uses
# importlib_resources there without requiring it. Reading needs neither.
_TO_PREPARE = ("tensorflow", "importlib_resources")


@dataclasses.dataclass(frozen=True)
class TfdsSource:
    """One split of a TFDS data set; a `Source`.

    Attributes:
        identity: name, version and split, such as "imagenet_v2/matched-frequency:3.0.0/test".
        records: what TFDS reads, one dictionary a picture, with the picture still encoded.
        image: the key of the picture.
        label: the key of the label.
        indices: the class of each of the data set's labels.
    """

    identity: str
    records: Sequence[dict[str, Any]]
    image: str
    label: str
    indices: tuple[int, ...]

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.records)

    def __getitem__(self, index: int) -> Record:
        """Picture number `index`, named by its file where TFDS has kept that."""
        record = self.records[index]
        name = record.get("file_name", f"{self.identity}[{index}]")
        label = int(record[self.label])
        return Record(
            name.decode(errors="replace") if isinstance(name, bytes) else str(name),
            bytes(record[self.image]),
            self.indices[label] if label >= 0 else -1,
        )


def tfds_source(
    name: str,
    split: str | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    classes: int = IMAGENET_CLASSES,
    download: bool = False,
) -> TfdsSource:
    """Opens a data set of TFDS that has been prepared in a format with random access.

    Args:
        name: such as "imagenet2012", "imagenet_v2/matched-frequency" or "imagenette".
        split: such as "validation" or "test[:500]"; None for the validation split or, where there
            is none, the test split.
        data_dir: the folder with TFDS's data; None for TFDS's own choice.
        classes: how many classes the network tells apart. The data set's labels are as many, in
            the network's order, or are named by WordNet ids of ImageNet's 1000.
        download: let TFDS download and prepare the data set if it is not there yet. This alone
            needs TensorFlow.

    Returns:
        The split as a source of pictures.

    Raises:
        InputError: there is no such data set or split, it is not prepared, or its labels are not
            the network's.
        MissingDependencyError: TFDS is not installed, or what it needs to prepare a data set.
    """
    tfds = require("tensorflow_datasets", "data")
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError:  # its own message lists hundreds of names
        raise InputError(
            f"TFDS has no data set {name!r}; imagenet2012, imagenet_v2/matched-frequency and "
            "imagenette have classes of ImageNet"
        ) from None
    except ValueError as error:
        raise InputError(f"TFDS cannot open {name!r}: {_one_line(error)}") from error
    image, label, indices = _labelled_pictures(builder, classes)
    if download and not builder.is_prepared():
        _prepare(builder)
    split = split or _default_split(builder)
    try:
        decoders = {image: tfds.decode.SkipDecoding()}
        records = builder.as_data_source(split=split, decoders=decoders)
    except (ValueError, NotImplementedError) as error:
        raise InputError(_why_closed(builder, split, error)) from error
    identity = f"{builder.info.full_name.rpartition('/')[0]}:{builder.version}/{split}"
    return TfdsSource(identity, records, image, label, indices)


def _labelled_pictures(builder: Any, classes: int) -> tuple[str, str, tuple[int, ...]]:
    """(key of the picture, key of the label, class of each label)."""
    features = require("tensorflow_datasets", "data").features
    found = builder.info.features
    image, label = keys = (builder.info.supervised_keys or ("image", "label"))[:2]
    if not (
        isinstance(found, features.FeaturesDict)
        and all(isinstance(key, str) and key in found for key in keys)
        and isinstance(found[image], features.Image)
        and isinstance(found[label], features.ClassLabel)
    ):
        raise InputError(f"{builder.name} does not have pictures with one label each")
    names = found[label].names
    indices = indices_by_wordnet(names, classes)
    if indices is None and len(names) == classes:
        indices = list(range(classes))
    if indices is None:
        raise InputError(
            f"{builder.name} has {len(names)} labels, such as {names[0]!r}: {classes} are needed, "
            "in the network's order, or WordNet ids of ImageNet's 1000 classes"
        )
    return image, label, tuple(indices)


def _default_split(builder: Any) -> str:
    splits = builder.info.splits
    return "test" if "test" in splits and "validation" not in splits else "validation"


def _prepare(builder: Any) -> None:
    absent = [module for module in _TO_PREPARE if importlib.util.find_spec(module) is None]
    if absent:
        raise MissingDependencyError(
            f"TFDS prepares {builder.name} with {' and '.join(absent)}, not installed here. Run: "
            f"pip install {' '.join(absent)} (for this step only); or unpack the data set's own "
            "archive and read it as a folder of pictures",
            name=absent[0],
        )
    try:
        builder.download_and_prepare(file_format="array_record")
    except AssertionError as error:  # TFDS's way to say that files placed by hand are not there
        raise InputError(_how_to_prepare(builder)) from error


def _why_closed(builder: Any, split: str, error: Exception) -> str:
    if not builder.is_prepared():
        return _how_to_prepare(builder)
    if isinstance(error, NotImplementedError):
        return (
            f"{builder.data_dir} is in a format without random access; give another data_dir and "
            "download=True to have it prepared as array_record"
        )
    known = ", ".join(builder.info.splits)
    return f"{builder.data_dir} has no split {split!r} ({_one_line(error)}); it has {known}"


def _how_to_prepare(builder: Any) -> str:
    # root/name/[config/]version
    root = builder.data_path.parents[builder.info.full_name.count("/")]
    manual = builder.MANUAL_DOWNLOAD_INSTRUCTIONS
    if builder.name == "imagenet2012":
        first = (
            "put ILSVRC2012_img_val.tar of https://image-net.org/download-images into "
            f"{root / 'downloads' / 'manual'}, then "
        )
    elif manual:
        first = f"put its files into {root / 'downloads' / 'manual'} ({_one_line(manual)}), then "
    else:
        first = ""
    return (
        f"{builder.name} is not prepared in {root}: {first}give download=True (--download) once, "
        "with TensorFlow installed; or unpack its archive and read it as a folder of pictures"
    )


def _one_line(text: object) -> str:
    return " ".join(str(text).split())
