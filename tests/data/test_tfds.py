import importlib.util
import subprocess
import sys

import pytest

from corrq_jax import data
from corrq_jax.errors import InputError, MissingDependencyError

PREPROCESS = data.Preprocess(size=8, crop_fraction=1.0, mean=0.0, std=1.0)


def test_imagenette_has_the_indices_of_imagenet(imagenette):
    source = data.tfds_source("imagenette", data_dir=imagenette)
    assert len(source) == 4
    assert source.identity == "imagenette/full-size-v2:1.0.0/validation"
    assert sorted(record.label for record in map(source.__getitem__, range(4))) == [0, 0, 497, 497]
    # Red tells which picture it is, whatever the order: TFDS shuffles.
    pictures = data.load(source, PREPROCESS, 4, workers=2)
    ((images, labels, mask),) = pictures
    found = sorted(zip(images[mask][:, 0, 0, 0].round(-1), labels[mask], strict=True))
    assert found == [(0, 0), (80, 497), (240, 0)]
    ((name, reason),) = pictures.corrupt.items()
    assert name.startswith("imagenette/full-size-v2:1.0.0/validation[")
    assert "UnidentifiedImageError" in reason


def test_imagenet_v2(imagenet_v2):
    source = data.tfds_source("imagenet_v2/matched-frequency", data_dir=imagenet_v2)
    assert source.identity == "imagenet_v2/matched-frequency:3.0.0/test"
    records = [source[index] for index in range(len(source))]
    assert sorted((r.name, r.label) for r in records) == [
        (f"{number}/x.jpeg", number * 100) for number in range(5)
    ]
    again = data.tfds_source("imagenet_v2/matched-frequency", data_dir=imagenet_v2)
    assert records == [again[index] for index in range(len(again))]


def test_part_of_a_split(imagenet_v2):
    source = data.tfds_source("imagenet_v2", "test[:2]", imagenet_v2)
    assert len(source) == 2
    assert source.identity.endswith("/test[:2]")


def test_imagenet2012_with_unknown_labels(prepare):
    rows = [(b"any", label, {"file_name": f"{label}.JPEG"}) for label in (-1, "n15075141")]
    root = prepare("imagenet2012", "validation", rows)
    source = data.tfds_source("imagenet2012", data_dir=root)
    assert sorted((source[i].name, source[i].label) for i in (0, 1)) == [
        ("-1.JPEG", -1),
        ("n15075141.JPEG", 999),
    ]


def test_as_many_classes_as_the_network_has():
    import tensorflow_datasets as tfds

    with tfds.testing.mock_data(
        as_data_source_fn=lambda *_, **__: [{"image": b"any", "label": 7}], num_examples=1
    ):
        source = data.tfds_source("fashion_mnist", "test", classes=10)
        assert source[0] == (f"{source.identity}[0]", b"any", 7)
        with pytest.raises(InputError, match=r"fashion_mnist has 10 labels.*1000 are needed"):
            data.tfds_source("fashion_mnist", "test")
        with pytest.raises(InputError, match="imdb_reviews does not have pictures"):
            data.tfds_source("imdb_reviews", "test")


def test_reading_imports_no_tensorflow(imagenette, tmp_path):
    # One that is there to be imported, wherever the tests run.
    (tmp_path / "path" / "tensorflow").mkdir(parents=True)
    (tmp_path / "path" / "tensorflow" / "__init__.py").touch()
    code = f"""if True:
        import sys
        sys.path.insert(0, {str(tmp_path / "path")!r})
        from corrq_jax import data
        source = data.tfds_source("imagenette", data_dir={str(imagenette)!r})
        pictures = data.load(source, data.preprocessing("caffe", 8), 2, workers=2)
        assert [mask.tolist() for _, _, mask in pictures] == [[True, True], [True, False]]
        assert "tensorflow" not in sys.modules
    """
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_what_is_not_there(tmp_path, imagenette):
    with pytest.raises(InputError, match="no data set 'imagenet'; imagenet2012, "):
        data.tfds_source("imagenet", data_dir=tmp_path)
    with pytest.raises(InputError, match=r"cannot open 'imagenet_v2/best'.*BuilderConfig"):
        data.tfds_source("imagenet_v2/best", data_dir=tmp_path)
    with pytest.raises(InputError, match=r"has no split 'train'.*it has validation"):
        data.tfds_source("imagenette", "train", data_dir=imagenette)


def test_what_is_not_prepared(tmp_path):
    with pytest.raises(InputError) as caught:
        data.tfds_source("imagenet2012", data_dir=tmp_path)
    manual = tmp_path / "downloads" / "manual"
    assert str(caught.value).startswith(
        f"imagenet2012 is not prepared in {tmp_path}: put ILSVRC2012_img_val.tar of "
        f"https://image-net.org/download-images into {manual}, then give download=True "
        "(--download) once"
    )
    with pytest.raises(InputError, match=rf"imagenet_v2 is not .* in {tmp_path}: give download=T"):
        data.tfds_source("imagenet_v2/topimages", data_dir=tmp_path)


def test_downloading_says_what_it_needs(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="pip install tensorflow importlib_resources"):
        data.tfds_source("imagenette", data_dir=tmp_path, download=True)


def test_downloading(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    calls = []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(
        tfds.core.DatasetBuilder,
        "download_and_prepare",
        lambda self, **options: calls.append(options),
    )
    with pytest.raises(InputError, match="imagenette is not prepared"):
        data.tfds_source("imagenette", data_dir=tmp_path, download=True)
    assert calls == [{"file_format": "array_record"}]


def test_files_to_be_placed_by_hand_are_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    with pytest.raises(InputError, match=r"put ILSVRC2012_img_val\.tar"):
        data.tfds_source("imagenet2012", data_dir=tmp_path, download=True)


def test_formats_without_random_access(imagenette):
    described = next(imagenette.rglob("dataset_info.json"))
    text = described.read_text()
    assert "array_record" in text
    described.write_text(text.replace("array_record", "tfrecord"))
    with pytest.raises(InputError, match=r"1\.0\.0 is in a format without random access"):
        data.tfds_source("imagenette", data_dir=imagenette)
