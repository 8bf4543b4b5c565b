"""keras.applications with random weights: what our networks are compared with.

Keras is imported when a test needs it, with JAX as its backend.
"""

import os
from typing import NamedTuple

import jax
import numpy as np

# Keras's name of each network.
KERAS_NAMES = {
    "vgg16": "VGG16",
    "resnet50": "ResNet50",
    "resnet152v2": "ResNet152V2",
    "xception": "Xception",
    "inception_v3": "InceptionV3",
    "mobilenet_v2": "MobileNetV2",
}


def keras():
    """The library, on JAX."""
    os.environ["KERAS_BACKEND"] = "jax"
    import keras

    assert keras.backend.backend() == "jax"
    return keras


def uninitialized(create):
    """A model whose variables want values: Keras's own initializers compile one by one."""
    with keras().StatelessScope(initialize_variables=False):
        model = create()
    keras().backend.clear_session()  # forgets which variables it wanted to initialize later
    return model


class Reference(NamedTuple):
    """A Keras network, pictures for it, and its logits of them."""

    model: object
    images: np.ndarray
    logits: np.ndarray


def network(name, shape, classes=1000, rng=None, factor=lambda kind, shape: 1):
    """A network of keras.applications with random weights and random BatchNorm statistics.

    Args:
        name: ours.
        shape: height and width of the pictures.
        classes: number of logits.
        rng: what draws the weights.
        factor: by what to multiply a variable, by its kind and shape.
    """
    rng = rng or np.random.default_rng(0)
    build = getattr(keras().applications, KERAS_NAMES[name])
    options = {"weights": None, "classifier_activation": None}
    model = uninitialized(lambda: build(input_shape=(*shape, 3), classes=classes, **options))
    for variable in model.weights:
        kind = variable.path.rpartition("/")[2]
        variable.assign(factor(kind, variable.shape) * random_variable(rng, kind, variable.shape))
    return model


def reference(name, shape, classes, factor):
    """As `network`, with pictures and its logits of them."""
    rng = np.random.default_rng(0)
    model = network(name, shape, classes, rng, factor)
    images = pictures(rng, shape)
    state = (
        [v.value for v in model.trainable_variables],
        [v.value for v in model.non_trainable_variables],
    )
    with jax.default_matmul_precision("highest"):
        logits = jax.jit(lambda *a: model.stateless_call(*a, training=False)[0])(*state, images)
    # Signals that die out on the way would let any network pass.
    assert relative_error(*np.asarray(logits)) > 0.03
    return Reference(model, images, np.asarray(logits))


def pictures(rng, shape):
    """Two, of noise around a colour each: averaged over a picture, any noise looks the same."""
    colours = np.reshape([[0.4, -0.3, 0.2], [-0.4, 0.5, 0.0]], (2, 1, 1, 3))
    return (colours + rng.uniform(-0.5, 0.5, (2, *shape, 3))).astype(np.float32)


def random_variable(rng, kind, shape):
    """Values of a size that keeps signals at the order of one through any number of layers."""
    if kind in ("gamma", "moving_variance"):
        return rng.uniform(0.5, 1.5, shape)
    if len(shape) == 1:
        return rng.normal(0, 0.3, shape)
    # A depthwise kernel is (kh, kw, channels, 1); Keras does not always call it one. Its gain is
    # one, since nothing may rectify between it and the pointwise kernel that follows.
    if kind == "depthwise_kernel" or (len(shape) == 4 and shape[-1] == 1):
        return rng.normal(0, np.sqrt(1 / np.prod(shape[:2])), shape)
    return rng.normal(0, np.sqrt(2 / np.prod(shape[:-1])), shape)


def save_older(model, path):
    """Weights alone in the older layout, which is that of the files that keras.io publishes."""
    import h5py
    from keras.src.legacy.saving.legacy_h5_format import save_weights_to_hdf5_group

    with h5py.File(path, "w") as file:
        save_weights_to_hdf5_group(file, model)


def relative_error(found, expected):
    """The largest deviation, in units of the largest logit."""
    return np.abs(np.asarray(found) - expected).max() / np.abs(expected).max()
