"""Preprocessing against Keras's own functions."""

import io

import numpy as np
import pytest
from PIL import Image

from corrq_jax import data

SIZES = [(41, 30), (30, 41), (40, 31), (31, 40), (37, 37), (7, 50), (50, 7), (32, 32), (1, 3)]


def noise(width, height):
    """A picture in which each pixel counts."""
    rng = np.random.default_rng(width * 1000 + height)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))


def loaded(keras, image, size, interpolation):
    """What Keras makes of the picture's file."""
    file = io.BytesIO()
    image.save(file, "PNG")
    options = {"keep_aspect_ratio": True, "interpolation": interpolation}
    found = keras.utils.load_img(file, target_size=(size, size), **options)
    return keras.utils.img_to_array(found)


def plain(size, crop_fraction, resample="bicubic"):
    return data.Preprocess(size, crop_fraction, 0.0, 1.0, resample, geometry="keras")


@pytest.mark.parametrize("mode", ["caffe", "tf", "torch"])
def test_values(keras, mode):
    # All values of 0 to 255 in each channel, at another place in each.
    pixels = np.stack([np.roll(np.arange(256), shift) for shift in (0, 85, 170)], axis=-1)
    image = Image.fromarray(pixels.reshape(16, 16, 3).astype(np.uint8))
    expected = keras.applications.imagenet_utils.preprocess_input(
        pixels.reshape(16, 16, 3).astype(np.float32), mode=mode
    )
    prepare = data.preprocessing(mode, 16)
    found = prepare.at(image, (0, 0, 16, 16))
    assert found.dtype == np.float32
    # "caffe" is one subtraction. Keras divides by 127.5 or 255 first and subtracts then: both ways
    # round a few times, by 6e-8 of values of at most 2.7.
    np.testing.assert_allclose(found, expected, rtol=0, atol=0 if mode == "caffe" else 1e-6)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_geometry_of_whole_pictures(keras, size, interpolation):
    image = noise(*size)
    for target in (16, 31, 64):  # smaller, odd, larger
        np.testing.assert_array_equal(
            plain(target, 1.0, interpolation)(image),
            loaded(keras, image, target, interpolation),
        )


@pytest.mark.parametrize("size", SIZES[:-1], ids=str)
def test_geometry_of_centre_crops(keras, size):
    """As Keras makes 32 x 32 pixels, of which the 28 x 28 in the middle are left."""
    image = noise(*size)
    expected = loaded(keras, image, 32, "bicubic")[2:-2, 2:-2]
    # The weights of the filter are the same but for rounding, which can turn a value of n + 1/2.
    np.testing.assert_allclose(plain(28, 28 / 32)(image), expected, rtol=0, atol=1)
    assert np.mean(plain(28, 28 / 32)(image) != expected) < 0.001


def test_networks_of_keras(keras):
    image = noise(97, 75)
    expected = keras.applications.vgg16.preprocess_input(loaded(keras, image, 64, "bicubic"))
    prepare = data.preprocessing("caffe", 56)
    np.testing.assert_allclose(prepare(image), expected[4:-4, 4:-4], rtol=0, atol=1)


def test_cutting_first_differs(keras):
    """Why there are two geometries: neither is the other on an odd margin or at the border."""
    image = noise(41, 30)
    cut = data.Preprocess(16, 1.0, 0.0, 1.0)(image)
    assert np.any(cut != loaded(keras, image, 16, "bicubic"))


@pytest.mark.parametrize("size", [*SIZES, (1, 1)], ids=str)
@pytest.mark.parametrize("crop_fraction", [1.0, 0.875, 0.3, 1 / 3])
def test_crops_of_keras_lie_within_the_picture(size, crop_fraction):
    image = noise(*size)
    prepare = plain(8, crop_fraction)
    for left, upper, right, lower in prepare.boxes(image):
        assert 0 <= left < right <= size[0]
        assert 0 <= upper < lower <= size[1]
        assert prepare.at(image, (left, upper, right, lower)).shape == (8, 8, 3)
