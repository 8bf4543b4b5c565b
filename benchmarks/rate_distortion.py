"""How near each coding comes to the least noise that its bits allow.

    python benchmarks/rate_distortion.py [--weights 1000000]

For weights of known densities: noise (share of the variance) of packed, trellis-coded and
entropy-coded levels, in decibels above what Shannon's bound leaves at as many bits. The bound of
Gaussian weights is exact, ``4**-R``; for the others it is Shannon's lower bound, ``4**(h - R)``
over that of the Gaussian, which is approached at high rates and cannot be reached at low ones.
Every figure is of the whole tensor, coded and decoded; bits are those of the codes or the stream
alone, since levels and header vanish in a large tensor.
"""

import argparse
import math

import jax
import numpy as np

from corrq_jax import encoding, entropy, trellis_leaf
from corrq_jax import leaf as leaves
from corrq_jax.candidates import Searched
from corrq_jax.codings import along_trellis, is_entropy_coded
from corrq_jax.config import Config
from corrq_jax.streams import symbols_in_pieces

BITS = (1, 2, 3, 4, 5)


def _differential_entropy(density, span):
    """Bits of a density of variance 1, by quadrature."""
    x = np.linspace(-span, span, 4_000_001)
    p = density(x)
    return float(-(p * np.log2(np.maximum(p, 1e-300))).sum() * (x[1] - x[0]))


def _t_density(degrees):
    scale = math.sqrt(degrees / (degrees - 2))
    factor = scale * math.gamma((degrees + 1) / 2)
    factor /= math.sqrt(degrees * math.pi) * math.gamma(degrees / 2)
    return lambda x: factor * (1 + (x * scale) ** 2 / degrees) ** (-(degrees + 1) / 2)


DRAWS = {
    "Gaussian": (lambda rng, n: rng.normal(size=n), 0.5 * math.log2(2 * math.pi * math.e)),
    "Laplace": (lambda rng, n: rng.laplace(size=n), math.log2(math.e * math.sqrt(2))),
    "Student's t, 4": (
        lambda rng, n: rng.standard_t(4, size=n),
        _differential_entropy(_t_density(4), 2000),
    ),
}


def curves(weights):
    """For each coding the points (bits, noise) of one tensor."""
    leaf = leaves.read("weights", weights)
    density, norm = leaves.measure(leaf)
    norm = jax.device_get(norm)
    density, norms = jax.tree.map(lambda a: np.asarray(a)[None], (density, norm))
    ends = (np.float32([end]) for end in (leaf.lo, leaf.hi))
    searched = Searched(jax.device_put(density), norms, *ends, [weights.size], 1)
    found = {}
    for coding in ("trellis", "entropy-trellis"):
        config = Config(bits=4, coding=coding)
        for candidate in searched.candidates(config, range(1, 7), coding != "trellis")[0]:
            found.setdefault(candidate.coding, []).append(candidate)
    return {
        coding: sorted(
            _point(leaf, norm, weights, candidate)
            for candidate in candidates
            if candidate.quantizer.noise < 1  # the coarsest can be down to one level
        )
        for coding, candidates in found.items()
    }


def _point(leaf, norm, weights, candidate):
    quantizer, bits = candidate.quantizer, candidate.bits
    if along_trellis(candidate.coding):
        values = np.asarray(quantizer.values)
        tensor, _ = trellis_leaf.encode(leaf, norm, values, candidate.price, bits)
    else:
        tensor = encoding.encode(leaf, norm, quantizer, bits)
    decoded = np.asarray(tensor.dequantize(), np.float64)
    noise = 1 - np.corrcoef(weights.astype(np.float64), decoded)[0, 1] ** 2
    if is_entropy_coded(candidate.coding):
        counts = sum(np.bincount(p, minlength=256) for p in symbols_in_pieces(tensor))
        bits = entropy.entropy(counts)
    return float(bits), float(noise)


def above_bound(points, bits, entropy_of_density):
    """Decibels, between the two points beside these bits; None where there are none."""
    rates, noise = np.array(points).T
    if not rates[0] <= bits <= rates[-1]:
        return None
    gaussian = 0.5 * math.log2(2 * math.pi * math.e)
    bound = 4.0 ** (entropy_of_density - gaussian - bits)
    return 10 * math.log10(math.exp(np.interp(bits, rates, np.log(noise))) / bound)


def main():
    """Print a table for each density."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=int, default=1_000_000)
    size = parser.parse_args().weights
    for seed, (name, (draw, bits_of_density)) in enumerate(DRAWS.items()):
        weights = draw(np.random.default_rng(seed), size).astype(np.float32)
        print(f"{name}: dB above Shannon's bound\n| bits | " + " | ".join(map(str, BITS)) + " |")
        print("|---" * (len(BITS) + 1) + "|")
        for coding, points in curves(weights).items():
            cells = [above_bound(points, bits, bits_of_density) for bits in BITS]
            shown = ["" if cell is None else f"{cell:.2f}" for cell in cells]
            print(f"| {coding} | " + " | ".join(shown) + " |", flush=True)
        print()


if __name__ == "__main__":
    main()
