"""VGG-16: files like the published one, its size of pictures, and torchvision's weights."""

import math

import h5py
import jax
import jax.numpy as jnp
import keras_reference
import numpy as np
import pytest
from flax import nnx
from jax import lax
from safetensors.numpy import save_file

from corrq_jax import models
from corrq_jax.errors import InputError
from corrq_jax.models import vgg16, vgg16_weights

NAME, TORCH_NAME = "vgg16", "vgg16_torchvision"
# Float32 sums in another order, of up to 25,088 products, over 16 layers.
TOLERANCE = 1e-4


@jax.jit
def logits(network, images):
    with jax.default_matmul_precision("highest"):
        return network(images)


def leaves(network):
    return {path: leaf.get_value() for path, leaf in nnx.to_flat_state(nnx.state(network))}


@pytest.mark.parametrize("name", [NAME, TORCH_NAME])
def test_parameter_count(name):
    shapes = [leaf.shape for leaf in leaves(nnx.eval_shape(lambda: models.create(name))).values()]
    assert sum(map(math.prod, shapes)) == 138_357_544  # as Keras and torchvision publish
    assert len(shapes) == len(vgg16_weights.torch_names(name))


def write_constants(path, layers):
    """A file like the published one, whose arrays are called block1_conv1_W_1:0 and so on.

    Each array holds its own constant, so that the file of 138 million values is small.
    """
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [name.encode() for name in layers]
        for index, (name, shapes) in enumerate(layers.items()):
            weights = [f"{name}_{letter}_1:0" for letter in "Wb"[: len(shapes)]]
            group = file.create_group(name)
            group.attrs["weight_names"] = [weight.encode() for weight in weights]
            for weight, shape, value in zip(weights, shapes, (index, -index), strict=False):
                constant = np.full(shape, value, np.float16)
                group.create_dataset(weight, data=constant, compression=1)


def published_layers(flattened=25088):
    """The shapes in the published file, in its order."""
    convolutions = {
        f"block{block}_conv{conv}": [(3, 3, 0, features), (features,)]
        for block, convs, features in [
            (1, 2, 64),
            (2, 2, 128),
            (3, 3, 256),
            (4, 3, 512),
            (5, 3, 512),
        ]
        for conv in range(1, convs + 1)
    }
    before = 3
    for shapes in convolutions.values():
        shapes[0] = (3, 3, before, *shapes[1])
        before = shapes[1][0]
    return {
        **{"input_1": [], **convolutions, "block5_pool": [], "flatten": []},
        "fc1": [(flattened, 4096), (4096,)],
        "fc2": [(4096, 4096), (4096,)],
        "predictions": [(4096, 1000), (1000,)],
    }


def test_a_file_like_the_published_one_fills_the_network_at_its_own_size(tmp_path):
    layers = published_layers()
    write_constants(tmp_path / "x.h5", layers)
    filled = leaves(models.load(NAME, tmp_path / "x.h5"))
    for index, (name, shapes) in enumerate(layers.items()):
        path = (name.replace("block", "stage").replace("predictions", "classifier")).split("_")
        for part, value, shape in zip(("kernel", "bias"), (index, -index), shapes, strict=False):
            array = filled.pop((*path, part))
            assert array.shape == shape
            assert array.min() == array.max() == value
    assert not filled


def test_weights_for_other_pictures_are_refused(tmp_path):
    write_constants(tmp_path / "x.h5", published_layers(flattened=3072))
    with pytest.raises(InputError, match=r"1 problems(.|\n)*shape of fc1, array 0: \(3072, 4096\)"):
        models.load(NAME, tmp_path / "x.h5")


def test_pictures_of_another_size_are_refused():
    network = nnx.eval_shape(lambda: vgg16.create(NAME, resolution=(75, 101), rngs=nnx.Rngs(0)))
    for shape in [(76, 101), (101, 75)]:  # the first would have as many features
        with pytest.raises(InputError, match=f"{shape[0]} x {shape[1]} pixels, .* 75 x 101 only"):
            nnx.eval_shape(lambda x: network(x), jax.ShapeDtypeStruct((2, *shape, 3), np.float32))
    with pytest.raises(InputError, match="at least 32 x 32"):
        vgg16.create(NAME, resolution=(31, 64), rngs=nnx.Rngs(0))


# torchvision's `features`: the index of each convolution, its features, and where pooling follows.
TORCH_CONVOLUTIONS = {
    **{0: 64, 2: 64, 5: 128, 7: 128, 10: 256, 12: 256, 14: 256},
    **{17: 512, 19: 512, 21: 512, 24: 512, 26: 512, 28: 512},
}
TORCH_POOLINGS = (4, 9, 16, 23, 30)
TORCH_DENSE = {0: (4096, 512 * 7 * 7), 3: (4096, 4096), 6: (1000, 4096)}


def random_state_dict(rng):
    arrays, before = {}, 3

    def add(name, *shape):
        deviation = math.sqrt(2 / math.prod(shape[1:]))
        arrays[f"{name}.weight"] = rng.standard_normal(shape, np.float32) * np.float32(deviation)
        arrays[f"{name}.bias"] = rng.normal(0, 0.3, shape[0]).astype(np.float32)

    for index, features in TORCH_CONVOLUTIONS.items():
        add(f"features.{index}", features, before, 3, 3)
        before = features
    for index, shape in TORCH_DENSE.items():
        add(f"classifier.{index}", *shape)
    return arrays


def plain_forward(arrays, images):
    """From the names in the state dict; images (batch, channels, 224, 224), as all in PyTorch."""
    x = images
    for index in range(31):
        if index in TORCH_POOLINGS:
            batch, channels, height, width = x.shape
            x = x.reshape(batch, channels, height // 2, 2, width // 2, 2).max((3, 5))
        elif index in TORCH_CONVOLUTIONS:
            kernel, bias = (arrays[f"features.{index}.{part}"] for part in ("weight", "bias"))
            pads = [(1, 1), (1, 1)]
            x = lax.conv_general_dilated(x, kernel, (1, 1), pads, precision="highest")
            x = jnp.maximum(x + bias[:, None, None], 0)
    x = x.reshape(len(x), -1)
    for index in TORCH_DENSE:
        weight, bias = (arrays[f"classifier.{index}.{part}"] for part in ("weight", "bias"))
        x = jnp.matmul(x, weight.T, precision="highest") + bias
        x = x if index == 6 else jnp.maximum(x, 0)
    return x


def test_torchvision_logits_equal_the_plain_forward(tmp_path):
    rng = np.random.default_rng(0)
    arrays = random_state_dict(rng)
    path = tmp_path / "x.safetensors"
    save_file(arrays, path)
    network = models.load(TORCH_NAME, path)
    path.unlink()  # half a gigabyte
    images = rng.uniform(-2, 2, (1, 224, 224, 3)).astype(np.float32)
    expected = jax.jit(plain_forward)(arrays, images.transpose(0, 3, 1, 2))
    found = logits(network, images)
    assert found.shape == (1, 1000)
    assert keras_reference.relative_error(found, np.asarray(expected)) < TOLERANCE


def test_a_matrix_that_cannot_be_of_fc1_is_reported():
    arrays = {
        entry.name: np.zeros((2, 2), np.float32)
        for entry in vgg16_weights.torch_names(TORCH_NAME).values()
    }
    arrays["classifier.0.weight"] = np.zeros((25088, 4096), np.float32)  # Flax's layout
    with pytest.raises(InputError, match=r"shape of classifier\.0\.weight: \(25088, 4096\) cannot"):
        models.load(TORCH_NAME, arrays)
