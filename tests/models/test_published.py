"""The table of published weights against the Keras that is installed."""

import re

import pytest

from corrq_jax.models.published import PUBLISHED


class StoppedError(Exception):
    """What Keras would fetch is known; no need to go on."""


@pytest.fixture
def fetched_by_keras(monkeypatch, tmp_path):
    """For a builder of `keras.applications`: (URL, file, MD5) that it would fetch."""
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    # Imported here and not at the top: it takes seconds, and other tests have no use for it.
    import keras
    from keras.src.utils import file_utils

    def stop(fname, origin, cache_subdir, file_hash=None):
        raise StoppedError(origin, fname, file_hash)

    monkeypatch.setattr(file_utils, "get_file", stop)

    def call(builder):
        # No weights are made, which would take half a minute.
        scope = keras.StatelessScope(initialize_variables=False)
        with scope, pytest.raises(StoppedError) as stopped:
            getattr(keras.applications, builder)(weights="imagenet")
        return stopped.value.args

    yield call
    keras.utils.clear_session()  # or else the next scope makes the weights left out here


BUILDERS = {
    "vgg16": "VGG16",
    "resnet50": "ResNet50",
    "xception": "Xception",
    "inception_v3": "InceptionV3",
    "mobilenet_v2": "MobileNetV2",
    "resnet152v2": "ResNet152V2",
}


def test_the_table_is_what_keras_fetches(fetched_by_keras):
    assert PUBLISHED.keys() == BUILDERS.keys()
    for name, builder in BUILDERS.items():
        url, file, md5 = fetched_by_keras(builder)
        published = PUBLISHED[name]
        assert (published.url, published.file) == (url, file), name
        assert published.hash == (md5 and f"md5:{md5}"), name


def test_entries_are_well_formed():
    for published in PUBLISHED.values():
        assert published.url.startswith("https://")
        assert published.url.endswith(f"/{published.file}")
        assert published.hash is None or re.fullmatch("md5:[0-9a-f]{32}", published.hash)
    assert [name for name, entry in PUBLISHED.items() if entry.hash is None] == ["mobilenet_v2"]
