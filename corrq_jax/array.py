"""One array in one pure call: for code that quantizes inside its own jit, vmap or scan."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from corrq_jax.config import Config
from corrq_jax.core import coding
from corrq_jax.core import density as core
from corrq_jax.core.fit import fit
from corrq_jax.errors import InputError
from corrq_jax.tensor import QuantizedTensor

_DTYPES = ("float16", "bfloat16", "float32")


_DEFAULT = Config()


@partial(jax.jit, static_argnames="config")
def quantize_array(w: jax.Array, config: Config = _DEFAULT) -> tuple[QuantizedTensor, jax.Array]:
    """Quantize one array; pure, so that it works under jit, vmap (over stacked layers) and scan.

    Values cannot be looked at inside jit: the caller vouches that all weights are finite and not
    all equal, and compilation is once a shape. `corrq_jax.quantize` checks, and compiles once for
    all shapes; the codes are the same.

    Args:
        w: any shape with at least two elements, float16, bfloat16 or float32.
        config: one number of bits; ``select`` is not looked at.

    Returns:
        The quantized tensor, and the correlation rho as a float32 scalar.

    Raises:
        InputError: the dtype or the size is not allowed, or ``config.bits`` is a mapping.

    >>> import jax, numpy as np
    >>> stack = np.random.default_rng(0).normal(size=(3, 64, 64)).astype(np.float32)
    >>> q, rho = jax.vmap(lambda w: quantize_array(w, Config(bits=4)))(stack)
    >>> q.codes.shape, rho.shape
    ((3, 2048), (3,))
    """
    bits: Any = config.bits
    if not isinstance(bits, int):
        raise InputError("quantize_array: config.bits has to be one number, not a mapping")
    if str(w.dtype) not in _DTYPES or w.size < 2:
        raise InputError(
            f"quantize_array: got {w.dtype}{list(w.shape)}; give at least two weights of "
            f"{', '.join(_DTYPES)}"
        )
    density, norm = core.density(w)
    quantizer = fit(density, *core.extent(w), norm, config.method(bits))
    codes = coding.assign_by_search(norm.apply(w.reshape(-1)), quantizer.boundaries)
    with jax.enable_x64(True):
        values = quantizer.values / norm.scale + norm.center
        levels = values.astype(jnp.float32)
        rho = jnp.sqrt(1 - quantizer.noise).astype(jnp.float32)
    packed = coding.pack(codes, bits)
    return QuantizedTensor(packed, levels, tuple(w.shape), str(w.dtype), bits), rho
