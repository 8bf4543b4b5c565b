import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from corrq_jax.core.shards import axes_of, join


@pytest.mark.parametrize("blocks", [(2, 3, 1), (1, 1, 4), (2, 3, 4), (1, 1, 1)])
@pytest.mark.parametrize("xp", [np, jnp])
def test_join_puts_blocks_where_they_were_cut(xp, blocks):
    whole = np.arange(4 * 6 * 8).reshape(4, 6, 8)
    parts = np.empty((*blocks, *(n // b for n, b in zip(whole.shape, blocks, strict=True))), int)
    for at in np.ndindex(*blocks):
        cut = whole
        for axis, (i, b) in enumerate(zip(at, blocks, strict=True)):
            cut = np.split(cut, b, axis)[i]
        parts[at] = cut
    np.testing.assert_array_equal(join(xp.asarray(parts), 3), whole)


def test_axes_of_a_scalar_and_of_a_shorter_spec():
    assert axes_of(P(), 0) == ()
    assert axes_of(P("x"), 3) == (("x",), (), ())
