import importlib.resources
import pathlib

import pytest
from PIL import Image

from corrq_jax import data
from corrq_jax.data import classes
from corrq_jax.data.labels import read_labels
from corrq_jax.errors import FileFormatError, InputError


@pytest.fixture
def flat(tmp_path):
    """Three pictures in one folder, and a function that reads them with labels."""
    root = tmp_path / "val"
    root.mkdir()
    for name in ("c.png", "a b.png", "b.png"):
        Image.new("RGB", (2, 2)).save(root / name)

    def read(text, **options):
        path = tmp_path / "labels.txt"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return data.read_folder(root, path, **options)

    return read


@pytest.mark.parametrize(
    "text",
    [
        "c.png 7\na b.png 999\nb.png n02123597\n",
        "a b.png,n15075141\n\nb.png, 284\r\nc.png\t7",
        "n15075141\n284\n7\n",
        "\ufeff999\n284\n7\n",
    ],
)
def test_files_of_labels(flat, text):
    folder = flat(text)
    assert folder.names == ("a b.png", "b.png", "c.png")
    assert folder.labels == (999, 284, 7)


def test_all_problems_are_in_one_error(flat):
    with pytest.raises(FileFormatError) as caught:
        flat("b.png 1001\nx.png 1\nc.png n99999999\n12\nb.png 2\nc.png,\n")
    message = str(caught.value)
    assert "labels.txt does not label the pictures: " in message
    for problem in (
        "line 1: label 1001: class indices are 0 to 999",
        "line 2: there is no picture x.png",
        "line 3: label 'n99999999': indices of 0 to 999 and WordNet ids",
        "line 4: '12' stands alone",
        "line 5: b.png has a label in line 1 already",
        "line 6: 'c.png,' stands alone",
        "picture a b.png has no label",
    ):
        assert problem in message


def test_too_many_problems_are_counted(flat):
    with pytest.raises(FileFormatError, match=r"23 labels for 3 pictures; .*; and 14 more$"):
        flat("cat\n" * 23)


def test_ground_truth_of_ilsvrc_is_not_taken_for_indices(flat):
    with pytest.raises(FileFormatError, match=r"line 2: label 1000: .* 0 to 999 .*counts from 1"):
        flat("490\n1000\n361\n")


def test_other_numbers_of_classes_have_no_wordnet_ids(flat):
    assert flat("1 \n0\n1\n", classes=2).labels == (1, 0, 1)
    with pytest.raises(FileFormatError, match=r"label 'n01440764': indices of 0 to 1 are"):
        flat("n01440764\n0\n1\n", classes=2)
    with pytest.raises(FileFormatError, match="label 2: class indices are 0 to 1"):
        flat("2\n0\n1\n", classes=2)
    with pytest.raises(FileFormatError, match="label 1000: class indices are 0 to 1"):
        flat("1000\n0\n1\n", classes=2)


def test_files_that_are_no_text(flat, tmp_path):
    with pytest.raises(FileFormatError, match=r"labels\.txt is not text in UTF-8"):
        flat(b"\xff\xfe1\n")
    with pytest.raises(InputError, match=r"no\.txt is not a file"):
        data.read_folder(tmp_path / "val", tmp_path / "no.txt")


def test_wordnet_ids_are_those_of_tfds():
    import tensorflow_datasets

    original = pathlib.Path(tensorflow_datasets.__file__).parent / "datasets/imagenet2012"
    shipped = importlib.resources.files("corrq_jax.data").joinpath("assets/imagenet_wnids.txt")
    assert shipped.read_bytes() == (original / "labels.txt").read_bytes()
    assert list(classes.imagenet_index()) == sorted(set(shipped.read_text().split()))
    # Known from the four cats that come with this package, whose names have both.
    assert [classes.imagenet_index()[f"n021{n}"] for n in (23045, 23394, 23597, 24075)] == [
        281,
        283,
        284,
        285,
    ]


def test_validation_labels_of_tfds_are_read():
    import tensorflow_datasets

    file = "datasets/imagenet2012/validation_labels.txt"
    path = pathlib.Path(tensorflow_datasets.__file__).parent / file
    names = [f"ILSVRC2012_val_{number:08}.JPEG" for number in range(1, 50_001)]
    labels = read_labels(path, names, 1000)
    assert sorted(labels) == [index for index in range(1000) for _ in range(50)]
    assert labels[:3] == [65, 970, 230]
