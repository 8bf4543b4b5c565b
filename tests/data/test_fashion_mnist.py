"""Fashion-MNIST's files: small ones made here, and the real ones where they are installed."""

import gzip
import io
import struct
import sys

import numpy as np
import pytest
from PIL import Image

from corrq_jax import data
from corrq_jax.data import fashion_mnist
from corrq_jax.errors import FileFormatError, InputError

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (7, 28, 28), np.uint8)
LABELS = np.array([9, 0, 3, 3, 1, 7, 2], np.uint8)
IMAGES_NAME, LABELS_NAME = "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"


def idx(array, magic):
    return struct.pack(f">{1 + array.ndim}I", magic, *array.shape) + array.tobytes()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / IMAGES_NAME).write_bytes(gzip.compress(idx(IMAGES, 2051)))
    (tmp_path / LABELS_NAME).write_bytes(gzip.compress(idx(LABELS, 2049)))
    return tmp_path


def test_files(folder):
    found = data.read_fashion_mnist("test", folder)
    np.testing.assert_array_equal(found.images, IMAGES)
    np.testing.assert_array_equal(found.labels, LABELS)
    assert (found.images.dtype, found.labels.dtype, len(found)) == (np.uint8, np.int32, 7)


def test_pictures_come_through_the_loader_unchanged(folder):
    source = data.read_fashion_mnist("test", folder)
    plain = data.Preprocess(28, 1.0, mean=0.0, std=1.0)
    ((images, labels, mask),) = data.load(source, plain, 7, workers=0)
    np.testing.assert_array_equal(images, np.repeat(IMAGES[..., None], 3, axis=-1))
    np.testing.assert_array_equal(labels, LABELS)
    assert mask.all()


def test_identity_tells_data_apart(folder):
    first = data.read_fashion_mnist("test", folder).identity
    assert first == data.read_fashion_mnist("test", folder).identity
    assert first.startswith("fashion_mnist/test:")
    (folder / LABELS_NAME).write_bytes(gzip.compress(idx(LABELS[::-1], 2049)))
    assert data.read_fashion_mnist("test", folder).identity != first


def test_what_is_not_there(folder):
    with pytest.raises(InputError, match=r"no split 'validation'; give 'train' or 'test'"):
        data.read_fashion_mnist("validation", folder)
    with pytest.raises(InputError, match=r"no file .*train-images.*apt-get install dataset-fashio"):
        data.read_fashion_mnist("train", folder)


BAD = {
    "not gzip": (IMAGES_NAME, idx(IMAGES, 2051), "[Nn]ot a gzipped file"),
    "cut off": (IMAGES_NAME, gzip.compress(idx(IMAGES, 2051))[:-900], "ended before"),
    "damaged": (IMAGES_NAME, gzip.compress(b"")[:10] + b"\xff" * 40, "invalid block type"),
    "empty": (IMAGES_NAME, gzip.compress(b""), "ends within its header"),
    "labels for images": (
        IMAGES_NAME,
        gzip.compress(idx(np.tile(LABELS, 2), 2049)),
        "0x00000801, 14,",
    ),
    "another shape": (IMAGES_NAME, gzip.compress(idx(IMAGES[:, 1:], 2051)), r"7, \[27, 28\], not"),
    "too many": (LABELS_NAME, gzip.compress(struct.pack(">2I", 2049, 60_001)), "up to 60,000"),
    "too few": (IMAGES_NAME, gzip.compress(idx(IMAGES, 2051)[:-1]), "does not have the 7 entries"),
    "too long": (LABELS_NAME, gzip.compress(idx(LABELS, 2049) + b"\0"), "not have the 7 entries"),
    "labels missing": (LABELS_NAME, gzip.compress(idx(LABELS[1:], 2049)), "7 pictures and 6 labe"),
    "a strange label": (LABELS_NAME, gzip.compress(idx(LABELS + 1, 2049)), r"label 10;.*0 to 9"),
}


@pytest.mark.parametrize("case", BAD)
def test_damaged_files(folder, case):
    name, content, message = BAD[case]
    (folder / name).write_bytes(content)
    with pytest.raises(FileFormatError, match=message) as caught:
        data.read_fashion_mnist("test", folder)
    assert str(folder) in str(caught.value)


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def without_debian(monkeypatch, tmp_path):
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path / "nowhere")


def test_tfds(prepare, without_debian, monkeypatch):
    import tensorflow_datasets as tfds

    rows = [(png(image), int(label), {}) for image, label in zip(IMAGES, LABELS, strict=True)]
    monkeypatch.setattr(
        tfds.core.constants, "DATA_DIR", str(prepare("fashion_mnist", "test", rows))
    )
    found = data.read_fashion_mnist("test")
    # TFDS shuffles.
    order = [int((found.images == image).all((1, 2)).argmax()) for image in IMAGES]
    assert sorted(order) == list(range(7))
    np.testing.assert_array_equal(found.images[order], IMAGES)
    np.testing.assert_array_equal(found.labels[order], LABELS)


def test_neither_debian_nor_tfds(without_debian, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(InputError, match=r"not on this machine.*apt-get.*four \.gz files.*TFDS"):
        data.read_fashion_mnist("test")


@pytest.mark.skipif(
    not fashion_mnist.DEBIAN_FOLDER.is_dir(), reason="apt-get install dataset-fashion-mnist"
)
@pytest.mark.parametrize(("split", "count"), [("train", 60_000), ("test", 10_000)])
def test_the_real_files(split, count):
    found = data.read_fashion_mnist(split)
    assert found.images.shape == (count, 28, 28)
    # As its authors say: so many of each class.
    np.testing.assert_array_equal(np.bincount(found.labels), np.full(10, count // 10))
    assert len(fashion_mnist.FASHION_CLASSES) == 10
