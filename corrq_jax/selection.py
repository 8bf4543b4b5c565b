"""Which leaves of a tree are quantized, and why the others are not."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from corrq_jax.config import Config, matches
from corrq_jax.errors import InputError
from corrq_jax.lazy import LazyArray
from corrq_jax.leaf import DTYPES
from corrq_jax.tensor import is_quantized

_NOT_KERNELS = {
    *("bias", "b", "beta", "gamma", "scale", "offset", "mean", "var", "count"),
    *("moving_mean", "moving_variance", "running_mean", "running_var", "num_batches_tracked"),
    *("cls_token", "pos_embedding", "position_embedding"),
}


def default_select(path: str, leaf: Any) -> bool:
    """Kernels of dense and convolutional layers and embedding tables.

    These are the leaves of rank 2 and more whose name is not one of a bias, a normalization
    parameter or a statistic (in a scanned stack of layers those have rank 2 as well).
    """
    return _reason_by_default(path, leaf) is None


def _reason_by_default(path: str, leaf: Any) -> str | None:
    name = path.replace(".", "/").rsplit("/", 1)[-1].split(":")[0]
    if leaf.ndim < 2:
        return f"rank {leaf.ndim}: a bias, a normalization parameter or a scalar"
    if name in _NOT_KERNELS:
        return f"named {name!r}: a bias or a normalization parameter"
    return None


def choose(config: Config, entries: list[tuple[str, Any]]) -> tuple[dict[str, Any], dict[str, str]]:
    """The leaves to quantize by path, and for each other leaf the reason why not.

    Raises:
        InputError: a pattern matches no path.
    """
    _check_patterns(config, [path for path, _ in entries])
    chosen: dict[str, Any] = {}
    reasons: dict[str, str] = {}
    for path, leaf in entries:
        reason = _reason_against(config, path, leaf)
        if reason is None and config.widths_of(path) is None:
            reason = "no pattern of bits matches it"
        if reason is None:
            chosen[path] = leaf
        else:
            reasons[path] = reason
    return chosen, reasons


def _check_patterns(config: Config, all_paths: list[str]) -> None:
    for pattern in config.patterns():
        if not any(matches(path, pattern) for path in all_paths):
            shown = ", ".join(all_paths[:5]) + (", ..." if len(all_paths) > 5 else "")
            raise InputError(
                f"the path pattern {pattern!r} matches no leaf; the paths are: {shown or 'none'}"
            )


def _reason_against(config: Config, path: str, leaf: Any) -> str | None:
    if is_quantized(leaf):
        return "quantized already"
    if not isinstance(leaf, np.ndarray | jax.Array | np.generic | LazyArray):
        return f"not an array: {type(leaf).__name__}"
    if isinstance(leaf, Tracer):
        raise InputError(
            f"{path}: quantize needs the values, and inside jit there are none; call it outside, "
            "or use corrq_jax.quantize_array, which is jittable"
        )
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return "a random key"
    if leaf.dtype.name not in DTYPES:
        return f"dtype {leaf.dtype}: only {', '.join(DTYPES)} are quantized"
    if leaf.size == 0:
        return "empty"
    if config.select is None:
        return _reason_by_default(path, leaf)
    if callable(config.select):
        return None if config.select(path, leaf) else "not selected"
    return None if any(matches(path, p) for p in config.select) else "not selected"
