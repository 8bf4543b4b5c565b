import importlib.resources
import importlib.util
import tarfile

import jax
import numpy as np
import pytest
from flax import nnx

from corrq_jax import data, evaluation, models
from corrq_jax.data import photos
from corrq_jax.errors import FileFormatError, MissingDependencyError


@pytest.fixture(scope="module")
def all_photos():
    return data.load_photos()


def test_photos_and_labels(all_photos):
    assert len(all_photos) == len({photo.name for photo in all_photos}) == 24
    assert {photo.image.mode for photo in all_photos} == {"RGB"}
    labels = {photo.name: photo.label for photo in all_photos}
    assert labels["imagenet_00_243.jpg"] == 243  # bull mastiff
    assert labels["imagenet_15_99.jpg"] == 99  # goose
    assert labels["n02123597_284_Siamese_cat.jpg"] == 284
    assert sorted(labels.values())[0] == 22


def test_order_is_always_the_same(all_photos):
    names = [photo.name for photo in all_photos]
    assert names[:20] == sorted(names[:20])
    assert names[20:] == sorted(names[20:])


def test_the_float_network_recognizes_the_photos(all_photos):
    info = models.info("efficientnet_lite0")
    preprocess = data.preprocessing(info.preprocessing, info.resolution)
    images = np.stack([preprocess(photo.image) for photo in all_photos])
    labels = np.array([photo.label for photo in all_photos])
    graph, state = nnx.split(models.load(info.name))
    with jax.default_matmul_precision("highest"):
        metrics = evaluation.evaluate(
            lambda state, images: nnx.merge(graph, state)(images),
            state,
            data.batches(images, labels, 16),
        )
    assert metrics.count == metrics.labelled == 24
    assert metrics.top1 * 24 == pytest.approx(22)
    assert metrics.top5 * 24 == pytest.approx(23)


def test_ten_views(all_photos):
    preprocess = data.Preprocess(size=48, crop_fraction=0.75, mean=127.0, std=128.0)
    photo = all_photos[0]
    ten = data.views(photo, preprocess)
    assert ten.shape == (10, 48, 48, 3)
    np.testing.assert_array_equal(ten[0], preprocess(photo.image))
    np.testing.assert_array_equal(ten[1::2], ten[::2, :, ::-1])
    width, height = photo.image.size
    side = int(0.75 * min(width, height))
    lower_right = (width - side, height - side, width, height)
    np.testing.assert_array_equal(ten[8], preprocess.at(photo.image, lower_right))
    assert len({view.tobytes() for view in ten}) == 10


def test_all_views_keep_photos_and_labels_together(all_photos):
    preprocess = data.Preprocess(size=16, crop_fraction=0.875, mean=0.0, std=1.0)
    images, labels = data.all_views(all_photos[:3], preprocess)
    assert images.shape == (30, 16, 16, 3)
    assert labels.tolist() == [p.label for p in all_photos[:3] for _ in range(10)]
    np.testing.assert_array_equal(images[10:20], data.views(all_photos[1], preprocess))


def test_missing_foolbox_says_how_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"foolbox.*pip install 'corrq_jax\[demo\]'"):
        data.load_photos()


def test_incomplete_foolbox_is_reported(monkeypatch):
    monkeypatch.setattr(photos, "_FOOLBOX_COUNT", 21)
    with pytest.raises(FileFormatError, match="20 photos instead of 21"):
        data.load_photos()


def test_the_archive_of_cats_holds_four_pictures_and_nothing_else():
    packed = importlib.resources.files("corrq_jax.data").joinpath("assets/cats.tar.gz")
    with packed.open("rb") as file, tarfile.open(fileobj=file) as archive:
        labels = sorted(int(name.split("_")[1]) for name in archive.getnames())
    assert labels == [281, 283, 284, 285]
