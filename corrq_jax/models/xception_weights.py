"""Weights of Xception under the names of keras.applications."""

from collections.abc import Iterator

from corrq_jax.models import xception
from corrq_jax.models.filling import Path
from corrq_jax.models.keras_weights import KerasLayer, conv, dense, norm, separable


def keras_layers(name: str) -> tuple[KerasLayer, ...]:
    """The layers with weights, in the order of Keras's `model.layers`."""
    del name  # there is one only
    layers = []
    for index in (1, 2):
        path = ("stem", f"conv{index}")
        layers += [
            conv(f"block1_conv{index}", (*path, "conv")),
            norm(f"block1_conv{index}_bn", (*path, "norm")),
        ]
    # Keras counts all blocks in one row, from the stem, block 1.
    for number, (block, features) in enumerate(xception.BLOCKS.items(), 2):
        layers += _separables(f"block{number}", block, len(features))
        if len(features) == 2:
            # Keras numbers the layers of the shortcut.
            layers += [
                conv(None, (block, "shortcut", "conv")),
                norm(None, (block, "shortcut", "norm")),
            ]
    layers += _separables("block14", "exit2", len(xception.EXIT_FEATURES))
    return (*layers, dense("predictions", ("classifier",)))


def _separables(keras: str, block: str, count: int) -> Iterator[KerasLayer]:
    for index in range(1, count + 1):
        path: Path = (block, f"separable{index}")
        yield separable(f"{keras}_sepconv{index}", (*path, "depthwise"), (*path, "pointwise"))
        yield norm(f"{keras}_sepconv{index}_bn", (*path, "norm"))
