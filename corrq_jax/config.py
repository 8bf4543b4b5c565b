"""How to quantize: one frozen, hashable record, checked once when it is made."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from corrq_jax.core.fit import Method
from corrq_jax.errors import InputError

_FITS = ("correlation", "range")
_LEVELS = ("mean", "grid")

# What each grid allows, its default first.
_ALLOWED: dict[str, dict[str, tuple[str, ...]]] = {
    "linear": {"fit": _FITS, "levels": _LEVELS},
    "exponential": {"fit": _FITS, "levels": _LEVELS},
    "optimal": {"fit": ("correlation",), "levels": ("mean",)},
    "nf4": {"fit": ("range",), "levels": ("grid",)},
}

Select = Callable[[str, Any], bool]


def matches(path: str, pattern: str) -> bool:
    """Whether a path matches a glob pattern, or lies below a path that does.

    >>> matches("blocks/0/conv/kernel", "*/kernel"), matches("blocks/0/conv/kernel", "blocks/0")
    (True, True)
    """
    return fnmatchcase(path, pattern) or fnmatchcase(path, f"{pattern}/*")


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of `corrq_jax.quantize`.

    Attributes:
        bits: bits a weight, 1 to 8, sign included; or pairs (path pattern, bits), of which the
            first that matches a path counts (a mapping is accepted and kept as pairs).
        grid: "linear" (equal intervals), "exponential" (magnitudes in geometric progression),
            "optimal" (free levels: exact one-dimensional k-means) or "nf4".
        fit: "correlation" (the grid's parameters maximize the Pearson correlation) or "range" (the
            plain baselines: the grid spans the weights). None: the grid's own, "range" for nf4.
        levels: "mean" (the value of a level is the mean of its cell) or "grid" (values on the
            grid). None: the grid's own, "grid" for nf4.
        zero: whether zero is a level of the exponential grid; it then has 2**bits - 1 levels.
        select: which leaves to quantize: path patterns, or a predicate of (path, leaf). None:
            kernels and embeddings, see `corrq_jax.tree.default_select`.

    Raises:
        InputError: a value is outside of what is allowed; the message says what is.

    >>> Config(bits=4).grid
    'optimal'
    """

    bits: int | Mapping[str, int] | tuple[tuple[str, int], ...] = 4
    grid: str = "optimal"
    fit: str | None = None
    levels: str | None = None
    zero: bool = False
    select: Select | tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.grid, str) or self.grid not in _ALLOWED:
            raise InputError(f"grid={self.grid!r}: choose one of {', '.join(map(repr, _ALLOWED))}")
        for name in ("fit", "levels"):
            allowed = _ALLOWED[self.grid][name]
            value = getattr(self, name)
            if value is None:
                object.__setattr__(self, name, allowed[0])
            elif value not in allowed:
                choice = " or ".join(map(repr, allowed))
                raise InputError(f"{name}={value!r} with grid={self.grid!r}: it has to be {choice}")
        object.__setattr__(self, "bits", self._checked_bits())
        object.__setattr__(self, "select", self._checked_select())
        if self.zero and self.grid != "exponential":
            raise InputError(f"zero=True with grid={self.grid!r}: only 'exponential' takes it")

    def _checked_bits(self) -> int | tuple[tuple[str, int], ...]:
        if isinstance(self.bits, Mapping | tuple):
            items = self.bits.items() if isinstance(self.bits, Mapping) else self.bits
            pairs = tuple((pattern, self._one(bits, pattern)) for pattern, bits in items)
            if not pairs:
                raise InputError("bits is an empty mapping: give at least one path pattern")
            return pairs
        return self._one(self.bits)

    def _one(self, bits: Any, pattern: str | None = None) -> int:
        where = "bits" if pattern is None else f"bits[{pattern!r}]"
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

    def bits_of(self, path: str) -> int | None:
        """Bits for a path; None if no pattern matches it."""
        if isinstance(self.bits, int):
            return self.bits
        return next((bits for pattern, bits in self._pairs() if matches(path, pattern)), None)

    def _pairs(self) -> tuple[tuple[str, int], ...]:
        assert isinstance(self.bits, tuple)  # __post_init__ made it one
        return self.bits

    def patterns(self) -> tuple[str, ...]:
        """All path patterns in this configuration, for checking that each matches something."""
        bits = () if isinstance(self.bits, int) else tuple(p for p, _ in self._pairs())
        return bits + (self.select if isinstance(self.select, tuple) else ())

    def method(self, bits: int) -> Method:
        """What the core fits for a tensor of these bits."""
        return Method(self.grid, str(self.fit), str(self.levels), bits, self.zero)
