"""The benchmarks' table: what it says of sizes and correlations is so."""

import pathlib
import sys

import numpy as np
import pytest

import corrq_jax as corrq

sys.path.append(str(pathlib.Path(__file__).parents[1] / "benchmarks"))
contenders = pytest.importorskip("contenders")  # not in the source distribution
BITS, CONTENDERS = contenders.BITS, contenders.CONTENDERS

SHAPES = [(3, 3, 8, 64), (128, 64)]
SIZE = 3 * 3 * 8 * 64 + 128 * 64

# Numbers beside the codes: centroids or scales in 32 bits.
BESIDE = {
    "kmeans1d": 2 * 16,
    "flash1dkmeans": 2 * 16,
    "scikit-learn KMeans": 2 * 16,
    "qwix int4 absmax, per channel": 2 * 64,
    "NF4 in NumPy, per channel": 2 * 64,
    "bitsandbytes NF4, blocks of 64": SIZE / 64,
    "hqq, groups of 64": SIZE / 64,  # two, of 16 bits
    "optimum-quanto, groups of 64": 2 * (128 * 64 / 64 + 3 * 3 * 8 * 64 / 72),
}


@pytest.mark.filterwarnings("ignore")  # the libraries have their own
@pytest.mark.parametrize("name", CONTENDERS)
def test_contenders_are_measured_right(name):
    contender = CONTENDERS[name]
    if contender.absent:
        pytest.skip(f"{contender.absent} is not installed")
    weights = contenders.make_weights(SHAPES)
    weights = contenders.in_rows(weights) if contender.in_rows else weights
    kept = {path: w.copy() for path, w in weights.items()}
    result = contender.prepare()(weights)
    decoded = contender.decode(result)
    assert decoded.keys() == weights.keys()
    for path, w in weights.items():
        np.testing.assert_array_equal(w, kept[path])
        w_hat = np.asarray(decoded[path])
        assert w_hat.shape == w.shape
        expected = np.corrcoef(w.ravel().astype(float), w_hat.ravel().astype(float))[0, 1]
        assert contenders.correlation(w, w_hat) == pytest.approx(expected, abs=1e-12)
        assert 0.9 < expected < 1
    if name in BESIDE:
        assert contender.stored(result) == BITS * SIZE + 32 * BESIDE[name]
    if name.startswith("corrq") and "entropy" not in name:
        arrays = 8 * contender.held(result)
        assert arrays < contender.stored(result) < arrays + 8 * 1000  # the header
    if "budget" not in name:
        assert 8 * contender.held(result) >= BITS * SIZE


def test_rows_are_the_outputs():
    w = contenders.make_weights([(3, 3, 8, 64)])["layer00/kernel"]
    rows = contenders.in_rows({"w": w})["w"]
    np.testing.assert_array_equal(rows[5].reshape(8, 3, 3)[2], w[:, :, 2, 5])
    assert corrq.correlation(rows, rows) == 1
