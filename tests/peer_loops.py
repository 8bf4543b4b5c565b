"""Other libraries' quantizers as slow loops in float64: references for `corrq_jax.peers`."""

import math

import numpy as np

from corrq_jax.peers.normal_float import NF4


def loop_absmax(group, bits):
    half = 2 ** (bits - 1)
    scale = max(abs(w) for w in group) / (half - 0.5)
    return [scale * min(max(round(w / scale), -half), half - 1) for w in group] if scale else group


def loop_min_max(group, bits):
    low, high = min(0.0, *group), max(0.0, *group)
    scale = (high - low) / (2**bits - 1)
    if not scale:
        return group
    zero = round(-low / scale)
    return [scale * (min(max(round(w / scale) + zero, 0), 2**bits - 1) - zero) for w in group]


def loop_nf4(group, bits=4):
    largest = max(abs(w) for w in group)
    return [largest * min(map(float, NF4), key=lambda v: abs(v * largest - w)) for w in group]


def loop_hqq(groups, bits, steps=20):
    """Badri and Shaji's iteration, with the conventions of hqq's default solver."""
    top, settings = 2**bits - 1, []
    for group in groups:
        span = max(group) - min(group)
        scale = min(top / span, 2e4) if span > 1e-4 else 1.0
        zero = -min(group) * scale
        settings.append((scale, float(round(zero)) if bits == 4 else zero))

    def codes(group, scale, zero):
        return [min(max(round(w * scale + zero), 0), top) for w in group]

    best = math.inf
    for _ in range(steps):
        errors, new = [], []
        for group, (scale, zero) in zip(groups, settings, strict=True):
            targets = []
            for w, q in zip(group, codes(group, scale, zero), strict=True):
                e = w - (q - zero) / scale
                shrunk = max(abs(e) - abs(e) ** -0.3 / 10, 0) if e else 0
                errors.append(abs(e))
                targets.append(q - (w - math.copysign(shrunk, e)) * scale)
            new.append((scale, sum(targets) / len(targets)))
        settings = new
        if np.mean(errors) >= best:
            break
        best = np.mean(errors)
    decoded = []
    for group, (scale, zero) in zip(groups, settings, strict=True):
        step, offset = float(np.float16(1 / scale)), float(np.float16(zero))
        decoded.append([step * (q - offset) for q in codes(group, scale, zero)])
    return decoded


def loop_groups(w, name):
    """Lists of the weights that share a scale, for a (channels, inputs) matrix."""
    if name.endswith("tensor"):
        return [list(map(float, w.ravel()))]
    if "blocks" in name:
        w = w.reshape(1, -1)
    size = 64 if "64" in name else w.shape[1]
    return [list(map(float, row[i : i + size])) for row in w for i in range(0, w.shape[1], size)]
