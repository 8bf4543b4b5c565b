"""The weights of the Fashion-MNIST network, which are part of this package."""

import pathlib


def installed_weights(name: str) -> pathlib.Path:
    """The file with the trained weights; the log of their training lies beside it."""
    return pathlib.Path(__file__).parent / "assets" / f"{name}.safetensors"
