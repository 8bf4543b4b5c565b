import dataclasses
import shutil

import pytest
from PIL import Image

from corrq_jax import data
from corrq_jax.errors import InputError

PREPROCESS = data.Preprocess(size=4, crop_fraction=1.0, mean=0.0, std=1.0)


def save(path, red=0):
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


def records(source):
    return [source[index] for index in range(len(source))]


def test_sorted_classes_and_pictures(root):
    found = records(data.read_folder(root, classes=2))
    names = [(record.name, record.label) for record in found]
    assert names == [("cat/deep/x.bmp", 0), ("dog/a.PNG", 1), ("dog/b.png", 1)]
    assert found[0].data == (root / "cat" / "deep" / "x.bmp").read_bytes()


def test_folders_named_by_number(tmp_path):
    for name in ("281", "7"):
        save(tmp_path / name / "1.png")
    assert [record.label for record in records(data.read_folder(tmp_path))] == [281, 7]
    with pytest.warns(UserWarning, match="2 class folders that are neither"):
        data.read_folder(tmp_path, classes=281)


def test_folders_numbered_from_1(tmp_path):
    for number in range(1, 10):
        save(tmp_path / f"{number:02}" / "1.png")
    assert data.read_folder(tmp_path, classes=9).labels == tuple(range(9))
    for number in range(1, 11):
        save(tmp_path / "short" / f"{number}" / "1.png")
    with pytest.warns(UserWarning, match="nor all 10 classes in order"):
        assert set(data.read_folder(tmp_path / "short", classes=10).labels) == {-1}


def test_folders_named_by_some_of_the_wordnet_ids(tmp_path):
    for name in ("n15075141", "n02123597", "n01440764"):
        save(tmp_path / name / "1.png")
    assert [record.label for record in records(data.read_folder(tmp_path))] == [0, 284, 999]
    with pytest.warns(UserWarning, match="neither numbers of 0 to 9, nor WordNet ids"):
        folder = data.read_folder(tmp_path, classes=10)
    assert folder.labels == (-1, -1, -1)


def test_folders_whose_class_is_not_told(root):
    with pytest.warns(UserWarning, match="2 class folders .* nor all 1000 classes") as caught:
        folder = data.read_folder(root)
    assert folder.labels == (-1, -1, -1)
    assert caught[0].filename == __file__


def test_identity_tells_names_sizes_and_labels_not_the_place(root, tmp_path_factory):
    folder = data.read_folder(root, classes=2)
    copy = tmp_path_factory.mktemp("elsewhere") / "copy"
    shutil.copytree(root, copy)
    before = folder.identity
    assert data.read_folder(copy, classes=2).identity == before
    relabelled = dataclasses.replace(folder, labels=(0, 1, 0))
    (copy / "dog" / "b.png").rename(copy / "dog" / "c.png")
    renamed = data.read_folder(copy, classes=2)
    relabelled_identity = relabelled.identity
    (root / "dog" / "b.png").write_bytes(b"another size")
    assert len({before, relabelled_identity, renamed.identity, folder.identity}) == 4


def test_what_only_looks_like_a_picture(root):
    (root / "dog" / "folder.png").mkdir()
    (root / "dog" / "gone.png").symlink_to(root / "nowhere.png")
    folder = data.read_folder(root, classes=2)
    assert len(folder) == 4  # the link is one, though it cannot be read
    assert folder.identity == data.read_folder(root, classes=2).identity
    pictures = data.load(folder, PREPROCESS, 2, workers=0)
    assert sum(mask.sum() for _, _, mask in pictures) == 3
    assert len(pictures.corrupt) == 1


def test_corrupt_pictures_are_named_and_passed_over(root):
    whole = (root / "dog" / "b.png").read_bytes()
    (root / "dog" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (root / "dog" / "empty.jpg").write_bytes(b"")
    (root / "cat" / "text.png").write_text("no picture")
    pictures = data.load(data.read_folder(str(root), classes=2), PREPROCESS, 2, workers=0)
    first, last = pictures
    assert first[0][:, 0, 0, 0].tolist() == [1, 2]
    assert last[0][:, 0, 0, 0].tolist() == [3, 0]
    assert last[1].tolist() == [1, -1]
    assert last[2].tolist() == [True, False]
    assert sorted(pictures.corrupt) == ["cat/text.png", "dog/cut.png", "dog/empty.jpg"]
    assert all(pictures.corrupt.values())
    (root / "dog" / "cut.png").write_bytes(whole)
    assert len(list(pictures)) == 2
    assert (pictures.count, len(pictures.corrupt)) == (4, 2)


def test_folders_without_pictures_are_refused(tmp_path):
    with pytest.raises(InputError, match="no pictures in folders of their own"):
        data.read_folder(tmp_path)
    (tmp_path / "labels.txt").touch()
    with pytest.raises(InputError, match="has no pictures"):
        data.read_folder(tmp_path, tmp_path / "labels.txt")
    save(tmp_path / "loose.png", 1)
    with pytest.raises(InputError, match="need a file with labels"):
        data.read_folder(tmp_path)
    with pytest.raises(InputError, match="is not a folder"):
        data.read_folder(tmp_path / "loose.png")
