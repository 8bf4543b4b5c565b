"""Weights of VGG-16 under the names and in the layouts of Keras and of torchvision."""

import numpy as np

from corrq_jax.models.keras_weights import KerasLayer, conv, dense
from corrq_jax.models.torch_weights import Names, TorchArray, layer
from corrq_jax.models.vgg16 import RESOLUTION, STAGES


def keras_layers(name: str) -> tuple[KerasLayer, ...]:
    """The layers of the network in the order of Keras's `model.layers`."""
    convolutions = [
        conv(f"block{s + 1}_conv{c + 1}", (f"stage{s + 1}", f"conv{c + 1}"), bias=True)
        for s, (count, _) in enumerate(STAGES)
        for c in range(count)
    ]
    return (
        *convolutions,
        dense("fc1", ("fc1",)),
        dense("fc2", ("fc2",)),
        dense("predictions", ("classifier",)),
    )


def torch_names(name: str) -> Names:
    """The entry in torchvision's state dictionary of every parameter, by path in the network.

    torchvision numbers the layers, `features.0` to `features.30` and `classifier.0` to
    `classifier.6`, and counts activations, pooling and dropout, too.
    """
    names: Names = {}
    index = 0
    for s, (count, _) in enumerate(STAGES):
        for c in range(count):
            names |= layer((f"stage{s + 1}", f"conv{c + 1}"), f"features.{index}")
            index += 2  # the convolution and its ReLU
        index += 1  # pooling
    names |= layer(("fc1",), "classifier.0")
    names["fc1", "kernel"] = TorchArray("classifier.0.weight", _channels_last)
    return names | layer(("fc2",), "classifier.3") | layer(("classifier",), "classifier.6")


def _channels_last(matrix: np.ndarray) -> np.ndarray:
    """The matrix of the layer after the flattening, (out, in) to (in, out).

    PyTorch flattens (channels, height, width), and Flax (height, width, channels).
    """
    if matrix.ndim != 2:
        raise ValueError(matrix.shape)
    outputs = matrix.shape[0]
    height, width = (size // 32 for size in RESOLUTION)
    by_place = matrix.reshape(outputs, STAGES[-1][1], height, width)
    return by_place.transpose(2, 3, 1, 0).reshape(-1, outputs)
