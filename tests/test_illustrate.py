"""Answers to single pictures, thumbnails and names: from networks and pictures to the record."""

import base64
import io

import numpy as np
import pytest
from flax import nnx
from PIL import Image

from corrq_jax import fidelity, illustrate
from corrq_jax.data import batches, load_photos, preprocessing
from corrq_jax.data.names import imagenet_names
from corrq_jax.data.thumbnails import thumbnail
from corrq_jax.details import FLOAT, Pictures
from corrq_jax.experiment import compare
from corrq_jax.flax import functional
from corrq_jax.methods import cells, methods
from corrq_jax.results import Run


class Net(nnx.Module):
    def __init__(self, rngs):
        self.stem = nnx.Conv(3, 16, (3, 3), rngs=rngs)
        self.last = nnx.Linear(16, 12, rngs=rngs)

    def __call__(self, x):
        return self.last(nnx.relu(self.stem(x)).mean(axis=(1, 2)))


def subject(count=12, views=2):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(count, 8, 8, 3)).astype(np.float32)
    apply, params = functional(Net(nnx.Rngs(0)))
    pictures = list(batches(images, rng.integers(-1, 12, count), 5))
    prepare = preprocessing("tf", 8)
    named = ("pixels", prepare.pixels, "classes", tuple(f"class {i}" for i in range(12)))
    options = dict(zip(named[::2], named[1::2], strict=True))
    return fidelity.Subject("mobilenet_v2", apply, params, pictures, views, "some", **options)


def decoded(uri):
    data = base64.b64decode(uri.removeprefix("data:image/jpeg;base64,"), validate=True)
    return np.asarray(Image.open(io.BytesIO(data)))


def softmax(logits):
    shares = np.exp(logits - logits.max(1, keepdims=True))
    return shares / shares.sum(1, keepdims=True)


def test_answers_are_those_of_the_logits():
    one = subject()
    changed = {**one.params, "last": {**one.params["last"]}}
    changed["last"]["kernel"] = one.params["last"]["kernel"] * 1.7
    found = one.compare(changed)
    assert found[:2] == one.measure(changed)
    images = np.concatenate([np.asarray(b[0])[np.asarray(b[2])] for b in one.pictures])
    ours, floats = (np.float64(one.apply(params, images)) for params in (changed, one.params))
    answers = found.predictions
    assert answers is not None
    assert list(answers.classes) == ours.argmax(1).tolist()
    # Three and four digits are kept.
    np.testing.assert_allclose(answers.confidence, softmax(ours).max(1), atol=6e-4)
    p, q = softmax(floats), softmax(ours)
    np.testing.assert_allclose(answers.kl, (p * np.log(p / q)).sum(1), rtol=1e-3, atol=1e-6)
    assert np.mean(answers.kl) == pytest.approx(found.views.kl, rel=1e-3)


def test_answers_to_too_many_pictures_are_not_kept(monkeypatch):
    monkeypatch.setattr(fidelity, "MOST_RECORDED", 11)
    assert subject().compare(subject().params).predictions is None
    assert compare("net", subject().params, CELLS, subject=subject()).pictures is None


def test_answers_that_are_nan_are_not_kept():
    one = subject()
    broken = {**one.params, "last": {**one.params["last"]}}
    broken["last"]["bias"] = np.full(12, np.nan, np.float32)
    assert one.compare(broken).predictions is None


CELLS = cells(methods(["linear", "optimal"]), (4,))


def test_a_comparison_records_answers_thumbnails_and_names(tmp_path):
    one = subject()
    found = compare("net", one.params, CELLS, subject=one, keep=tmp_path / "cells")
    pictures = found.pictures
    assert isinstance(pictures, Pictures)
    assert list(pictures.predictions) == [FLOAT, "linear @ 4", "optimal @ 4"]
    assert (list(pictures.labels), pictures.views) == (one.labels.tolist(), 2)
    for key in ("linear @ 4", "optimal @ 4"):
        same = np.equal(pictures.predictions[key].classes, pictures.predictions[FLOAT].classes)
        (result,) = (r for r in found.results if r.key == key)
        assert result.agreement == same.mean()
    assert [t.index for t in pictures.thumbnails] == [0, 2, 4, 6, 8, 10]
    assert pictures.names == {k: f"class {k}" for k in pictures.names}
    assert set(map(int, pictures.names)) >= set(pictures.predictions[FLOAT].classes)
    assert "-1" not in pictures.names
    assert set(found.histograms) == {"stem/kernel", "last/kernel"}
    assert Run.from_json(found.to_json()) == found
    # A run that goes on has the same.
    assert compare("net", one.params, CELLS, subject=one, keep=tmp_path / "cells") == found


def test_thumbnails_are_the_centre_views():
    one = subject()
    (made, *_) = illustrate._thumbnails(one, [4])
    image = np.concatenate([b[0] for b in one.pictures])[4]
    expected = np.clip(np.rint(image * 127.5 + 127.5), 0, 255)
    # JPEG at this quality smears noise: the picture is told from the others by far.
    errors = [np.abs(decoded(made.uri).astype(float) - other).mean() for other in
              (expected, expected[::-1], expected[:, ::-1])]  # fmt: skip
    assert errors[0] < 0.7 * min(errors[1:])


def test_at_most_so_many_thumbnails_spread_evenly(monkeypatch):
    monkeypatch.setattr(illustrate, "MOST", 4)
    assert illustrate._spread(200, 10) == [0, 60, 130, 190]
    assert illustrate._spread(3, 1) == [0, 1, 2]


def test_no_thumbnails_of_inputs_that_are_no_pictures():
    apply, params = functional(Net(nnx.Rngs(0)))
    one = fidelity.Subject("mobilenet_v2", apply, params, subject().pictures, 2)
    assert list(illustrate._thumbnails(one, [0])) == []


@pytest.mark.parametrize("name", ["efficientnet_lite", "caffe", "tf", "torch"])
def test_pixels_are_those_that_were_prepared(name):
    prepare, photo = preprocessing(name, 40), load_photos()[0].image.convert("RGB")
    box = prepare.boxes(photo)[0]
    if prepare.geometry == "crop":
        expected = photo.crop(box).resize((40, 40), Image.Resampling.BICUBIC)
    else:
        expected = photo.resize((40, 40), Image.Resampling[prepare.resample.upper()], box=box)
    np.testing.assert_array_equal(prepare.pixels(prepare(photo)), np.asarray(expected))


def test_thumbnails_are_small():
    grey = np.full((28, 28, 1), 90, np.uint8)
    assert (decoded(thumbnail(grey)) == 90).all()
    assert decoded(thumbnail(grey)).shape == (28, 28)
    large = np.zeros((300, 150, 3), np.uint8)
    assert decoded(thumbnail(large)).shape == (96, 48, 3)
    assert len(thumbnail(large)) < 1500


def test_names_are_those_of_the_photos():
    names = imagenet_names()
    assert len(names) == len(set(names)) == 1000
    cats = {photo.label: names[photo.label] for photo in load_photos() if "cat" in photo.name}
    assert set(cats.values()) >= {"tabby", "Siamese cat"}
