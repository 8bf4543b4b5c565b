import numpy as np
import pytest
from PIL import Image

from corrq_jax import data
from corrq_jax.errors import InputError


def gradient(width, height):
    """Red counts columns, green rows."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = np.arange(width)[None], np.arange(height)[:, None]
    return Image.fromarray(pixels)


def test_centre_crop_and_normalization():
    preprocess = data.Preprocess(size=7, crop_fraction=7 / 8, mean=127.0, std=128.0)
    found = preprocess(gradient(14, 8))  # a crop of 7, not resized
    columns, rows = np.arange(4, 11), np.arange(1, 8)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[0, :, 0], (columns - 127) / 128, rtol=1e-6)
    np.testing.assert_allclose(found[:, 0, 1], (rows - 127) / 128, rtol=1e-6)
    np.testing.assert_allclose(found[..., 2], -127 / 128, rtol=1e-6)


def test_values_for_each_channel():
    preprocess = data.Preprocess(4, 1.0, mean=(1.0, 2.0, 3.0), std=(1.0, 2.0, 4.0))
    found = preprocess(Image.new("RGB", (4, 4), (11, 22, 43)))
    np.testing.assert_array_equal(found, np.broadcast_to(np.float32([10, 10, 10]), (4, 4, 3)))


def test_channels_in_reverse():
    preprocess = data.Preprocess(4, 1.0, (1.0, 2.0, 3.0), (1.0, 2.0, 4.0), channels="BGR")
    found = preprocess(Image.new("RGB", (4, 4), (11, 22, 43)))
    np.testing.assert_array_equal(found, np.broadcast_to(np.float32([42, 10, 2]), (4, 4, 3)))


def test_grey():
    pixels = np.arange(56, dtype=np.uint8).reshape(7, 8)[:, :7]
    prepare = data.Preprocess(7, 1.0, 10.0, 2.0, channels="L", typical=((20.0,), (4.0,)))
    for image in (Image.fromarray(pixels), Image.fromarray(pixels).convert("RGB")):
        np.testing.assert_array_equal(prepare(image), (np.float32(pixels)[..., None] - 10) / 2)
    mean, variance = prepare.expected_moments()
    assert (mean.tolist(), variance.tolist()) == ([5.0], [4.0])
    with pytest.raises(InputError, match=r"typical is .*; twice 1 values are needed"):
        data.Preprocess(7, 1.0, 10.0, 2.0, channels="L")


def test_bicubic_differs_from_nearest():
    image = gradient(64, 64).rotate(30)
    bicubic, nearest = (
        data.Preprocess(16, 1.0, 0.0, 1.0, resample)(image) for resample in ("bicubic", "nearest")
    )
    expected = np.asarray(image.resize((16, 16), Image.Resampling.BICUBIC), np.float32)
    np.testing.assert_array_equal(bicubic, expected)
    assert not np.array_equal(bicubic, nearest)


def test_other_modes_become_rgb():
    preprocess = data.Preprocess(4, 1.0, 0.0, 1.0)
    for mode in ("L", "RGBA", "P", "CMYK"):
        assert preprocess(Image.new(mode, (9, 6))).shape == (4, 4, 3)


def test_tiny_picture():
    assert data.Preprocess(8, 0.5, 0.0, 1.0)(Image.new("RGB", (1, 3))).shape == (8, 8, 3)


def test_boxes_are_squares_within_the_picture():
    boxes = data.Preprocess(8, 0.875, 0.0, 1.0).boxes(gradient(101, 80))
    assert boxes[0] == (16, 5, 86, 75)
    assert boxes[1:] == ((0, 0, 70, 70), (31, 0, 101, 70), (0, 10, 70, 80), (31, 10, 101, 80))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"size": 0}, "size is 0"),
        ({"crop_fraction": 0.0}, "crop_fraction is 0.0"),
        ({"crop_fraction": 1.1}, "crop_fraction is 1.1"),
        ({"crop_fraction": float("nan")}, "crop_fraction"),
        ({"std": 0.0}, "std is 0.0"),
        ({"std": (1.0, -1.0, 1.0)}, "std is"),
        ({"mean": (1.0, 2.0)}, "mean is"),
        ({"resample": "cubic"}, "choose one of nearest, bilinear, bicubic"),
        ({"channels": "GBR"}, "channels is 'GBR'; choose one of RGB, BGR"),
        ({"geometry": "tf"}, "geometry is 'tf'; choose one of crop, keras"),
    ],
)
def test_bad_values(changes, match):
    good = {"size": 8, "crop_fraction": 1.0, "mean": 0.0, "std": 1.0}
    with pytest.raises(InputError, match=match):
        data.Preprocess(**{**good, **changes})


def test_preprocessing_by_name():
    preprocess = data.preprocessing("efficientnet_lite", 224)
    assert preprocess == data.Preprocess(224, 0.875, 127.0, 128.0, "bicubic")
    assert hash(preprocess) == hash(data.preprocessing("efficientnet_lite", 224))
    assert data.preprocessing("efficientnet_lite", 300).crop_fraction == 300 / 332
    caffe = data.preprocessing("caffe", 299)
    assert (caffe.size, caffe.crop_fraction, caffe.channels) == (299, 0.875, "BGR")
    with pytest.raises(InputError, match="choose one of efficientnet_lite, caffe, tf, torch"):
        data.preprocessing("vgg", 224)


@pytest.mark.parametrize("name", ["caffe", "tf", "torch", "efficientnet_lite"])
def test_expected_moments_are_those_of_imagenets_pixels(name):
    prepare = data.preprocessing(name, 8)
    mean, std = 255 * np.array([0.485, 0.456, 0.406]), 255 * np.array([0.229, 0.224, 0.225])
    # A picture whose pixels have each channel's mean, and others a deviation above and below it.
    levels = [np.round(mean + k * std).astype(np.uint8) for k in (-1, 0, 1)]
    low, middle, high = (
        prepare(Image.new("RGB", (9, 9), tuple(map(int, level))))[0, 0].astype(float)
        for level in levels
    )
    found_mean, found_variance = prepare.expected_moments()
    step = 1 / np.min(prepare.std)  # pixels are whole numbers
    np.testing.assert_allclose(found_mean, middle, atol=step)
    np.testing.assert_allclose(np.sqrt(found_variance), (high - low) / 2, atol=step)
