"""How to quantize: one frozen, hashable record, checked once when it is made."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from numbers import Integral, Real
from operator import index
from typing import Any

from corrq_jax.codings import CODINGS, is_entropy_coded
from corrq_jax.core.fit import Method
from corrq_jax.core.grids import GRIDS
from corrq_jax.errors import InputError

_FITS = ("correlation", "range")
_LEVELS = ("mean", "grid")

# What grids without parameters allow; those of `GRIDS` allow everything.
_WITHOUT_PARAMETERS: dict[str, dict[str, tuple[str, ...]]] = {
    "optimal": {"fit": ("correlation",), "levels": ("mean",)},
    "nf4": {"fit": ("range",), "levels": ("grid",)},
}

_GRANULARITIES = ("tensor", "channel", "auto")
_TARGETS = ("bits_per_weight", "max_bytes", "mean_correlation", "min_correlation")
_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9}
_UNITS |= {"kib": 2**10, "mib": 2**20, "gib": 2**30}

Select = Callable[[str, Any], bool]
Bits = int | None | Mapping[str, Any] | tuple[Any, ...]


def matches(path: str, pattern: str) -> bool:
    """Whether a path matches a glob pattern, or lies below a path that does.

    >>> matches("blocks/0/conv/kernel", "*/kernel"), matches("blocks/0/conv/kernel", "blocks/0")
    (True, True)
    """
    return fnmatchcase(path, pattern) or fnmatchcase(path, f"{pattern}/*")


def _bytes(value: Any) -> Any:
    """A number of bytes from text such as "4MB"; anything else as it is."""
    if not isinstance(value, str):
        return value
    found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([a-zA-Z]*)\s*", value)
    if found is None or found[2].lower() not in _UNITS:
        raise InputError(f"max_bytes={value!r}: give a number of bytes, or text such as '4MB'")
    return int(float(found[1]) * _UNITS[found[2].lower()])


def _allowed() -> dict[str, dict[str, tuple[str, ...]]]:
    """What each grid allows, its default first."""
    return {grid: {"fit": _FITS, "levels": _LEVELS} for grid in GRIDS} | _WITHOUT_PARAMETERS


def _where(pattern: str | None) -> str:
    return "bits" if pattern is None else f"bits[{pattern!r}]"


def _are_pairs(bits: Any) -> bool:
    return isinstance(bits, tuple) and bool(bits) and isinstance(bits[0], tuple)


def _is_pair(item: Any) -> bool:
    return isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str)


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of `corrq_jax.quantize`.

    Attributes:
        bits: bits a weight, 1 to 8, sign included (None: 4); or pairs (path pattern, bits), of
            which the first that matches a path counts (a mapping is accepted and kept as pairs).
        grid: "linear" (equal intervals), "exponential" (magnitudes in geometric progression),
            "optimal" (free levels: exact one-dimensional k-means) or "nf4".
        fit: "correlation" (the grid's parameters maximize the Pearson correlation) or "range" (the
            plain baselines: the grid spans the weights). None: the grid's own, "range" for nf4.
        levels: "mean" (the value of a level is the mean of its cell) or "grid" (values on the
            grid). None: the grid's own, "grid" for nf4.
        zero: whether zero is a level of the exponential grid; it then has 2**bits - 1 levels.
        select: which leaves to quantize: path patterns, or a predicate of (path, leaf). None:
            kernels and embeddings, see `corrq_jax.selection.default_select`.
        coding: "packed" (b bits a weight in the file), "trellis" (b bits a weight, with 2 to 16
            times as many levels, up to 7 bits), "entropy" (as many bits as the entropy of the
            levels, which are chosen for it) or "entropy-trellis" (both); the latter three with free
            levels only.
        granularity: "tensor" (one table of levels as it is), "channel" (times a scale for each
            output channel), a number of weights (times a scale for each group of so many), or
            "auto" (with a target: for each tensor "tensor" or "channel", whichever serves better).
        axes: mapping from path pattern to channel axes that overrule the default ones, or pairs.
        bits_per_weight: target: stored bits for each quantized weight, everything counted.
        max_bytes: target: bytes of the whole file, or text such as "4MB" or "4MiB".
        mean_correlation: target: the smallest file whose mean rho over tensors is this.
        min_correlation: target: the smallest file in which every tensor's rho is at least this.
            At most one target can be given. ``bits`` then says which widths may be taken: one
            number, several in a tuple, or pairs (path pattern, either); None for 1 to 8. Tensors
            that a pattern of it matches are packed, also with entropy coding.

    Raises:
        InputError: a value is outside of what is allowed; the message says what is.

    >>> Config(bits=4).grid
    'optimal'
    """

    bits: Bits = None
    grid: str = "optimal"
    fit: str | None = None
    levels: str | None = None
    zero: bool = False
    select: Select | str | tuple[str, ...] | None = None
    coding: str = "packed"
    granularity: str | int = "tensor"
    axes: Any = ()
    bits_per_weight: float | None = None
    max_bytes: int | str | None = None
    mean_correlation: float | None = None
    min_correlation: float | None = None

    def __post_init__(self) -> None:
        known = _allowed()
        if not isinstance(self.grid, str) or self.grid not in known:
            raise InputError(f"grid={self.grid!r}: choose one of {', '.join(map(repr, known))}")
        for name in ("fit", "levels"):
            allowed = known[self.grid][name]
            value = getattr(self, name)
            if value is None:
                object.__setattr__(self, name, allowed[0])
            elif value not in allowed:
                choice = " or ".join(map(repr, allowed))
                raise InputError(f"{name}={value!r} with grid={self.grid!r}: it has to be {choice}")
        self._check_targets()
        object.__setattr__(self, "bits", self._checked_bits())
        object.__setattr__(self, "select", self._checked_select())
        if self.zero and self.grid != "exponential":
            raise InputError(f"zero=True with grid={self.grid!r}: only 'exponential' takes it")
        if self.coding not in CODINGS:
            choice = " or ".join(map(repr, CODINGS))
            raise InputError(f"coding={self.coding!r}: it has to be {choice}")
        if self.coding != "packed" and self.grid != "optimal":
            raise InputError(
                f"coding={self.coding!r} with grid={self.grid!r}: only 'optimal' takes it"
            )
        self._check_granularity()

    def _check_targets(self) -> None:
        given = [name for name in _TARGETS if getattr(self, name) is not None]
        if len(given) > 1:
            raise InputError(f"give one target, not {' and '.join(given)}")
        for name in given:
            value = getattr(self, name)
            if name == "max_bytes":
                value = _bytes(value)
                object.__setattr__(self, name, value)
            if isinstance(value, bool) or not isinstance(value, Real) or not float(value) > 0:
                raise InputError(f"{name}={value!r}: give a number above 0")
            if name.endswith("correlation") and float(value) >= 1:
                raise InputError(f"{name}={value!r}: give a correlation below 1")

    def _check_granularity(self) -> None:
        value = self.granularity
        if isinstance(value, str):
            if value not in _GRANULARITIES:
                choice = ", ".join(map(repr, _GRANULARITIES))
                raise InputError(f"granularity={value!r}: give one of {choice}, or a group size")
            if value == "auto" and self.target is None and not is_entropy_coded(self.coding):
                raise InputError(
                    f"granularity='auto' chooses within a target: give one of {', '.join(_TARGETS)}"
                )
        elif isinstance(value, bool) or not isinstance(value, Integral) or value < 2:
            raise InputError(
                f"granularity={value!r}: give a name, or a group size, which is 2 or more"
            )
        axes = self.axes.items() if isinstance(self.axes, Mapping) else self.axes
        try:
            pairs = tuple((str(p), tuple(index(i) for i in a)) for p, a in axes)
        except (TypeError, ValueError):
            raise InputError(f"axes={self.axes!r}: give a mapping from pattern to axes") from None
        object.__setattr__(self, "axes", pairs)

    @property
    def target(self) -> str | None:
        """The name of the target that was given."""
        return next((name for name in _TARGETS if getattr(self, name) is not None), None)

    def _checked_bits(self) -> Bits:
        bits: Any = self.bits
        if bits is None:
            return None if self.target is not None else 4
        if isinstance(bits, Mapping):
            bits = tuple(bits.items())
            if not bits:
                raise InputError("bits is an empty mapping: give at least one path pattern")
        if _are_pairs(bits):
            if not all(map(_is_pair, bits)):
                raise InputError(f"bits={self.bits!r}: give path patterns, as text, and bits")
            return tuple((pattern, self._some(some, pattern)) for pattern, some in bits)
        return self._some(bits)

    def _some(self, bits: Any, pattern: str | None = None) -> int | tuple[int, ...]:
        """One width, or with a target several."""
        if not isinstance(bits, tuple | list | range):
            return self._one(bits, pattern)
        if self.target is None:
            raise InputError(
                f"{_where(pattern)}={bits!r}: give a whole number from 1 to 8; to choose from "
                "several needs a target, such as bits_per_weight"
            )
        if not bits:
            raise InputError(f"{_where(pattern)} is empty: give at least one width")
        return tuple(sorted({self._one(b, pattern) for b in bits}))

    def _one(self, bits: Any, pattern: str | None = None) -> int:
        where = _where(pattern)
        try:
            value = int(bits)
        except (TypeError, ValueError, OverflowError):
            value = None
        if value is None or isinstance(bits, bool) or value != bits:
            raise InputError(f"{where}={bits!r}: give a whole number from 1 to 8, or a mapping")
        lowest = 2 if self.zero else 1
        if self.grid == "nf4" and value != 4:
            raise InputError(f"{where}={value} with grid='nf4': NF4 has 4 bits")
        if not lowest <= value <= 8:
            why = " (with zero=True one level is zero)" if self.zero else ""
            raise InputError(f"{where}={value}: give a whole number from {lowest} to 8{why}")
        return value

    def _checked_select(self) -> Select | tuple[str, ...] | None:
        if self.select is None or callable(self.select):
            return self.select
        patterns = (self.select,) if isinstance(self.select, str) else self.select
        patterns = tuple(patterns) if isinstance(patterns, Iterable) else ()
        if not patterns or not all(isinstance(p, str) and p for p in patterns):
            raise InputError(
                f"select={self.select!r}: give a predicate (path, leaf), or path patterns such as "
                "'*/kernel'"
            )
        return patterns

    def widths_of(self, path: str) -> tuple[int, ...] | None:
        """The widths that a path may take; None if no pattern of bits matches it.

        With a target a path that no pattern matches may take any.
        """
        named = self._named_widths(path)
        return self._every_width if named is None and self.target is not None else named

    def may_be_coded(self, path: str) -> bool:
        """Whether a path's codes may be entropy-coded, whose bits are no width.

        Not where there is a target and a pattern of ``bits`` matches: its widths are kept then.
        """
        pinned = _are_pairs(self.bits) and self._named_widths(path) is not None
        return is_entropy_coded(self.coding) and not (pinned and self.target is not None)

    @property
    def _every_width(self) -> tuple[int, ...]:
        return (4,) if self.grid == "nf4" else tuple(range(2 if self.zero else 1, 9))

    def _named_widths(self, path: str) -> tuple[int, ...] | None:
        bits: Any = self.bits
        if _are_pairs(bits):
            bits = next((some for pattern, some in bits if matches(path, pattern)), None)
        return (bits,) if isinstance(bits, int) else bits

    def axes_of(self, path: str) -> tuple[int, ...] | None:
        """The channel axes given for a path, if any."""
        return next((axes for pattern, axes in self.axes if matches(path, pattern)), None)

    def patterns(self) -> tuple[str, ...]:
        """All path patterns in this configuration, for checking that each matches something."""
        bits: Any = self.bits
        named = tuple(pattern for pattern, _ in bits) if _are_pairs(bits) else ()
        axes = tuple(pattern for pattern, _ in self.axes)
        return named + axes + (self.select if isinstance(self.select, tuple) else ())

    def method(self, bits: int) -> Method:
        """What the core fits for a tensor of these bits."""
        return Method(self.grid, str(self.fit), str(self.levels), bits, self.zero)
