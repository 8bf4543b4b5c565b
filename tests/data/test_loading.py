import io
import sys
import threading
import time

import numpy as np
import pytest
from PIL import Image

from corrq_jax import data
from corrq_jax.data.source import decode
from corrq_jax.errors import InputError, MissingDependencyError

PREPROCESS = data.Preprocess(size=6, crop_fraction=1.0, mean=0.0, std=1.0)


@pytest.fixture
def source(folder):
    return data.read_folder(folder)


def test_images_are_those_of_the_files(folder, source):
    pictures = data.load(source, PREPROCESS, 4, workers=3)
    batches = list(pictures)
    assert [mask.sum() for _, _, mask in batches] == [4, 4, 2]
    assert {images.shape for images, _, _ in batches} == {(4, 6, 6, 3)}
    whole = [name for name in source.names if not name.endswith("/03.png")]
    expected = np.stack([PREPROCESS(Image.open(folder / name)) for name in whole])
    found, labels = (np.concatenate([b[k][b[2]] for b in batches]) for k in (0, 1))
    np.testing.assert_array_equal(found, expected)
    assert labels.tolist() == [284] * 6 + [497] * 4
    assert labels.dtype == np.int32
    assert pictures.count == 10
    assert list(pictures.corrupt) == ["n02123597/03.png"]


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK"])
def test_pictures_are_decoded_to_rgb(mode):
    file = io.BytesIO()
    Image.new(mode, (3, 2)).save(file, "TIFF")
    assert decode(file.getvalue()).mode == "RGB"


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_grey_of_16_bits_keeps_its_upper_8(kind):
    file, values = io.BytesIO(), np.array([[0, 255, 256, 32_767, 65_535]], np.uint16)
    Image.fromarray(values).save(file, kind)
    found = np.asarray(decode(file.getvalue()))
    np.testing.assert_array_equal(found, (values >> 8)[..., None].repeat(3, -1))


@pytest.mark.parametrize("workers", [1, 3, 16])
def test_workers_do_not_change_the_batches(source, workers):
    """Nor does it matter which picture is ready first."""

    class Late:
        identity = "late"

        def __len__(self):
            return len(source)

        def __getitem__(self, index):
            time.sleep(0.02 if index % 3 == 0 else 0)
            return source[index]

    expected = list(data.load(source, PREPROCESS, 3, workers=0))
    pictures = data.load(Late(), PREPROCESS, 3, workers=workers)
    for _ in range(2):  # each pass begins afresh
        found = list(pictures)
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            for a, b in zip(one, other, strict=True):
                np.testing.assert_array_equal(a, b)
        assert pictures.count == 10
        reason = "UnidentifiedImageError: cannot identify image file"
        assert pictures.corrupt == {"n02123597/03.png": reason}


def test_pictures_are_read_ahead_by_several_threads(source):
    barrier = threading.Barrier(3, timeout=10)  # passes only if three read at once

    class Together:
        identity = "together"

        def __len__(self):
            return 3

        def __getitem__(self, index):
            barrier.wait()
            return source[index]

    assert next(iter(data.load(Together(), PREPROCESS, 3, workers=3)))[2].all()


def test_a_pass_may_be_left(source):
    pictures = data.load(source, PREPROCESS, 2, workers=2)
    for _ in pictures:
        break
    assert 2 <= pictures.count < 10
    assert len(list(pictures)) == 5
    deadline = time.monotonic() + 10
    while any(t.name.startswith("grain") for t in threading.enumerate()):
        assert time.monotonic() < deadline, "threads are left"
        time.sleep(0.01)


def test_files_that_have_gone_are_reported(folder, source):
    (folder / source.names[-1]).unlink()
    pictures = data.load(source, PREPROCESS, 4, workers=2)
    assert sum(mask.sum() for _, _, mask in pictures) == 9
    assert list(pictures.corrupt) == ["n02123597/03.png", str(folder / source.names[-1])]
    assert pictures.corrupt[str(folder / source.names[-1])].startswith("FileNotFoundError")


def test_nothing_that_can_be_read(folder, source):
    for name in source.names:
        (folder / name).write_bytes(b"damaged")
    pictures = data.load(source, PREPROCESS, 4)
    assert list(pictures) == []
    assert (pictures.count, len(pictures.corrupt)) == (0, 11)


def test_errors_of_a_program_are_not_taken_for_damage(source):
    def wrong(image):
        raise KeyError("a mistake")

    for workers in (0, 2):
        with pytest.raises(KeyError, match="a mistake"):
            list(data.load(source, wrong, 4, workers=workers))


def test_a_limit_is_spread_over_the_classes(source):
    pictures = data.load(source, PREPROCESS, 4, workers=2, limit=4)
    assert pictures.indices.tolist() == [0, 2, 5, 8]
    assert [labels.tolist() for _, labels, _ in pictures] == [[284, 284, 284, 497]]
    assert data.load(source, PREPROCESS, 4, limit=99).indices.tolist() == list(range(11))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"batch_size": 0}, "batch_size is 0; at least 1"),
        ({"workers": -1}, "workers is -1; at least 0"),
        ({"limit": 0}, "limit is 0; at least 1"),
    ],
)
def test_bad_options(source, options, match):
    with pytest.raises(InputError, match=match):
        data.load(source, PREPROCESS, **{"batch_size": 4, **options})


def test_grain_is_needed_for_workers_only(source, monkeypatch):
    monkeypatch.setitem(sys.modules, "grain", None)
    assert len(list(data.load(source, PREPROCESS, 4, workers=0))) == 3
    with pytest.raises(MissingDependencyError, match=r"grain .*pip install 'corrq_jax\[data\]'"):
        data.load(source, PREPROCESS, 4)
