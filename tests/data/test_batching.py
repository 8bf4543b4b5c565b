import numpy as np
import pytest

from corrq_jax import data
from corrq_jax.errors import InputError


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
