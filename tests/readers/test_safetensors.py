"""Files of safetensors, byte by byte."""

import ml_dtypes
import numpy as np
import pytest
from weight_arrays import BFLOAT16, assert_equal

import corrq_jax
from corrq_jax.readers import read_weights, write_weights


def test_bfloat16_in_safetensors(tmp_path):
    write_weights(tmp_path / "a.safetensors", BFLOAT16)
    assert_equal(read_weights(tmp_path / "a.safetensors"), BFLOAT16)


def test_safetensors_by_its_bytes(tmp_path):
    """The format's specification: a length, a JSON header, the values."""
    path = tmp_path / "a.safetensors"
    header = b'{"w":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\x80\x3f\x00\xc0")
    assert_equal(read_weights(path), {"w": np.array([1.0, -2.0], ml_dtypes.bfloat16)})


def test_safetensors_whose_length_begins_like_a_pickle(tmp_path):
    path = tmp_path / "a.bin"
    header = b'{"w":{"dtype":"I8","shape":[3],"data_offsets":[0,3]}}'.ljust(0x80)
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\1\2\3")
    assert_equal(read_weights(path), {"w": np.array([1, 2, 3], np.int8)})


def test_safetensors_with_a_dtype_that_numpy_lacks(tmp_path):
    path = tmp_path / "a.safetensors"
    header = b'{"w":{"dtype":"F8_E4M3","shape":[2],"data_offsets":[0,2]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0\0")
    with pytest.raises(corrq_jax.FileFormatError, match=r"'w' has dtype F8_E4M3.*BF16"):
        read_weights(path)
