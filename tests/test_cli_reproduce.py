"""`corrq reproduce`: real file formats, real pictures, a run that goes on."""

import json
import pathlib

import jax
import keras_reference
import numpy as np
import pytest
from PIL import Image

from corrq_jax import fidelity
from corrq_jax.data import load_photos
from corrq_jax.results import Run

pytestmark = [
    pytest.mark.filterwarnings(
        # Keras's saving calls arrays in a way that NumPy 2 warns of.
        "ignore:__array__ implementation doesn't accept:DeprecationWarning"
    ),
    # The command line shows this one in a line on stderr.
    pytest.mark.filterwarnings("default:left out:UserWarning"),
]

PLAIN = ("--method", "exponential", "--method", "exponential + correlation")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """MobileNet-v2 with random weights, as Keras saves them."""
    path = tmp_path_factory.mktemp("weights") / "mobilenet_v2.weights.h5"
    keras_reference.network("mobilenet_v2", (224, 224)).save_weights(path)
    return path


@pytest.fixture
def pictures(tmp_path):
    """Five of the photos and a damaged file, side by side, with a file of labels."""
    folder = tmp_path / "val"
    folder.mkdir()
    photos = load_photos()[:5]
    for number, photo in enumerate(photos):
        photo.image.resize((96, 80)).save(folder / f"ILSVRC2012_val_{number:08}.JPEG")
    (folder / "ILSVRC2012_val_00000009.JPEG").write_bytes(b"no picture")
    labels = tmp_path / "labels.txt"
    lines = [f"ILSVRC2012_val_{n:08}.JPEG {photo.label}" for n, photo in enumerate(photos)]
    labels.write_text("\n".join([*lines, "ILSVRC2012_val_00000009.JPEG 7"]))
    return folder, labels


def read(folder):
    return Run.from_json((folder / "results.json").read_text())


def test_a_folder_with_labels_and_keras_weights(run, weights, pictures, tmp_path, monkeypatch):
    folder, labels = pictures
    out = tmp_path / "out"
    words = ("reproduce", "--model", "mobilenet_v2", "--weights", weights, "--data", folder)
    words += ("--labels", labels, "--batch-size", "5", "--bits", "5", *PLAIN, "-o", out)
    code, shown, told = run(*words)
    assert code == 0, told
    assert "left out ILSVRC2012_val_00000009.JPEG" in told
    assert "Beside the published figures" in shown
    assert "77 %" in shown
    assert "5 pictures are no test set" in shown
    published = json.loads((out / "mobilenet_v2" / "published.json").read_text())
    assert [one["published"]["top5"] for one in published] == [0.77]
    assert published[0]["measured"][0][0] == "exponential"
    assert told.count("exponential + correlation, 5 bits: rho") == 1
    first = read(out / "mobilenet_v2")
    assert [r.key for r in first.results] == ["exponential @ 5", "exponential + correlation @ 5"]
    assert (first.photos, first.views) == (5, 5)
    assert all(r.top5 is not None for r in first.results)
    assert "Part I" in (out / "mobilenet_v2" / "index.html").read_text()
    # Again: nothing is measured anew, not even if the network could not be run.
    monkeypatch.setattr(fidelity.Subject, "compare", None)
    code, again, _ = run(*words)
    assert (code, again) == (0, shown)
    assert read(out / "mobilenet_v2") == first
    code, again, _ = run(*words, "--json")
    found = json.loads(again)["mobilenet_v2"]
    assert Run.from_json(json.dumps(found["run"])) == first
    assert found["published"] == published
    assert [len(first.pictures.thumbnails), len(first.pictures.predictions)] == [5, 3]


def test_tfds_in_bfloat16(run, imagenette, weights, tmp_path):
    out = tmp_path / "out"
    words = ("--model", "mobilenet_v2", "--weights", weights, "--data", "imagenette")
    words += ("--data-dir", imagenette, "--batch-size", "2", "--dtype", "bfloat16")
    code, _, told = run("reproduce", *words, "--bits", "4", "--method", "optimal", "-o", out)
    assert code == 0, told
    assert "left out imagenette/full-size-v2:1.0.0/validation[" in told  # the damaged one
    found = read(out / "mobilenet_v2")
    assert found.environment["computed in"] == "bfloat16"
    assert found.environment["data"] == "imagenette/full-size-v2:1.0.0/validation"
    assert found.photos == 3


@pytest.mark.usefixtures("four_photos")
def test_the_installed_network_on_the_photos(run, tmp_path):
    out = tmp_path / "out"
    words = ("--model", "efficientnet_lite0", "--data", "photos", "--bits", "3")
    code, shown, _ = run("reproduce", *words, "--method", "mixed bits, entropy-coded", "-o", out)
    assert code == 0
    assert "published" not in shown
    found = read(out / "efficientnet_lite0")
    assert (found.photos, found.views) == (4, 40)
    assert found.results[0].agreement > 0.9
    (cell,) = (out / "efficientnet_lite0" / "cells").iterdir()
    assert json.loads(cell.read_text())["environment"]["data"] == "photos, 10 views each"


def test_wrong_words_are_told_before_any_work(failed, tmp_path, monkeypatch):
    monkeypatch.setattr(fidelity, "subject", None)
    monkeypatch.chdir(tmp_path)
    assert "no network 'vgg11'" in failed("reproduce", "--model", "vgg11", "--data", "photos")
    assert "--weights is for one network" in failed(
        "reproduce", "--weights", "x.h5", "--data", "photos"
    )
    assert "no method" in failed("reproduce", "--method", "best", "--data", "photos")
    assert "bit widths" in failed("reproduce", "--bits", "2.5", *PLAIN, "--data", "photos")
    assert list(pathlib.Path().iterdir()) == []


def test_options_that_do_not_fit(tmp_path):
    from corrq_jax.errors import InputError

    name = "efficientnet_lite0"
    for options in ({"limit": 0}, {"download": True}, {"split": "test"}, {"labels": "x.txt"}):
        with pytest.raises(InputError, match=f"^{next(iter(options))} cannot be used with photos"):
            fidelity.subject(name, **options)
    with pytest.raises(InputError, match=r"^labels cannot be used with imagenette"):
        fidelity.subject(name, "imagenette", labels="labels.txt")
    with pytest.raises(InputError, match=r"^split, data_dir cannot be used with"):
        fidelity.subject(name, tmp_path, split="test", data_dir="data")
    with pytest.raises(InputError, match=r"dtype is 'float17'; give one of bfloat16, "):
        fidelity.subject(name, dtype="float17")
    with pytest.raises(InputError, match="batch_size is 0"):
        fidelity.subject(name, batch_size=0)
    with pytest.raises(InputError, match="there is no folder /nowhere"):
        fidelity.subject(name, "/nowhere")
    with pytest.raises(InputError, match="no/where is no folder, and as a data set of TFDS"):
        fidelity.subject(name, "no/where")
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "x.png").write_bytes(b"no picture")
    found = fidelity.subject(name, tmp_path)
    with pytest.raises(
        InputError, match=r"none of the 1 pictures could be read; the first: 0/x\.png: Unid"
    ):
        found.measure(found.params)


def test_pictures_are_read_once_if_there_is_room(tmp_path, monkeypatch):
    (tmp_path / "0").mkdir()
    for number in range(3):
        Image.new("RGB", (9, 9), (80 * number, 0, 0)).save(tmp_path / "0" / f"{number}.png")
    kept = fidelity.subject("efficientnet_lite0", tmp_path, batch_size=2).pictures
    passes = [list(kept), list(kept)]
    assert all(a is b for a, b in zip(*passes, strict=True))
    monkeypatch.setattr(fidelity, "_room", lambda: 1e6)  # less than two of the batches
    read_again = fidelity.subject("efficientnet_lite0", tmp_path, batch_size=2).pictures
    passes = [list(read_again), list(read_again)]
    assert not any(a is b for a, b in zip(*passes, strict=True))
    for a, b in zip(*passes, strict=True):
        assert jax.tree.all(jax.tree.map(np.array_equal, a, b))
