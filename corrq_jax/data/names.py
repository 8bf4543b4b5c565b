"""Names of ImageNet's classes, in words."""

import functools
import importlib.resources


@functools.cache
def imagenet_names() -> tuple[str, ...]:
    """The names of the 1000 classes of ImageNet, in the order of their indices.

    They are WordNet's, one for each class.

    >>> imagenet_names()[0], imagenet_names()[284], len(set(imagenet_names()))
    ('tench', 'Siamese cat', 1000)
    """
    file = importlib.resources.files("corrq_jax.data").joinpath("assets/imagenet_names.txt")
    return tuple(file.read_text(encoding="ascii").splitlines())
