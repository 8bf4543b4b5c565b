"""Data-free quantizers that people use elsewhere, re-implemented for a comparison in one run.

Each `Peer` follows the mathematics and the conventions of the library that it is named after, and
counts the bytes that its codes, scales, zero points and codebooks take: packed codes, no header,
no constants of the method. Where a library refuses a tensor (ragged groups, convolutions) or
stores codes in more bits than they have, the peer gets the more favourable treatment: it
quantizes the tensor, and its codes are packed. `benchmarks/peers.py` compares each with its
library.

Groups lie inside an output channel. Blocks, as bitsandbytes and hqq cut them, are from the
flattened (out, in) matrix; where the inputs are no multiple of 64, as in depthwise convolutions,
they mix channels: fewer scales to store, and more noise. Elsewhere the two are the same.

They share no code with `corrq_jax.core` but the measure, the Pearson correlation.

>>> import numpy as np
>>> w = np.random.default_rng(0).normal(size=(3, 3, 16, 32)).astype(np.float32)
>>> for peer in peers(["int absmax, channel", "HQQ, groups of 64", "k-means, tensor"]):
...     _, rows = peer.quantize_tree({"kernel": w}, bits=3)
...     print(f"{peer.name}: {stored_bits(rows):.2f} bits, noise {rows[0].noise:.3f}")
int absmax, channel: 3.22 bits, noise 0.054
HQQ, groups of 64: 3.67 bits, noise 0.029
k-means, tensor: 3.03 bits, noise 0.033
"""

from collections.abc import Iterable
from functools import partial

from corrq_jax.errors import InputError
from corrq_jax.peers.base import CHANNEL, TENSOR, Groups, Layout, Peer, PeerRow, stored_bits
from corrq_jax.peers.hqq import half_quadratic
from corrq_jax.peers.integers import absmax, min_max
from corrq_jax.peers.kmeans import kmeans
from corrq_jax.peers.normal_float import normal_float

_GROUPS_OF_64 = Layout(per_channel=True, size=64)
_BLOCKS_OF_64 = Layout(per_channel=False, size=64)
_INTEGER_BITS = tuple(range(2, 9))
_HQQ_BITS = (1, 2, 3, 4, 5, 6, 8)  # those of the library

PEERS = (
    Peer("int absmax, tensor", absmax, TENSOR, _INTEGER_BITS),
    Peer("int absmax, channel", absmax, CHANNEL, _INTEGER_BITS),
    Peer("int absmax, groups of 64", absmax, _GROUPS_OF_64, _INTEGER_BITS),
    Peer("int min-max, tensor", min_max, TENSOR, _INTEGER_BITS),
    Peer("int min-max, channel", min_max, CHANNEL, _INTEGER_BITS),
    Peer("int min-max, groups of 64", min_max, _GROUPS_OF_64, _INTEGER_BITS),
    Peer("NF4, channel", normal_float, CHANNEL, (4,)),
    Peer("NF4, groups of 64", normal_float, _GROUPS_OF_64, (4,)),
    Peer("NF4, blocks of 64", normal_float, _BLOCKS_OF_64, (4,)),
    Peer(
        "NF4, blocks of 64, double",
        partial(normal_float, double_quantization=True),
        _BLOCKS_OF_64,
        (4,),
    ),
    Peer("HQQ, groups of 64", half_quadratic, _GROUPS_OF_64, _HQQ_BITS),
    Peer("HQQ, blocks of 64", half_quadratic, _BLOCKS_OF_64, _HQQ_BITS),
    Peer("k-means, tensor", kmeans, TENSOR, tuple(range(1, 9))),
)
"""All peers, by the names that tables and figures show."""


def peers(names: Iterable[str]) -> tuple[Peer, ...]:
    """Peers by name.

    Raises:
        InputError: there is no such peer.
    """
    known = {peer.name: peer for peer in PEERS}
    names = tuple(names)
    for name in names:
        if name not in known:
            choice = "; ".join(known)  # the names themselves have commas
            raise InputError(f"there is no peer {name!r}; choose from: {choice}")
    return tuple(known[name] for name in names)


__all__ = [
    "CHANNEL",
    "PEERS",
    "TENSOR",
    "Groups",
    "Layout",
    "Peer",
    "PeerRow",
    "absmax",
    "half_quadratic",
    "kmeans",
    "min_max",
    "normal_float",
    "peers",
    "stored_bits",
]
