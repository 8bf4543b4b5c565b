"""Arrays that go through files of weights, and what is to come back."""

import ml_dtypes
import numpy as np

ARRAYS = {
    "conv/kernel": np.arange(24, dtype=np.float32).reshape(2, 3, 4) / 7,
    "file": np.array([0.1, -0.0, 5e-324, 1.7e308]),
    "half": np.array([[1.5, -2.0]], np.float16),
    "int8": np.array([-128, 127], np.int8),
    "step": np.array(7, np.int64),
    "mask": np.array([True, False]),
    "empty": np.zeros((0, 3), np.float32),
    "transposed": np.arange(6, dtype=np.uint16).reshape(2, 3).T,
    "strided": np.arange(10, dtype=np.int32)[::3],
}
BFLOAT16 = {"bf": np.array([[1.0, -0.5, 3e38]], ml_dtypes.bfloat16)}


def assert_equal(read, written):
    assert set(read) == set(written)
    for name, array in written.items():
        assert read[name].dtype == array.dtype, name
        assert read[name].shape == array.shape, name
        assert read[name].tobytes() == np.asarray(array, order="C").tobytes(), name
