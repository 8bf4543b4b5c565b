"""Trees for the tests of files."""

import jax
import numpy as np

from corrq_jax.tensor import QuantizedTensor

RNG = np.random.default_rng(0)
W = RNG.normal(size=(6, 7)).astype(np.float32)


def tensor(bits=2, shape=(2, 2), dtype="float32", seed=0):
    rng = np.random.default_rng(seed)
    size = int(np.prod(shape))
    codes = rng.integers(0, 256, size=-(-size * bits // 8)).astype(np.uint8)
    if (unused := 8 * codes.size - size * bits) and codes.size:
        codes[-1] &= 255 >> unused
    wide = np.float64 if dtype == "float64" else np.float32
    levels = np.sort(rng.normal(size=2**bits)).astype(wide)
    return QuantizedTensor(codes, levels, shape, dtype, bits)


def same(a, b):
    """Whether two trees are equal: structure, static fields, dtypes, shapes and bits."""
    x, structure = jax.tree.flatten(a)
    y, other = jax.tree.flatten(b)
    return structure == other and all(
        (str(p.dtype), p.shape, np.asarray(p).tobytes())
        == (str(q.dtype), q.shape, np.asarray(q).tobytes())
        for p, q in zip(x, y, strict=True)
    )


TINY = {
    "b": np.array([1.0, -2.0], np.float32),
    "w": QuantizedTensor(
        np.array([0b11100100], np.uint8),
        np.array([-1, 0, 0.5, 2], np.float32),
        (2, 2),
        "float32",
        2,
    ),
}
