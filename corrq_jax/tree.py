"""Parameter trees: quantize and dequantize any pytree of arrays."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from corrq_jax import layout, paths
from corrq_jax import leaf as leaves
from corrq_jax.config import Config, Select, matches
from corrq_jax.core.fit import Method, Quantizer, fit_batch
from corrq_jax.errors import InputError
from corrq_jax.report import Report, Row, Skipped
from corrq_jax.tensor import QuantizedTensor, is_quantized

BATCH = 8
"""Densities in one call of the search: one compilation serves a network of any number of layers."""

_NOT_KERNELS = {
    *("bias", "b", "beta", "gamma", "scale", "offset", "mean", "var", "count"),
    *("moving_mean", "moving_variance", "running_mean", "running_var", "num_batches_tracked"),
    *("cls_token", "pos_embedding", "position_embedding"),
}


class _Fitted(NamedTuple):
    tensor: QuantizedTensor
    noise: float


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


def quantize(
    params: Any,
    bits: int | Mapping[str, int] = 4,
    *,
    grid: str = "optimal",
    fit: str | None = None,
    levels: str | None = None,
    zero: bool = False,
    select: Select | str | tuple[str, ...] | None = None,
    config: Config | None = None,
    progress: Callable[[str], None] | None = None,
) -> tuple[Any, Report]:
    """Quantize the kernels of a parameter tree, without data and without retraining.

    For each selected tensor the quantizer of largest Pearson correlation between the weights and
    the quantized weights is fitted to the density of the weights (docs/method.md; after
    Pushkareva and Karandashev, OMNN 29(3), 2020).

    Args:
        params: a pytree of arrays (numpy or jax; any shapes).
        bits: bits a weight, 1 to 8, or a mapping from path pattern to bits, of which the first
            that matches a path counts; selected leaves that no pattern matches stay as they are.
        grid: "linear", "exponential", "optimal" or "nf4".
        fit: "correlation" or "range"; None for the grid's own.
        levels: "mean" or "grid"; None for the grid's own.
        zero: whether zero is a level of the exponential grid.
        select: predicate (path, leaf), or one or several path patterns; None for kernels and
            embeddings. A pattern is a glob on the path, whose keys are joined by "/"; it also
            selects all below it.
        config: all options in one record; the other keywords must then be left out.
        progress: called with the path of each tensor as it is done.

    Returns:
        The tree with a `QuantizedTensor` in place of each selected leaf, and the `Report`. Leaves
        that were not selected are the same objects as before.

    Raises:
        InputError: an option is not allowed, a pattern matches no leaf, or a selected weight is NaN
            or infinite; the message names the argument or the path.

    >>> import numpy as np
    >>> params = {"dense": {"kernel": np.linspace(-1, 1, 64).reshape(8, 8), "bias": np.zeros(8)}}
    >>> qparams, report = quantize(params, bits=3)
    >>> [(row.path, row.bits, round(row.correlation, 4)) for row in report]
    [('dense/kernel', 3, 0.9923)]
    """
    single = Config(bits, grid, fit, levels, zero, select)  # type: ignore[arg-type]
    if config is None:
        config = single
    elif single != Config():
        raise InputError("quantize: give either config or the single options, not both")
    entries, treedef = paths.flatten(params)
    _check_patterns(config, [path for path, _ in entries])
    chosen, reasons = _choose(config, entries)
    fitted = {}
    for path, result in _quantize_leaves(chosen, config):
        fitted[path] = result
        if progress is not None:
            progress(path)
    for path in chosen.keys() - fitted.keys():
        reasons[path] = "constant: kept as it is, its correlation is undefined"
    new = [fitted[path].tensor if path in fitted else leaf for path, leaf in entries]
    tree = jax.tree_util.tree_unflatten(treedef, new)
    return tree, _report(tree, entries, fitted, reasons)


def dequantize(params: Any) -> Any:
    """The tree with an array in place of each `QuantizedTensor`; works inside jit.

    Args:
        params: any pytree; what is not a `QuantizedTensor` is passed through untouched.

    Returns:
        A tree of the structure, shapes and dtypes that went into `quantize`.
    """

    def decode(leaf: Any) -> Any:
        return leaf.dequantize() if is_quantized(leaf) else leaf

    return jax.tree.map(decode, params, is_leaf=is_quantized)


def _check_patterns(config: Config, all_paths: list[str]) -> None:
    for pattern in config.patterns():
        if not any(matches(path, pattern) for path in all_paths):
            shown = ", ".join(all_paths[:5]) + (", ..." if len(all_paths) > 5 else "")
            raise InputError(
                f"the path pattern {pattern!r} matches no leaf; the paths are: {shown or 'none'}"
            )


def _choose(config: Config, entries: list[tuple[str, Any]]):
    """The leaves to quantize with their bits, and for each other leaf the reason why not."""
    chosen: dict[str, tuple[Any, int]] = {}
    reasons: dict[str, str] = {}
    for path, leaf in entries:
        reason = _reason_against(config, path, leaf)
        bits = config.bits_of(path)
        if reason is None and bits is None:
            reason = "no pattern of bits matches it"
        if reason is None and bits is not None:
            chosen[path] = (leaf, bits)
        else:
            reasons[path] = str(reason)
    return chosen, reasons


def _reason_against(config: Config, path: str, leaf: Any) -> str | None:
    if is_quantized(leaf):
        return "quantized already"
    if not isinstance(leaf, np.ndarray | jax.Array | np.generic):
        return f"not an array: {type(leaf).__name__}"
    if isinstance(leaf, Tracer):
        raise InputError(
            f"{path}: quantize needs the values, and inside jit there are none; call it outside, "
            "or use corrq_jax.quantize_array, which is jittable"
        )
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return "a random key"
    if leaf.dtype.name not in leaves.DTYPES:
        return f"dtype {leaf.dtype}: only {', '.join(leaves.DTYPES)} are quantized"
    if leaf.size == 0:
        return "empty"
    if config.select is None:
        return _reason_by_default(path, leaf)
    if callable(config.select):
        return None if config.select(path, leaf) else "not selected"
    return None if any(matches(path, p) for p in config.select) else "not selected"


def _quantize_leaves(
    chosen: dict[str, tuple[Any, int]], config: Config
) -> Iterator[tuple[str, _Fitted]]:
    """Measure, fit and encode, a batch of tensors of equal bits at a time; skips constant ones."""
    pending: dict[int, list] = {}
    for path, (array, bits) in chosen.items():
        leaf = leaves.read(path, array)
        if leaf.is_constant:
            continue
        pending.setdefault(bits, []).append((leaf, *leaves.measure(leaf)))
        if len(pending[bits]) == BATCH:
            yield from _fit_and_encode(pending.pop(bits), config.method(bits))
    for bits, rest in pending.items():
        yield from _fit_and_encode(rest, config.method(bits))


def _fit_and_encode(items: list, method: Method) -> Iterator[tuple[str, _Fitted]]:
    densities, norms = [i[1] for i in items], [i[2] for i in items]
    repeat = [min(i, len(items) - 1) for i in range(BATCH)]
    stacked = jax.tree.map(lambda *a: jnp.stack(a), *[densities[i] for i in repeat])
    norm = jax.tree.map(lambda *a: jnp.stack(a), *[norms[i] for i in repeat])
    extremes = np.array([[items[i][0].lo, items[i][0].hi] for i in repeat], np.float32)
    quantizers = fit_batch(stacked, extremes[:, 0], extremes[:, 1], norm, method)
    occupied = np.asarray((stacked.counts > 0).sum(axis=1))
    values, noise = np.asarray(quantizers.values), np.asarray(quantizers.noise)
    for i, (leaf, _, norm) in enumerate(items):
        exact = leaves.distinct(leaf, values.shape[1]) if occupied[i] <= values.shape[1] else None
        if exact is not None:
            yield leaf.path, _Fitted(leaves.encode_exactly(leaf, exact), 0.0)
            continue
        quantizer = Quantizer(quantizers.boundaries[i], values[i], noise[i])
        tensor = leaves.encode(leaf, norm, quantizer, method.bits)
        yield leaf.path, _Fitted(tensor, float(noise[i]))


def _report(
    tree: Any, entries: list[tuple[str, Any]], fitted: dict[str, _Fitted], reasons: dict[str, str]
) -> Report:
    file = layout.plan(tree, strict=False)
    rows, skipped = [], []
    for (path, original), nbytes in zip(entries, file.leaf_nbytes(), strict=True):
        if path in fitted:
            tensor, noise = fitted[path]
            rows.append(
                Row(
                    path=path,
                    shape=tensor.shape,
                    dtype=tensor.dtype,
                    size=tensor.size,
                    bits=tensor.bits,
                    levels=int(tensor.levels.shape[-1]),
                    correlation=float(np.sqrt(1 - noise)),
                    noise=noise,
                    nbytes=nbytes,
                )
            )
        else:
            shape = tuple(int(n) for n in getattr(original, "shape", ()))
            skipped.append(Skipped(path, shape, nbytes, reasons[path]))
    return Report(tuple(rows), tuple(skipped), file.file_nbytes)
