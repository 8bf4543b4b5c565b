"""Scanned layers: leaves with a first axis of layers, each of which gets levels of its own."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from corrq_jax import layout, paths, tree
from corrq_jax.codings import is_entropy_coded
from corrq_jax.config import Config, matches
from corrq_jax.core import coding
from corrq_jax.errors import InputError
from corrq_jax.report import Report, Row, Skipped
from corrq_jax.tensor import QuantizedTensor, is_quantized

__all__ = ["quantize"]

_TARGETS = ("bits_per_weight", "max_bytes", "mean_correlation", "min_correlation")


def quantize(
    params: Any, bits: Any = None, *, stacked: str | Sequence[str], **options: Any
) -> tuple[Any, Report]:
    """Quantize a tree in which some leaves hold all layers of a stack along their first axis.

    So ``flax.linen.scan`` and `jax.lax.scan` lay out repeated layers. Each layer is quantized by
    itself, as if it were a leaf: it has its own levels, and scales if any. What comes out is a
    `corrq_jax.QuantizedTensor` with a leading axis, of which scan takes a layer at a time.

    Args:
        params: any pytree of arrays.
        bits: as for `corrq_jax.quantize`; patterns see a layer's path, such as "blocks/3/kernel"
            for ``params["blocks"]["kernel"][3]``. All layers of a leaf need the same bits.
        stacked: one or several path patterns of what is stacked, such as "blocks".
        **options: as for `corrq_jax.quantize`, but no target, and no entropy coding.

    Returns:
        The tree, and the report: a row for each leaf, with ``1 - rho**2`` averaged over its layers.

    Raises:
        InputError: as for `corrq_jax.quantize`; a pattern matches nothing, or something without a
            first axis of layers; layers of one leaf would be treated differently, or come out
            along different trellises.

    >>> params = {"blocks": {"kernel": np.random.default_rng(0).normal(size=(5, 8, 8))}}
    >>> qparams, report = quantize(params, bits=3, stacked="blocks")
    >>> qparams["blocks"]["kernel"]
    QuantizedTensor(shape=(8, 8), dtype=float64, bits=3, levels=(8,))
    >>> qparams["blocks"]["kernel"].levels.shape, qparams["blocks"]["kernel"].dequantize().shape
    ((5, 8), (5, 8, 8))
    """
    patterns = (stacked,) if isinstance(stacked, str) else tuple(stacked)
    _check_options(options)
    entries, treedef = paths.flatten(params)
    layers = _layers(entries, patterns)
    apart = _apart(entries, layers)
    options = {name: value for name, value in options.items() if name != "importance"}
    quantized, report = tree.quantize(apart, bits, **options)
    _check_bits(options.get("config") or Config(bits), quantized, layers)
    joined = [
        _joined(path, leaf, [quantized[part] for part in layers[path]])
        if path in layers
        else quantized[path]
        for path, leaf in entries
    ]
    result = jax.tree_util.tree_unflatten(treedef, joined)
    return result, _report(result, report, entries, layers)


def _check_options(options: Mapping[str, Any]) -> None:
    config = options.get("config") or Config()
    target = next((name for name in _TARGETS if options.get(name) is not None), config.target)
    if target is not None:
        raise InputError(
            f"stacked= with {target}: layers of a stack would get different bits; give bits, or "
            "quantize without stacked=, where a stack counts as one tensor"
        )
    coding = options.get("coding", config.coding)
    if is_entropy_coded(coding):
        raise InputError(f"stacked= with coding={coding!r}: layers would differ in length")


def _check_bits(
    config: Config, quantized: Mapping[str, Any], layers: Mapping[str, list[str]]
) -> None:
    """All layers of a leaf were asked to have the same bits, whatever they came out with."""
    for path, parts in layers.items():
        widths = {config.widths_of(part) for part in parts if is_quantized(quantized[part])}
        if len(widths) > 1:
            raise InputError(f"{path}: all layers of a stack need the same bits")


def _layers(entries: list[tuple[str, Any]], patterns: tuple[str, ...]) -> dict[str, list[str]]:
    """For each stacked leaf the paths of its layers.

    The index comes after what the pattern names, but before the leaf's own name: that tells what
    is selected, and which axes are its channels.
    """
    layers: dict[str, list[str]] = {}
    unused = set(patterns)
    for path, leaf in entries:
        found = [pattern for pattern in patterns if matches(path, pattern)]
        if not found:
            continue
        unused -= set(found)
        if not np.ndim(leaf) or is_quantized(leaf):
            raise InputError(f"stacked={found[0]!r}: {path} has no first axis of layers")
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        if is_key or not np.size(leaf) or isinstance(leaf, Tracer):
            continue  # none of these is quantized: it is one leaf, to be told of as such
        keys = path.split("/")
        heads = range(1, len(keys))
        named = (n for n in heads if any(matches("/".join(keys[:n]), p) for p in found))
        at = next(named, len(keys) - 1)
        layers[path] = [
            "/".join([*keys[:at], str(i), *keys[at:]]) for i in range(np.shape(leaf)[0])
        ]
    if unused:
        raise InputError(
            f"stacked={min(unused)!r} matches no leaf; the paths are: "
            + ", ".join(path for path, _ in entries[:5])
        )
    return layers


def _apart(entries: list[tuple[str, Any]], layers: Mapping[str, list[str]]) -> dict[str, Any]:
    """All leaves by path, stacked ones layer by layer."""
    apart: dict[str, Any] = {}
    for path, leaf in entries:
        values = np.asarray(leaf) if path in layers else [leaf]
        for part, value in zip(layers.get(path, [path]), values, strict=True):
            if part in apart:
                raise InputError(
                    f"stacked=: {part!r} would be a layer and another leaf, too; rename one"
                )
            apart[part] = value
    return apart


def _joined(path: str, leaf: Any, parts: list[Any]) -> Any:
    """The stack of the layers' tensors, or the leaf if none is quantized."""
    tensors = [part for part in parts if is_quantized(part)]
    if not tensors:
        return leaf
    _check_trellis(path, tensors)
    bits = max(tensor.bits for tensor in tensors)
    count = max(tensor.levels.shape[-1] for tensor in tensors)
    alike = [_alike(path, part, tensors[0], bits, count) for part in parts]
    return jax.tree.map(lambda *arrays: _on_device(np.stack(arrays)), *alike)


def _check_trellis(path: str, tensors: Sequence[QuantizedTensor]) -> None:
    """How many levels there are tells which trellis it is: all layers need as many."""
    counts = {tensor.levels.shape[-1] for tensor in tensors}
    along = {tensor.is_along_trellis for tensor in tensors}
    if len(along) == 2:
        why = "one of few distinct weights has none"
    elif along == {True} and len(counts) > 1:
        why = f"with {' and '.join(map(str, sorted(counts)))} levels"
    else:
        return
    raise InputError(
        f"{path}: its layers came out along different trellises ({why}), which no stack can hold; "
        "give them other bits or coding='packed', or quantize without stacked="
    )


def _on_device(array: np.ndarray) -> Any:
    """A jax array, if it can be one of this dtype."""
    narrowed = jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype
    return array if narrowed else jnp.asarray(array)


def _alike(path: str, part: Any, like: QuantizedTensor, bits: int, count: int) -> QuantizedTensor:
    """A layer with so many bits and levels; the last of its levels is there several times.

    One whose weights are all equal was left in float: it is a single level.
    """
    if not is_quantized(part):
        value = np.unique(np.asarray(part))
        if value.size != 1 or like.rows is not None:
            raise InputError(f"{path}: all layers of a stack have to be quantized alike, or none")
        levels = value.astype(like.levels.dtype)
        part = dataclasses.replace(like, codes=np.zeros(like.size, np.uint8), levels=levels, bits=8)
    if (part.shape, part.dtype, part.rows) != (like.shape, like.dtype, like.rows):
        raise InputError(f"{path}: all layers of a stack need the same granularity")
    codes = part.codes if part.bits == bits else _packed(part.unpacked(), bits)
    levels = np.asarray(part.levels)
    levels = np.pad(levels, (0, count - levels.size), mode="edge")
    return dataclasses.replace(part, codes=codes, levels=levels, bits=bits)


def _packed(codes: np.ndarray, bits: int) -> np.ndarray:
    return np.asarray(coding.pack(codes, bits))


def _report(
    result: Any, report: Report, entries: list[tuple[str, Any]], layers: Mapping[str, list[str]]
) -> Report:
    """The report of the layers as one of the leaves."""
    file = layout.plan(result, strict=False)
    row_of = {row.path: row for row in report.rows}
    reason_of = {skipped.path: skipped.reason for skipped in report.skipped}
    rows: list[Row] = []
    skipped: list[Skipped] = []
    for (path, leaf), nbytes in zip(entries, file.leaf_nbytes(), strict=True):
        parts = layers.get(path, [path])
        found = [row_of[part] for part in parts if part in row_of]
        if not found:
            shape = tuple(np.shape(leaf))
            skipped.append(Skipped(path, shape, nbytes, reason_of.get(parts[0], "empty")))
            continue
        noise = sum(row.noise for row in found) / len(parts)
        rows.append(
            dataclasses.replace(
                max(found, key=lambda row: row.levels),
                path=path,
                shape=tuple(np.shape(leaf)),
                size=int(np.size(leaf)),
                bits=max(row.bits for row in found),
                correlation=float(np.sqrt(1 - noise)),
                noise=noise,
                nbytes=nbytes,
            )
        )
    return Report(tuple(rows), tuple(skipped), file.file_nbytes)
