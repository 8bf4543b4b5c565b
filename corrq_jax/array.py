"""One array in one pure call: for code that quantizes inside its own jit, vmap or scan."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from corrq_jax.config import Config
from corrq_jax.core import coding, shards
from corrq_jax.core import density as core
from corrq_jax.core.fit import fit
from corrq_jax.core.shards import Axes, axes_of
from corrq_jax.errors import InputError
from corrq_jax.sharding import blocks_of, sharding_of
from corrq_jax.tensor import QuantizedTensor, blocked

_DTYPES = ("float16", "bfloat16", "float32")


_DEFAULT = Config()

Sharding = NamedSharding | PartitionSpec


def quantize_array(
    w: jax.Array, config: Config = _DEFAULT, *, sharding: Sharding | None = None
) -> tuple[QuantizedTensor, jax.Array]:
    """Quantize one array; pure, so that it works under jit, vmap (over stacked layers) and scan.

    Values cannot be looked at inside jit: the caller vouches that all weights are finite and not
    all equal, and compilation is once a shape. `corrq_jax.quantize` checks, and compiles once for
    all shapes; the codes are the same.

    Args:
        w: any shape with at least two elements, float16, bfloat16 or float32.
        config: one number of bits, without a target, scales or a coding other than "packed";
            ``select`` is not looked at.
        sharding: of an array that is shared out over a mesh: each device then counts and encodes
            its own weights (docs/sharding.md). Under `jax.jit` the `NamedSharding` of ``w``; within
            `jax.shard_map`, where ``w`` is one shard, its `PartitionSpec`. None outside of both,
            and where the types of arrays tell it: it is then that of ``w``.

    Returns:
        The quantized tensor, and the correlation rho as a float32 scalar.

    Raises:
        InputError: the dtype, the size or an option is not allowed; ``config.bits`` is a mapping.

    >>> import jax, numpy as np
    >>> stack = np.random.default_rng(0).normal(size=(3, 64, 64)).astype(np.float32)
    >>> q, rho = jax.vmap(lambda w: quantize_array(w, Config(bits=4)))(stack)
    >>> q.codes.shape, rho.shape
    ((3, 2048), (3,))
    """
    if not hasattr(w, "dtype"):
        raise InputError(f"quantize_array: got a {type(w).__name__}; give an array")
    for name in ("coding", "granularity", config.target):
        if name and getattr(config, name) != getattr(_DEFAULT, name):
            raise InputError(
                f"quantize_array: {name}={getattr(config, name)!r} is only for corrq_jax.quantize"
            )
    if not isinstance(config.bits, int):
        raise InputError("quantize_array: config.bits has to be one number, not a mapping")
    if str(w.dtype) not in _DTYPES or w.size < 2:
        raise InputError(
            f"quantize_array: got {w.dtype}{list(w.shape)}; give at least two weights of "
            f"{', '.join(_DTYPES)}"
        )
    return _quantize_array(w, config, sharding_of(w) if sharding is None else sharding)


@partial(jax.jit, static_argnames=("config", "sharding"))
def _quantize_array(
    w: jax.Array, config: Config, sharding: Sharding | None
) -> tuple[QuantizedTensor, jax.Array]:
    shape, blocks = w.shape, None
    if isinstance(sharding, PartitionSpec):
        axes = axes_of(sharding, w.ndim)
        counts = shards.blocks(axes)
        shape = tuple(n * count for n, count in zip(w.shape, counts, strict=True))
        blocks = counts if any(axes) else None
        codes, levels, rho = _of_shard(w, config, axes)
    elif sharding is not None:
        axes, blocks = axes_of(sharding.spec, w.ndim), blocks_of(sharding, w.ndim)
        codes, levels, rho = jax.shard_map(
            partial(_of_shard, config=config, axes=axes),
            mesh=sharding.mesh,
            in_specs=sharding.spec,
            out_specs=(sharding.spec, PartitionSpec(), PartitionSpec()),
        )(w)
    else:
        codes, levels, rho = _of_shard(w, config, ((),) * w.ndim)
    bits: Any = config.bits
    return blocked(codes, levels, shape, str(w.dtype), bits, blocks), rho


def _of_shard(w: jax.Array, config: Config, axes: Axes) -> tuple[jax.Array, ...]:
    """Codes [1, ..., 1, bytes] of a shard, and levels and rho, which are those of all."""
    bits: Any = config.bits
    lo, hi = shards.extent(w, axes)
    norm = core.normalization(lo, hi)
    density = shards.density(w, axes, norm)
    quantizer = fit(density, lo, hi, norm, config.method(bits))
    codes = coding.assign_by_search(norm.apply(w.reshape(-1)), quantizer.boundaries)
    with jax.enable_x64(True):
        values = quantizer.values / norm.scale + norm.center
        levels = values.astype(jnp.float32)
        rho = jnp.sqrt(1 - quantizer.noise).astype(jnp.float32)
    return coding.pack(codes, bits).reshape((1,) * w.ndim + (-1,)), levels, rho
