"""Weights of MobileNet-v2 in the order and under the names of Keras."""

from corrq_jax.models.filling import Path
from corrq_jax.models.keras_weights import KerasLayer, conv, dense, depthwise, norm
from corrq_jax.models.mobilenet_v2 import STAGES


def keras_layers(name: str) -> tuple[KerasLayer, ...]:
    """The layers of the network in the order of Keras's `model.layers`."""
    layers = [conv("Conv1", ("stem", "conv")), norm("bn_Conv1", ("stem", "norm"))]
    count = 0
    for s, stage in enumerate(STAGES):
        for b in range(stage.blocks):
            prefix = f"block_{count}_" if count else "expanded_conv_"
            layers += _bottleneck(prefix, (f"stage{s + 1}", f"block{b + 1}"), stage.expansion != 1)
            count += 1
    layers += [conv("Conv_1", ("head", "conv")), norm("Conv_1_bn", ("head", "norm"))]
    return (*layers, dense("predictions", ("classifier",)))


def _bottleneck(prefix: str, path: Path, expands: bool) -> list[KerasLayer]:
    expand = [
        conv(f"{prefix}expand", (*path, "expand", "conv")),
        norm(f"{prefix}expand_BN", (*path, "expand", "norm")),
    ]
    return [
        *(expand if expands else []),
        depthwise(f"{prefix}depthwise", (*path, "depthwise", "conv")),
        norm(f"{prefix}depthwise_BN", (*path, "depthwise", "norm")),
        conv(f"{prefix}project", (*path, "project", "conv")),
        norm(f"{prefix}project_BN", (*path, "project", "norm")),
    ]
