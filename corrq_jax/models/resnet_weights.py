"""Weights of ResNet-50 under the names and in the layouts of Keras and of torchvision."""

from collections.abc import Iterator

from corrq_jax.models.filling import Path
from corrq_jax.models.keras_weights import KerasLayer, conv, dense
from corrq_jax.models.keras_weights import norm as keras_norm
from corrq_jax.models.resnet import STAGES
from corrq_jax.models.torch_weights import Names, layer, norm

# The layers of a block in the order of Keras's `model.layers`, by their depth in the graph.
_PLAIN = ("1_conv", "1_bn", "2_conv", "2_bn", "3_conv", "3_bn")
_WITH_SHORTCUT = ("1_conv", "1_bn", "2_conv", "2_bn", "0_conv", "3_conv", "0_bn", "3_bn")
_OURS = {"0": "shortcut", "1": "conv1", "2": "conv2", "3": "conv3"}


def keras_layers(name: str) -> tuple[KerasLayer, ...]:
    """The layers with weights of "resnet50", in the order of Keras's `model.layers`."""
    del name  # the other variant is not Keras's
    layers = [
        conv("conv1_conv", ("stem", "conv"), bias=True),
        keras_norm("conv1_bn", ("stem", "norm")),
    ]
    for stage, block, path in _blocks():
        for part in _PLAIN if block else _WITH_SHORTCUT:
            number, kind = part.split("_")
            # Keras counts the stem as the first stage, and blocks from 1.
            title = f"conv{stage + 2}_block{block + 1}_{part}"
            unit = (*path, _OURS[number])
            if kind == "conv":
                layers.append(conv(title, (*unit, "conv"), bias=True))
            else:
                layers.append(keras_norm(title, (*unit, "norm")))
    return (*layers, dense("predictions", ("classifier",)))


def torch_names(name: str) -> Names:
    """The entry in torchvision's state dictionary of each leaf of "resnet50_torchvision".

    Returns:
        Entries such as `"layer1.0.downsample.0.weight"`, by path in the network, such as
        `("stage1", "block1", "shortcut", "conv", "kernel")`.
    """
    del name  # the other variant is not torchvision's
    names = _conv_norm(("stem",), "conv1", "bn1")
    for stage, block, path in _blocks():
        prefix = f"layer{stage + 1}.{block}."
        for index in (1, 2, 3):
            unit = (*path, f"conv{index}")
            names |= _conv_norm(unit, f"{prefix}conv{index}", f"{prefix}bn{index}")
        if not block:
            shortcut = (*path, "shortcut")
            names |= _conv_norm(shortcut, f"{prefix}downsample.0", f"{prefix}downsample.1")
    return names | layer(("classifier",), "fc")


def _blocks() -> Iterator[tuple[int, int, Path]]:
    """Number of the stage, number of the block in it, both from 0, and the block's path."""
    for stage, (count, _, _) in enumerate(STAGES):
        for block in range(count):
            yield stage, block, (f"stage{stage + 1}", f"block{block + 1}")


def _conv_norm(path: Path, conv: str, bn: str) -> Names:
    return layer((*path, "conv"), conv, bias=False) | norm((*path, "norm"), bn)
