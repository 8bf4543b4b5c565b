"""Noise at the stored bits of other libraries' quantizers: what is left of 1 - rho^2 at equal size.

For each network and each nominal width the peers of `corrq_jax.peers` that no other beats in both
bytes and noise; beside each this library with its budget set to the bits that the peer takes, in
fixed-width codes, along a trellis and entropy-coded. Shown is the peer that comes nearest to the
first. The noise is the mean of ``1 - rho**2`` over tensors, computed from the decoded weights in
float64; bits are bytes over quantized weights, of this library from the file, everything counted.

    python benchmarks/equal_bits.py                                  # all networks that are here
    python benchmarks/equal_bits.py fashion_resnet net.safetensors   # networks by name, files
"""

import argparse
import pathlib
import tempfile
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

import corrq_jax as corrq
from corrq_jax import models
from corrq_jax.flax import functional
from corrq_jax.paths import flatten
from corrq_jax.peers import PEERS, stored_bits
from corrq_jax.readers import read_weights
from corrq_jax.selection import default_select

BITS = (2, 3, 4)
CODINGS = {"packed": "fixed width", "trellis": "fixed width, trellis", "entropy": "entropy-coded"}


class Stored(NamedTuple):
    """A network by one quantizer: stored bits a weight, and the mean noise of its tensors."""

    name: str
    bits: float
    noise: float


def kernels(network: str) -> dict[str, np.ndarray]:
    """The tensors that are quantized by default, of a network by name or a file of weights."""
    if network in models.names():
        entries, _ = flatten(functional(models.load(network))[1])
    else:
        entries = list(read_weights(network).items())
    return {path: np.asarray(leaf) for path, leaf in entries if default_select(path, leaf)}


def not_beaten(found: list[Stored]) -> list[Stored]:
    """Those that no other equals or beats in both bits and noise."""
    return [
        one
        for one in found
        if not any(o.bits <= one.bits and o.noise <= one.noise and o is not one for o in found)
    ]


def by_peers(params: dict[str, np.ndarray], bits: int) -> list[Stored]:
    found = []
    for peer in PEERS:
        if bits in peer.bits:
            _, rows = peer.quantize_tree(params, bits)
            noise = float(np.mean([row.noise for row in rows]))
            found.append(Stored(peer.name, stored_bits(rows), noise))
    return not_beaten(found)


def by_corrq(params: dict[str, np.ndarray], bits: float, coding: str) -> Stored:
    quantized, _ = corrq.quantize(
        params, bits_per_weight=bits, coding=coding, select=lambda path, leaf: True
    )
    with tempfile.TemporaryDirectory() as folder:
        size = corrq.save(pathlib.Path(folder) / "net.safetensors", quantized)
    decoded = corrq.dequantize(quantized)
    noise = [1 - corrq.correlation(w, decoded[path]) ** 2 for path, w in params.items()]
    return Stored(coding, 8 * size / sum(w.size for w in params.values()), float(np.mean(noise)))


def rows(network: str, every: bool) -> Iterator[str]:
    params = kernels(network)
    title = f"{pathlib.Path(network).name}, {len(params)} tensors"
    for bits in BITS:
        packed = [(by_corrq(params, peer.bits, "packed"), peer) for peer in by_peers(params, bits)]
        packed = packed if every else [max(packed, key=lambda pair: pair[0].noise / pair[1].noise)]
        for first, peer in packed:
            others = [
                by_corrq(params, peer.bits, coding) for coding in CODINGS if coding != "packed"
            ]
            own = [first, *others]
            cells = [f"{one.bits:.2f}: {one.noise:.5f}" for one in (peer, *own)]
            cells = [title, str(bits), peer.name, *cells]
            cells += [f"{one.noise / peer.noise:.2f}" for one in own]
            yield "| " + " | ".join(cells) + " |"


def here() -> list[str]:
    return [name for name in models.names() if models.info(name).trained == "package"]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("networks", nargs="*", help="names or files; by default all that are here")
    parser.add_argument("--all", action="store_true", help="every peer, not the nearest alone")
    arguments = parser.parse_args()
    own = [f"corrq, {what}" for what in CODINGS.values()]
    head = ["network", "bits", "peer", "stored bits: noise", *own, *["ratio"] * len(own)]
    print("| " + " | ".join(head) + " |")
    print("|" + "---|" * len(head))
    for network in arguments.networks or here():
        for row in rows(network, arguments.all):
            print(row, flush=True)


if __name__ == "__main__":
    main()
