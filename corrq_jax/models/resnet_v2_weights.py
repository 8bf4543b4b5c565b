"""Weights of ResNet-152 v2 under the names of keras.applications."""

from collections.abc import Iterator

from corrq_jax.models.filling import Path
from corrq_jax.models.keras_weights import KerasLayer, conv, dense, norm
from corrq_jax.models.resnet_v2 import STAGES


def keras_layers(name: str) -> tuple[KerasLayer, ...]:
    """The layers with weights, in the order of Keras's `model.layers`."""
    del name  # there is one only
    layers = [conv("conv1_conv", ("stem",), bias=True)]
    for stage, (count, _, _) in enumerate(STAGES):
        for block in range(count):
            path = (f"stage{stage + 1}", f"block{block + 1}")
            # Keras counts the stem as the first stage.
            layers += _block(f"conv{stage + 2}_block{block + 1}_", path, shortcut=block == 0)
    return (*layers, norm("post_bn", ("norm",)), dense("predictions", ("classifier",)))


def _block(keras: str, path: Path, *, shortcut: bool) -> Iterator[KerasLayer]:
    yield norm(f"{keras}preact_bn", (*path, "preact_norm"))
    for index in (1, 2):
        unit = (*path, f"conv{index}")
        yield conv(f"{keras}{index}_conv", (*unit, "conv"))
        yield norm(f"{keras}{index}_bn", (*unit, "norm"))
    if shortcut:
        # Here by its depth in the graph: its output is added to that of the third convolution.
        yield conv(f"{keras}0_conv", (*path, "shortcut"), bias=True)
    yield conv(f"{keras}3_conv", (*path, "conv3"), bias=True)
