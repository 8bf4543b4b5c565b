"""The Fashion-MNIST network: an independent forward pass, its weights, its accuracy as recorded."""

import re

import jax
import numpy as np
import pytest
from scipy import signal

from corrq_jax import data, fidelity, models
from corrq_jax.data import fashion_mnist
from corrq_jax.errors import InputError
from corrq_jax.models.fashion_resnet import EPSILON, STAGES
from corrq_jax.readers import read_weights

NAME = "fashion_resnet"
NEEDS_DATA = pytest.mark.skipif(
    not fashion_mnist.DEBIAN_FOLDER.is_dir(), reason="apt-get install dataset-fashion-mnist"
)


@pytest.fixture(scope="module")
def weights():
    return read_weights(models.trained_weights(NAME))


def conv(x, kernel, stride):
    """float64[height, width, in], padded as TensorFlow does: less at the start."""
    size, taps = x.shape[0], kernel.shape[0]
    out = -(-size // stride)
    pad = max((out - 1) * stride + taps - size, 0)
    x = np.pad(x, ((pad // 2, pad - pad // 2),) * 2 + ((0, 0),))
    flipped = kernel[::-1, ::-1]
    y = [
        sum(signal.convolve2d(x[..., i], flipped[..., i, o], "valid") for i in range(x.shape[-1]))
        for o in range(kernel.shape[-1])
    ]
    return np.stack(y, -1)[::stride, ::stride]


def forward(w, x):
    """The logits of one picture, float64[28, 28, 1], from the definitions."""

    def unit(x, path, stride=1):
        w_ = {key: np.float64(w[f"{path}/norm/{key}"]) for key in ("mean", "var", "scale", "bias")}
        y = conv(x, np.float64(w[f"{path}/conv/kernel"]), stride)
        return (y - w_["mean"]) / np.sqrt(w_["var"] + EPSILON) * w_["scale"] + w_["bias"]

    x = np.maximum(unit(x, "stem", 2), 0)
    for number, stage in enumerate(STAGES, 1):
        path = f"stage{number}"
        y = np.maximum(unit(x, f"{path}/conv1", stage.stride), 0)
        y = unit(y, f"{path}/conv2")
        if f"{path}/shortcut/conv/kernel" in w:
            x = unit(x, f"{path}/shortcut", stage.stride)
        x = np.maximum(x + y, 0)
    return x.mean((0, 1)) @ np.float64(w["classifier/kernel"]) + w["classifier/bias"]


def test_logits_equal_their_definition(weights):
    images = np.random.default_rng(0).normal(size=(2, 28, 28, 1)).astype(np.float32)
    with jax.default_matmul_precision("highest"):
        found = models.load(NAME)(images)
    expected = np.stack([forward(weights, np.float64(image)) for image in images])
    # Float32 sums of up to a thousand terms; the logits are of order ten.
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)


def test_what_is_shipped(weights):
    file = models.trained_weights(NAME)
    assert file.stat().st_size < 2_000_000
    assert {array.dtype for array in weights.values()} == {np.dtype(np.float32)}
    log = file.with_suffix(".log").read_text()
    for word in ("MIT licence", "command: python examples/", "seed ", "jax ", "held out", "test: "):
        assert word in log


def test_one_error_lists_all_that_is_wrong(weights):
    arrays = dict(weights) | {"surplus/kernel": np.zeros(3, np.float32)}
    del arrays["stem/conv/kernel"]
    with pytest.raises(InputError) as error:
        models.load(NAME, arrays)
    assert "2 problems" in str(error.value)
    assert "no array corresponds to stem.conv.kernel" in str(error.value)
    assert "unknown: surplus/kernel" in str(error.value)


def test_another_number_of_classes(weights):
    arrays = dict(weights)
    arrays |= {f"classifier/{k}": weights[f"classifier/{k}"][..., :7] for k in ("kernel", "bias")}
    assert models.load(NAME, arrays).classifier.bias.shape == (7,)


@NEEDS_DATA
def test_accuracy_on_the_whole_test_set():
    subject = fidelity.subject(NAME, batch_size=500)
    assert subject.data == data.read_fashion_mnist("test").identity
    found, _ = subject.measure(subject.params)
    assert found.labelled == 10_000
    log = models.trained_weights(NAME).with_suffix(".log").read_text()
    (recorded,) = re.findall(r"^test: (\d+\.\d+) %", log, re.MULTILINE)
    # Other processors round otherwise: a picture or two may fall on the other side.
    assert 100 * found.top1 == pytest.approx(float(recorded), abs=0.03)
    assert found.top1 >= 0.925


def test_options_that_do_not_fit(tmp_path):
    with pytest.raises(InputError, match="photos does not have the classes of fashion_resnet"):
        fidelity.subject(NAME, "photos")
    with pytest.raises(InputError, match="fashion_mnist does not have the classes of vgg16"):
        fidelity.subject("vgg16", "fashion_mnist")
    with pytest.raises(InputError, match="labels, download cannot be used with fashion_mnist"):
        fidelity.subject(NAME, labels="labels.txt", download=True)
    with pytest.raises(InputError, match=r"no file .*t10k-images-idx3-ubyte\.gz; on Debian"):
        fidelity.subject(NAME, data_dir=tmp_path)


def test_what_such_pictures_are_like():
    shape, mean, variance = fidelity.expected_inputs(NAME)
    assert shape.shape == (1, 28, 28, 1)
    np.testing.assert_allclose([mean, variance], [[0], [1]], atol=1e-12)
