"""Parameter trees: quantize and dequantize any pytree of arrays."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from corrq_jax import layout, menu, paths, sharded_leaf
from corrq_jax import leaf as leaves
from corrq_jax.budget import allocate, bytes_allowed
from corrq_jax.codings import is_entropy_coded
from corrq_jax.config import Bits, Config, Select
from corrq_jax.errors import InputError
from corrq_jax.granularity import rows_of
from corrq_jax.report import Budget, Report, Row, Skipped
from corrq_jax.rescale import scaled
from corrq_jax.selection import choose
from corrq_jax.sharding import sharding_of
from corrq_jax.tensor import QuantizedTensor, is_quantized


class _Fitted(NamedTuple):
    tensor: QuantizedTensor
    noise: float


class Passes(NamedTuple):
    """The two passes over a tensor; `corrq_jax.parts` keeps what they find.

    Attributes:
        measure: of (path, array, config, extremes if they are known) the densities in each
            granularity that the tensor may have; none if it is constant.
        encode: of an option the tensor, and its noise.
    """

    measure: Callable[[str, Any, Config, tuple[float, float] | None], list[menu.Measured]]
    encode: Callable[[menu.Option], tuple[QuantizedTensor, float]]


def quantize(
    params: Any,
    bits: Bits = None,
    *,
    grid: str = "optimal",
    fit: str | None = None,
    levels: str | None = None,
    zero: bool = False,
    select: Select | str | tuple[str, ...] | None = None,
    coding: str = "packed",
    granularity: str | int = "tensor",
    axes: Mapping[str, tuple[int, ...]] | None = None,
    bits_per_weight: float | None = None,
    max_bytes: int | str | None = None,
    mean_correlation: float | None = None,
    min_correlation: float | None = None,
    importance: Mapping[str, float] | None = None,
    config: Config | None = None,
    progress: Callable[[str], None] | None = None,
) -> tuple[Any, Report]:
    """Quantize the kernels of a parameter tree, without data and without retraining.

    For each selected tensor the quantizer of largest Pearson correlation between the weights and
    the quantized weights is fitted to the density of the weights (docs/method.md; after
    Pushkareva and Karandashev, OMNN 29(3), 2020).

    Args:
        params: a pytree of arrays (numpy or jax; any shapes).
        bits: bits a weight, 1 to 8 (None: 4), or a mapping from path pattern to bits, of which the
            first that matches a path counts; selected leaves that no pattern matches stay as they
            are. With a target it says which widths may be taken (None: all): a number, several in a
            tuple, or a mapping from path pattern to either.
        grid: "linear", "exponential", "optimal" or "nf4".
        fit: "correlation" or "range"; None for the grid's own.
        levels: "mean" or "grid"; None for the grid's own.
        zero: whether zero is a level of the exponential grid.
        select: predicate (path, leaf), or one or several path patterns; None for kernels and
            embeddings. A pattern is a glob on the path, whose keys are joined by "/"; it also
            selects all below it.
        coding: "packed"; "trellis": codes of the same width that choose from 2 to 16 times as many
            levels, with a third to three quarters less noise from 2 bits on, up to 7 bits
            (`corrq_jax.core.trellis`); "entropy": codes that take about as many bits in a file as
            the entropy of the levels, which are chosen for it; or "entropy-trellis": both, the
            least noise for a file of a given size. In memory codes are packed all the same.
        granularity: "tensor"; "channel" or a number of weights: levels are multiplied by a 16-bit
            scale for each output channel, or for each group of so many weights of a channel; "auto"
            (with a target, or entropy coding): what serves each tensor better.
        axes: mapping from path pattern to channel axes, where the default
            (`corrq_jax.granularity.channel_axes`) is wrong.
        bits_per_weight: target: at most this many stored bits a quantized weight, everything
            counted. The bits of each tensor are chosen so that the sum over tensors of
            ``1 - rho**2``, times their importance, is smallest.
        max_bytes: target: at most this size of the whole file, in bytes or as "4MB".
        mean_correlation: target: the smallest file in which the mean of rho over tensors is this.
        min_correlation: target: the smallest file in which each rho is at least this. Only one
            target can be given.
        importance: mapping from path to the weight of a tensor in the sum; 1 where it has none.
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
    single = Config(
        bits=bits,
        grid=grid,
        fit=fit,
        levels=levels,
        zero=zero,
        select=select,
        coding=coding,
        granularity=granularity,
        axes=axes or (),
        bits_per_weight=bits_per_weight,
        max_bytes=max_bytes,
        mean_correlation=mean_correlation,
        min_correlation=min_correlation,
    )
    if config is None:
        config = single
    elif not isinstance(config, Config):
        raise InputError(f"config={config!r}: give a corrq_jax.Config")
    elif single != Config():
        raise InputError("quantize: give either config or the single options, not both")
    return quantize_by(Passes(measure, menu.encode), params, config, importance, progress)


def quantize_by(
    passes: Passes,
    params: Any,
    config: Config,
    importance: Mapping[str, float] | None = None,
    progress: Callable[[str], None] | None = None,
) -> tuple[Any, Report]:
    """`quantize` with passes over the tensors that are given."""
    entries, treedef = paths.flatten(params)
    chosen, reasons = choose(config, entries)
    _check_importance(importance, [path for path, _ in entries])
    _check_sharded(config, chosen)
    budget: Budget | None = None
    menus = _menus(chosen, config, passes)
    if config.target is None:
        results = ((path, _encoded_alone(options, passes)) for path, options in menus)
    else:
        menus = dict(menus)
        rest = layout.rest_nbytes(params, set(menus)) if config.max_bytes is not None else 0
        found, budget = _within_target(menus, config, importance or {}, rest, passes)
        results = iter(found.items())
    fitted = {}
    for path, result in results:
        fitted[path] = _Fitted(*result)
        if progress is not None:
            progress(path)
    for path in chosen.keys() - fitted.keys():
        reasons[path] = "constant: kept as it is, its correlation is undefined"
    new = [fitted[path].tensor if path in fitted else leaf for path, leaf in entries]
    tree = jax.tree_util.tree_unflatten(treedef, new)
    return tree, _report(tree, entries, fitted, reasons, budget)


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


def _check_importance(importance: Mapping[str, float] | None, all_paths: list[str]) -> None:
    if not isinstance(importance, Mapping | None):
        raise InputError(f"importance={importance!r}: give a mapping from path to a number")
    for path, value in (importance or {}).items():
        if path not in all_paths:
            raise InputError(f"importance: {path!r} is not the path of a leaf")
        number = np.asarray(value)
        if number.shape or number.dtype.kind not in "fiu" or not 0 < number < np.inf:
            raise InputError(f"importance of {path!r} is {value}; it has to be a number above 0")


def _check_sharded(config: Config, chosen: dict[str, Any]) -> None:
    if config.granularity == "tensor" and config.coding == "packed":
        return
    wrong = "granularity" if config.granularity != "tensor" else "coding"
    for path, array in chosen.items():
        if sharding_of(array) is not None:
            raise InputError(
                f"{path}: it lies on a mesh of devices, where {wrong}="
                f"{getattr(config, wrong)!r} is not supported; leave it out, or fetch the tree "
                "with jax.device_get first"
            )


def _variants(
    path: str, array: Any, config: Config, extremes: tuple[float, float] | None = None
) -> list[leaves.Leaf]:
    """A leaf in each granularity that it may have; none if it is constant."""
    sharding = sharding_of(array)
    if sharding is None:
        leaf = leaves.read(path, array, extremes)
    else:
        leaf = sharded_leaf.read(path, array, sharding)
    if leaf.is_constant:
        return []
    coarse = "tensor" if config.granularity == "auto" else config.granularity
    names = ("tensor", "channel") if config.granularity == "auto" else (coarse,)
    shape = tuple(int(n) for n in leaf.array.shape)
    rows = [rows_of(path, shape, name, config.axes_of(path)) for name in names]
    kept = [r for i, r in enumerate(rows) if r is not None or i == 0]
    return [leaf if r is None else scaled(leaf, r) for r in kept]


def measure(
    path: str, array: Any, config: Config, extremes: tuple[float, float] | None = None
) -> list[menu.Measured]:
    """The densities of a leaf in each granularity that it may have; none if it is constant."""
    return [menu.measure(variant) for variant in _variants(path, array, config, extremes)]


def _menus(
    chosen: dict[str, Any], config: Config, passes: Passes
) -> Iterator[tuple[str, list[menu.Option]]]:
    """Each tensor's options, a batch of equal widths at a time; skips constant ones."""
    pending: dict[tuple[tuple[int, ...], bool], list[menu.Measured]] = {}
    together: dict[str, list[menu.Option]] = {}
    waiting: dict[str, int] = {}

    def finish(widths: tuple[int, ...], coded: bool) -> Iterator[tuple[str, list[menu.Option]]]:
        batch = pending.pop((widths, coded))
        results = menu.options(batch, config, widths, coded)
        names = [item.leaf.path for item in batch]
        del batch  # and with it the densities
        for path, found in zip(names, results, strict=True):
            together.setdefault(path, []).extend(found)
            waiting[path] -= 1
            if not waiting[path]:
                yield path, together.pop(path)

    extremes = leaves.extremes({p: a for p, a in chosen.items() if sharding_of(a) is None})
    for path, array in chosen.items():
        widths = config.widths_of(path)
        assert widths is not None  # choose took only such
        allowed = widths, config.may_be_coded(path)
        variants = passes.measure(path, array, config, extremes.get(path))
        waiting[path] = len(variants)
        for variant in variants:
            batch = pending.setdefault(allowed, [])
            batch.append(variant)
            if len(batch) == menu.batch_size(batch[0]):
                yield from finish(*allowed)
    for allowed in list(pending):
        yield from finish(*allowed)


def _within_target(
    menus: dict[str, list[menu.Option]],
    config: Config,
    importance: Mapping[str, float],
    rest: int,
    passes: Passes,
) -> tuple[dict[str, tuple[QuantizedTensor, float]], Budget]:
    """Tensors and their noise as a target asks for.

    With scales or along a trellis the noise is a prediction, and so are the bytes of what is
    entropy-coded. Where they were too low for the target, what encoding found takes their place,
    and the choice is made again.
    """
    promised = str(config.target).endswith("correlation")
    room = bytes_allowed(menus, config, rest)
    encoded: dict[str, tuple[menu.Option, tuple[QuantizedTensor, float]]] = {}
    while True:
        picks, budget = allocate(menus, config, importance, rest)
        found: dict[str, menu.Option] = {}
        for path, option in picks.items():
            if path not in encoded or encoded[path][0] is not option:
                encoded[path] = option, passes.encode(option)
            found[path] = option
            if option.is_predicted:
                found[path] = menu.as_encoded(option, *encoded[path][1])
        if promised:
            kept = all(found[path].noise <= option.noise for path, option in picks.items())
        else:
            kept = sum(option.nbytes for option in found.values()) <= room
        if kept:
            return {path: result for path, (_, result) in encoded.items()}, budget
        for path, option in picks.items():
            menus[path] = [found[path] if o is option else o for o in menus[path]]
            encoded[path] = found[path], encoded[path][1]


def _encoded_alone(options: list[menu.Option], passes: Passes) -> tuple[QuantizedTensor, float]:
    """Without a target: the least noise in at most the bytes of packed codes of these bits."""
    limit = min((o.nbytes for o in options if not is_entropy_coded(o.coding)), default=np.inf)
    small = sorted((o for o in options if o.nbytes <= limit), key=lambda o: o.noise)
    for option in small[:-1]:
        result = passes.encode(option)
        if not option.is_predicted or menu.as_encoded(option, *result).nbytes <= limit:
            return result
    return passes.encode(small[-1])


def _report(
    tree: Any,
    entries: list[tuple[str, Any]],
    fitted: dict[str, _Fitted],
    reasons: dict[str, str],
    budget: Budget | None,
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
                    coding=tensor.coding,
                    rows=1 if tensor.rows is None else math.prod(tensor.rows.shape),
                )
            )
        else:
            shape = tuple(int(n) for n in getattr(original, "shape", ()))
            skipped.append(Skipped(path, shape, nbytes, reasons[path]))
    return Report(tuple(rows), tuple(skipped), file.file_nbytes, budget)
