"""Names of ImageNet's classes: which index a WordNet id, a number or a folder stands for."""

import functools
import importlib.resources
from collections.abc import Sequence

from corrq_jax.errors import InputError

IMAGENET_CLASSES = 1000


@functools.cache
def imagenet_index() -> dict[str, int]:
    """Index of the class by WordNet id, for the 1000 classes of ImageNet.

    Networks number the classes in the sorted order of the ids.

    >>> imagenet_index()["n01440764"], imagenet_index()["n15075141"]
    (0, 999)
    """
    file = importlib.resources.files("corrq_jax.data").joinpath("assets/imagenet_wnids.txt")
    ids = file.read_text(encoding="ascii").split()
    return {name: index for index, name in enumerate(ids)}


def indices_by_wordnet(names: Sequence[str], classes: int) -> list[int] | None:
    """The class that each name stands for if all are WordNet ids of ImageNet, else None.

    >>> indices_by_wordnet(["n02123597", "n01440764"], classes=1000)
    [284, 0]
    """
    known = imagenet_index()
    if classes != IMAGENET_CLASSES or not all(name in known for name in names):
        return None
    return [known[name] for name in names]


def indices_of_folders(names: Sequence[str], classes: int) -> list[int] | None:
    """The class that each folder stands for, None where the names do not tell.

    Folders named by number are classes by index, those named by WordNet id are ImageNet's; as many
    folders as classes are all of them in order, unless names and numbers have another order.

    Args:
        names: of the folders, sorted.
        classes: how many classes the network tells apart.

    >>> indices_of_folders(["281", "7"], classes=1000)
    [281, 7]
    >>> indices_of_folders(["cat", "dog"], classes=2)
    [0, 1]
    """
    if all(name.isdecimal() for name in names):
        numbers = [int(name) for name in names]
        if all(number < classes for number in numbers):
            return numbers
        if numbers != sorted(numbers):
            return None  # such as 1, 10, 2: the order of names is not that of the classes
    if (found := indices_by_wordnet(names, classes)) is not None:
        return found
    return list(range(classes)) if len(names) == classes else None


def class_index(label: str, classes: int) -> int:
    """The class that a label written as an index or as a WordNet id stands for.

    Args:
        label: such as "284" or "n02123597".
        classes: how many classes there are; WordNet ids are known for ImageNet's 1000.

    Raises:
        InputError: it stands for none.

    >>> class_index("284", classes=1000), class_index("n02123597", classes=1000)
    (284, 284)
    """
    if label.isdecimal():
        if int(label) == classes == IMAGENET_CLASSES:
            raise InputError(
                f"label {label}: numbers are class indices, 0 to {classes - 1} in the order of the "
                "WordNet ids, but ILSVRC2012_validation_ground_truth.txt counts from 1 to 1000 in "
                "an order of its own; give WordNet ids instead, such as the file "
                "datasets/imagenet2012/validation_labels.txt of tensorflow_datasets has"
            )
        if int(label) >= classes:
            raise InputError(f"label {label}: class indices are 0 to {classes - 1}")
        return int(label)
    found = indices_by_wordnet([label], classes)
    if found is None:
        ids = " and WordNet ids of its classes" if classes == IMAGENET_CLASSES else ""
        raise InputError(f"label {label!r}: indices of 0 to {classes - 1}{ids} are allowed")
    return found[0]
