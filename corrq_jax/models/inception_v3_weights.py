"""Weights of Inception-v3 in the order of keras.applications, which numbers their layers.

Keras orders a model's layers by their distance from the output, the farthest first, and those at
the same distance as they come in the outputs' concatenation. So the branches of a block interleave.
"""

from corrq_jax.models.inception_v3 import BLOCKS, INPUT, POOL, Block, Conv
from corrq_jax.models.keras_weights import KerasLayer, conv, dense, norm

_LAYERS = 3  # a convolution, its BatchNorm and its activation are a layer each


def keras_layers(name: str) -> tuple[KerasLayer, ...]:
    """The layers with weights, in the order of Keras's `model.layers`."""
    del name  # there is one only
    layers = []
    for index in range(1, 6):
        path = ("stem", f"conv{index}")
        layers += [conv(None, (*path, "conv")), norm(None, (*path, "norm"), scale=False)]
    for block in BLOCKS:
        layers += _block_layers(block)
    return (*layers, dense("predictions", ("classifier",)))


def _block_layers(name: str) -> list[KerasLayer]:
    """The layers of one block, the farthest from its end first."""
    placed = []
    for item, distance in _distances(BLOCKS[name]).items():
        path = (name, item)
        placed.append((distance, conv(None, (*path, "conv"))))
        placed.append((distance - 1, norm(None, (*path, "norm"), scale=False)))
    # Sorting keeps the order of equals.
    return [layer for _, layer in sorted(placed, key=lambda pair: -pair[0])]


def _distances(block: Block) -> dict[str, int]:
    """How many layers each convolution is from the block's concatenation, in the block's order.

    The two ends of a fork are concatenated by themselves first, which is one layer more.
    """
    found: dict[str, int] = {}
    for item in reversed(block.convs):
        after = [found[other.name] for other in block.convs if other.source == item.name]
        found[item.name] = _LAYERS + max(after, default=int(_is_forked(item, block)))
    return {item.name: found[item.name] for item in block.convs}


def _is_forked(item: Conv, block: Block) -> bool:
    """Whether another convolution reads the same convolution's output."""
    readers = [other for other in block.convs if other.source == item.source]
    return item.source not in (INPUT, POOL) and len(readers) > 1
