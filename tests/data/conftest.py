"""Keras, as the reference of preprocessing, and data sets."""

import os

import numpy as np
import pytest
from pictures import jpeg
from PIL import Image


@pytest.fixture(scope="session")
def keras():
    """Keras on JAX: the backend is chosen before the first import, or it is TensorFlow."""
    os.environ["KERAS_BACKEND"] = "jax"
    import keras

    assert keras.backend.backend() == "jax"
    return keras


@pytest.fixture
def imagenet_v2(prepare):
    rows = [(jpeg(number), number * 100, {"file_name": f"{number}/x.jpeg"}) for number in range(5)]
    return prepare("imagenet_v2/matched-frequency", "test", rows)


@pytest.fixture
def folder(tmp_path):
    """A folder of noisy pictures for each of two classes, with a damaged one in the first."""
    rng = np.random.default_rng(0)
    for number in range(11):
        path = (
            tmp_path / "n02123597" / f"{number:02}.png"
            if number < 7
            else tmp_path / "n03028079" / f"{number:02}.png"
        )
        path.parent.mkdir(exist_ok=True)
        size = rng.integers(5, 60, 2)
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(path)
    (tmp_path / "n02123597" / "03.png").write_bytes(b"damaged")
    return tmp_path
