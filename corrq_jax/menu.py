"""What a tensor can be stored as: each option with its bytes and its noise, before any is encoded.

Everything here comes from densities; an option says what `encode` then makes of the weights.
"""

import dataclasses
from collections.abc import Sequence
from operator import itemgetter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from corrq_jax import encoding, entropy, layout, on_device, sharded_leaf, trellis_leaf
from corrq_jax import leaf as leaves
from corrq_jax.candidates import Candidate, Searched
from corrq_jax.codings import along_trellis, is_entropy_coded
from corrq_jax.config import Config
from corrq_jax.core import coding, ungerboeck
from corrq_jax.core.density import Density, Normalization
from corrq_jax.core.fit import Quantizer
from corrq_jax.leaf import Leaf
from corrq_jax.memory import give_back
from corrq_jax.rescale import refine
from corrq_jax.tensor import QuantizedTensor

BATCH = 8
"""Densities in one call of a search: one compilation serves a network of any number of layers."""
BATCH_ON_DEVICE = 16
"""On an accelerator, where twice as many take no longer."""


class Measured(NamedTuple):
    """A leaf, its density and the normalization of that."""

    leaf: Leaf
    density: Density
    norm: Normalization


@dataclasses.dataclass(frozen=True)
class Option:
    """One way to store a tensor.

    Attributes:
        leaf: the tensor, with or without scales.
        norm: its normalization.
        quantizer: boundaries and values in normalized units, boundaries that are not needed above
            all weights (with a trellis only values count); None to store its few distinct weights
            as they are.
        bits: bits of a packed code.
        coding: one of `corrq_jax.codings.CODINGS`.
        nbytes: bytes in a file, its share of the header included; an upper bound, but a prediction
            where it is entropy-coded.
        noise: ``1 - rho**2``; with scales or a trellis a prediction.
        price: what a weight of each value costs beside its squared error, where that counts.
    """

    leaf: Leaf
    norm: Normalization
    quantizer: Quantizer | None
    bits: int
    coding: str
    nbytes: int
    noise: float
    price: np.ndarray | None = None

    @property
    def is_predicted(self) -> bool:
        """Whether encoding may find another noise, or other bytes."""
        may_vary = along_trellis(self.coding) or is_entropy_coded(self.coding)
        return self.leaf.scales is not None or may_vary


def _reading(leaf: Leaf) -> Any:
    """The module that reads it: where it lies on a mesh of devices, or in one place."""
    return leaves if leaf.sharding is None else sharded_leaf


def _encoding(leaf: Leaf) -> Any:
    """The module that encodes it, likewise."""
    return encoding if leaf.sharding is None else sharded_leaf


def measure(leaf: Leaf) -> Measured:
    """The density of a leaf that is not constant; the leaf without weights that are on disk."""
    return Measured(leaves.released(leaf), *_reading(leaf).measure(leaf))


def batch_size(item: Measured) -> int:
    """How many tensors like this one are searched together."""
    return BATCH_ON_DEVICE if on_device.holds(item.density.counts) else BATCH


def options(
    batch: Sequence[Measured], config: Config, widths: Sequence[int], coded: bool
) -> list[list[Option]]:
    """The options of each of at most `batch_size` tensors; at least one for each.

    Args:
        batch: the tensors.
        config: which grid, fit and levels.
        widths: the widths that their packed codes may have.
        coded: whether they may be entropy-coded as well.
    """
    repeat = [batch[min(i, len(batch) - 1)] for i in range(batch_size(batch[0]))]
    density, norm, occupied = _together(repeat)
    batch = [item._replace(norm=jax.tree.map(itemgetter(i), norm)) for i, item in enumerate(batch)]
    lo, hi = np.array([[item.leaf.lo, item.leaf.hi] for item in repeat], np.float32).T
    sizes = [item.leaf.flat.size for item in batch]
    searched = Searched(density, norm, lo, hi, sizes, len(batch))
    found = [
        [_option(item, candidate) for candidate in candidates]
        for item, candidates in zip(batch, searched.candidates(config, widths, coded), strict=True)
    ]
    for i, item in enumerate(batch):
        exact = _exact(item, int(occupied[i]), max(map(_most_distinct, found[i])))
        if exact is not None:
            found[i] = [o for o in found[i] if o.nbytes < exact.nbytes] + [exact]
    if not on_device.holds(density.counts):
        give_back()
    return found


def _most_distinct(option: Option) -> int:
    """How many distinct weights there may be to be stored in as many bits, where widths count."""
    if option.coding == "trellis":  # it has more levels than codes
        return 1 << option.bits
    assert option.quantizer is not None
    return len(option.quantizer.values)


def _together(batch: Sequence[Measured]) -> tuple[Density, Normalization, np.ndarray]:
    """A batch of densities, made where they are, on a CPU without a compilation.

    Beside them, on the host, their normalizations and how many points of each have weights.
    """
    pairs = [(item.density, item.norm) for item in batch]
    there = [density.counts for density, _ in pairs if on_device.holds(density.counts)]
    if there:
        if len(set.union(*(counts.devices() for counts in there))) > 1:
            pairs = jax.device_put(pairs, there[0].sharding)
        density, *rest = _together_there(*pairs)
        return density, *jax.device_get(rest)
    density, norm = jax.tree.map(lambda *a: np.stack([np.asarray(x) for x in a]), *pairs)
    return jax.device_put(density), norm, np.count_nonzero(density.counts, axis=1)


@jax.jit
def _together_there(
    *pairs: tuple[Density, Normalization],
) -> tuple[Density, Normalization, jax.Array]:
    density, norm = jax.tree.map(lambda *a: jnp.stack(a), *pairs)
    return density, norm, jnp.count_nonzero(density.counts, axis=1)


def _option(item: Measured, candidate: Candidate) -> Option:
    leaf, how = item.leaf, candidate.coding
    quantizer, mass = candidate.quantizer, candidate.mass
    levels = len(quantizer.values)
    if mass is None:
        codes = coding.packed_size(leaf.flat.size, candidate.bits)
    else:
        dead = 0 if leaf.scales is None else leaf.scales.dead
        zero = int(np.abs(np.asarray(quantizer.values)).argmin())
        mass = mass.copy()
        mass[ungerboeck.symbols(zero, levels) if how == "entropy-trellis" else zero] += dead
        codes = entropy.predicted_nbytes(mass)
    noise = min(float(quantizer.noise) * leaf.variance_ratio, 1.0)
    return Option(
        leaf=leaf,
        norm=item.norm,
        quantizer=quantizer,
        bits=candidate.bits,
        coding=how,
        nbytes=codes + _beside(leaf, levels, how),
        noise=noise,
        price=candidate.price,
    )


def _exact(item: Measured, occupied: int, levels: int) -> Option | None:
    """A tensor of at most ``levels`` distinct weights as it is."""
    if item.leaf.scales is not None or occupied > levels:
        return None
    values = _reading(item.leaf).distinct(leaves.loaded(item.leaf), levels)
    if values is None:
        return None
    bits = max(1, int(values.size - 1).bit_length())
    nbytes = coding.packed_size(item.leaf.flat.size, bits)
    nbytes += _beside(item.leaf, values.size, "packed")
    return Option(item.leaf, item.norm, None, bits, "packed", nbytes, 0.0)


def _beside(leaf: Leaf, levels: int, how: str) -> int:
    """At most how many bytes a tensor takes beside its codes: levels, scales, header."""
    rows = None if leaf.scales is None else leaf.scales.rows
    shape = tuple(int(n) for n in leaf.array.shape)
    overhead = layout.overhead_nbytes(leaf.path, shape, leaf.dtype, rows, how)
    return overhead + levels * (8 if leaf.dtype == "float64" else 4)


def as_encoded(option: Option, tensor: QuantizedTensor, noise: float) -> Option:
    """The option with what encoding found in place of what was predicted."""
    parts = layout.parts_of(tensor)
    codes = sum(parts[end].nbytes for end in layout.OF_CODES if end in parts)
    nbytes = int(codes) + _beside(option.leaf, int(tensor.levels.shape[-1]), option.coding)
    return dataclasses.replace(option, nbytes=nbytes, noise=noise)


def encode(option: Option) -> tuple[QuantizedTensor, float]:
    """The tensor as an option says, and its noise."""
    leaf = leaves.loaded(option.leaf)
    if option.quantizer is None:
        values = _reading(leaf).distinct(leaf, 1 << option.bits)
        assert values is not None
        return _encoding(leaf).encode_exactly(leaf, values), 0.0
    if along_trellis(option.coding):
        values = np.asarray(option.quantizer.values)
        tensor, noise = trellis_leaf.encode(leaf, option.norm, values, option.price, option.bits)
    else:
        tensor = _encoding(leaf).encode(leaf, option.norm, option.quantizer, option.bits)
        noise = float(option.quantizer.noise)
    if leaf.scales is not None:
        tensor, noise = refine(leaf, tensor)
    return dataclasses.replace(tensor, coding=option.coding), noise
