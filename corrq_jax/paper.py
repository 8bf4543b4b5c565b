"""What the papers report of networks that this package has, to be shown beside what is measured.

Part I: Malsagov, Khayrov, Pushkareva, Karandashev, "Exponential discretization of weights of neural
network connections in pre-trained neural networks", Optical Memory and Neural Networks 28(4),
262-270, 2019. Part II: Pushkareva, Karandashev, "... Part II: Correlation maximization", the same
journal 29(3), 179-186, 2020. Top-5 on ImageNet, as far as abstracts and introductions give it:
whole per cent, the number of pictures and the preprocessing unsaid. See docs/reproduce.md.
"""

import dataclasses
from collections.abc import Iterable

from corrq_jax.results import Result


@dataclasses.dataclass(frozen=True)
class Published:
    """A figure of the papers.

    Attributes:
        network: the network's name in `corrq_jax.models`.
        part: "I" or "II".
        bits: bits a weight, sign included.
        top5: share of right answers among five, 0 to 1.
        methods: our methods that the figure may stand for: the text does not say which grid or
            which levels it is.
    """

    network: str
    part: str
    bits: int
    top5: float
    methods: tuple[str, ...]


_PART_I = ("exponential",)
_PART_II = ("linear + correlation", "exponential + correlation")

PUBLISHED = (
    Published("vgg16", "I", 3, 0.69, _PART_I),
    Published("vgg16", "II", 3, 0.76, _PART_II),
    Published("resnet50", "I", 4, 0.84, _PART_I),
    Published("resnet50", "II", 4, 0.79, _PART_II),
    Published("xception", "I", 5, 0.87, _PART_I),
    Published("xception", "II", 4, 0.61, _PART_II),
    Published("inception_v3", "I", 5, 0.90, _PART_I),
    Published("mobilenet_v2", "I", 5, 0.77, _PART_I),
)

FLOAT = {
    "vgg16": (0.713, 0.901),
    "resnet50": (0.749, 0.921),
    "xception": (0.790, 0.945),
    "inception_v3": (0.779, 0.937),
    "mobilenet_v2": (0.713, 0.901),
}
"""Top-1 and top-5 of the float networks as keras.io gives them, on ImageNet's validation set."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A published figure beside what was measured at the same bits.

    Attributes:
        published: the figure.
        measured: (method, top-5) of the methods that it may stand for.
    """

    published: Published
    measured: tuple[tuple[str, float], ...]


def beside(network: str, results: Iterable[Result]) -> tuple[Comparison, ...]:
    """The published figures of a network with what was measured at the same bits.

    Args:
        network: the network's name in `corrq_jax.models`.
        results: what was measured; those without a top-5 are passed over.

    Returns:
        One comparison for every published figure; with no measured value where that method was not
        run.
    """
    results = tuple(results)
    return tuple(
        Comparison(
            figure,
            tuple(
                (r.method, r.top5)
                for r in results
                if r.method in figure.methods and r.bits == figure.bits and r.top5 is not None
            ),
        )
        for figure in PUBLISHED
        if figure.network == network
    )
