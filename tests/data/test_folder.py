import numpy as np
import pytest
from PIL import Image

from corrq_jax import data
from corrq_jax.errors import InputError

PREPROCESS = data.Preprocess(size=4, crop_fraction=1.0, mean=0.0, std=1.0)


def save(path, red):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 5), (red, 0, 0)).save(path)


@pytest.fixture
def root(tmp_path):
    save(tmp_path / "dog" / "b.png", 3)
    save(tmp_path / "dog" / "a.PNG", 2)
    save(tmp_path / "cat" / "deep" / "x.bmp", 1)
    save(tmp_path / "cat" / ".hidden.png", 9)
    save(tmp_path / ".cache" / "x.png", 9)
    save(tmp_path / "loose.png", 9)
    (tmp_path / "dog" / "notes.txt").write_text("not a picture")
    return tmp_path


def test_sorted_classes_and_pictures(root):
    folder = data.read_folder(root)
    assert folder.classes == ("cat", "dog")
    names = [(path.name, label) for path, label in folder.files]
    assert names == [("x.bmp", 0), ("a.PNG", 1), ("b.png", 1)]
    examples = list(folder.examples(PREPROCESS))
    assert [(image[0, 0, 0], label) for image, label in examples] == [(1, 0), (2, 1), (3, 1)]
    assert folder.corrupt == {}


def test_corrupt_pictures_are_named_and_passed_over(root):
    whole = (root / "dog" / "b.png").read_bytes()
    (root / "dog" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (root / "dog" / "empty.jpg").write_bytes(b"")
    (root / "cat" / "text.png").write_text("no picture")
    folder = data.read_folder(root)
    assert len(list(folder.examples(PREPROCESS))) == 3
    assert sorted(folder.corrupt) == sorted(
        str(root / p) for p in ("dog/cut.png", "dog/empty.jpg", "cat/text.png")
    )
    assert all(folder.corrupt.values())
    (root / "dog" / "cut.png").write_bytes(whole)
    assert len(list(folder.examples(PREPROCESS))) == 4
    assert len(folder.corrupt) == 2


def test_batches_of_a_folder(root):
    folder = data.read_folder(str(root))
    first, last = data.example_batches(folder.examples(PREPROCESS), 2)
    assert first[0].shape == last[0].shape == (2, 4, 4, 3)
    assert last[1].tolist() == [1, -1]
    assert last[2].tolist() == [True, False]


def test_folders_without_pictures_are_refused(tmp_path):
    with pytest.raises(InputError, match="no pictures in folders of their own"):
        data.read_folder(tmp_path)
    save(tmp_path / "loose.png", 1)
    with pytest.raises(InputError, match="no pictures in folders of their own"):
        data.read_folder(tmp_path)
    with pytest.raises(InputError, match="is not a folder"):
        data.read_folder(tmp_path / "loose.png")


def test_last_batch_is_padded():
    images = np.arange(5 * 4, dtype=np.float32).reshape(5, 2, 2, 1)
    first, second, last = data.batches(images, [4, 3, 2, 1, 0], 2)
    np.testing.assert_array_equal(np.concatenate([first[0], second[0], last[0][:1]]), images)
    assert [labels.tolist() for _, labels, _ in (first, second, last)] == [[4, 3], [2, 1], [0, -1]]
    assert [mask.tolist() for _, _, mask in (first, last)] == [[True, True], [True, False]]
    assert not last[0][1].any()
    assert {(b[0].dtype, b[1].dtype, b[2].dtype) for b in (first, last)} == {
        (np.dtype(np.float32), np.dtype(np.int32), np.dtype(bool))
    }


def test_no_batch_of_padding_only():
    assert len(list(data.batches(np.zeros((4, 1)), np.zeros(4, int), 2))) == 2
    assert list(data.batches(np.zeros((0, 1)), [], 2)) == []


@pytest.mark.parametrize("counts", [(3, 2), (2, 3)])
def test_unequal_counts(counts):
    with pytest.raises(InputError, match="as many labels as images"):
        list(data.batches(np.zeros((counts[0], 1)), [0] * counts[1], 2))


def test_bad_batches():
    with pytest.raises(InputError, match="batch_size is 0"):
        data.batches(np.zeros((1, 1)), [0], 0)
    with pytest.raises(InputError, match=r"shape \(3,\), others \(2,\)"):
        list(data.batches([np.zeros(2), np.zeros(3)], [0, 0], 2))
