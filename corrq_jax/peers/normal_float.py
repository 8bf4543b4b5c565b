"""NormalFloat-4: sixteen fixed levels times the largest magnitude of a group.

Dettmers et al., QLoRA (NeurIPS 2023, arXiv:2305.14314); bitsandbytes for blocks of the flattened
tensor, qwix for channels. The 8-bit code of the scales is from Dettmers, 8-Bit Approximations for
Parallelism in Deep Learning (ICLR 2016, arXiv:1511.04561).
"""

import numpy as np

from corrq_jax.peers.base import Groups

# The published table, appendix E of QLoRA.
NF4 = np.array(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ],
    np.float32,
)
"""float32[16], ascending."""

SCALES_IN_A_BLOCK = 256
_TINIEST = np.float32(1e-38)  # its reciprocal is finite


def normal_float(
    groups: Groups, bits: int = 4, *, double_quantization: bool = False
) -> tuple[np.ndarray, int]:
    """The nearest of the 16 levels times the group's largest magnitude.

    Args:
        groups: the weights.
        bits: 4.
        double_quantization: whether scales are stored in 8 bits instead of float32: less their
            mean, in blocks of 256 with a float32 scale each. The codes are those of exact scales.

    Returns:
        Decoded weights, and the bytes of the scales.

    >>> w = np.float32([[-2.0, 0.1, 0.7, 1.0]])
    >>> decoded, nbytes = normal_float(Groups(w, np.array([4])))
    >>> decoded.astype(float).round(3).tolist(), nbytes
    ([[-2.0, 0.159, 0.676, 0.881]], 4)
    """
    w = groups.weights
    scale = np.maximum(w.max(axis=1), -w.min(axis=1))
    codes = _nearest(w * (1 / np.maximum(scale, _TINIEST))[:, None], NF4)
    nbytes = scale.nbytes
    if double_quantization:
        scale, nbytes = quantized_scales(scale)
    return NF4[codes] * scale[:, None], nbytes


def quantized_scales(scales: np.ndarray) -> tuple[np.ndarray, int]:
    """Scales decoded from 8 bits, and the bytes: one each, 4 a block of 256, 4 for the mean."""
    mean = scales.mean(dtype=np.float32)
    centered = scales - mean
    blocks = -(-centered.size // SCALES_IN_A_BLOCK)
    padded = np.pad(centered, (0, blocks * SCALES_IN_A_BLOCK - centered.size))
    padded = padded.reshape(blocks, SCALES_IN_A_BLOCK)
    largest = np.abs(padded).max(axis=1, keepdims=True)
    codes = _nearest(padded * (1 / np.maximum(largest, _TINIEST)), DYNAMIC)
    decoded = (DYNAMIC[codes] * largest).reshape(-1)[: scales.size] + mean
    return decoded, scales.size + 4 * blocks + 4


def dynamic_levels() -> np.ndarray:
    """float32[256]: the signed dynamic 8-bit code.

    For each power of ten from 1e-6 to 1, the centres of twice as many equal parts of [0.1, 1] as
    for the power before, one at first, with both signs; zero; and one, with a plus only.
    """
    magnitudes = []
    for i in range(7):
        edges = np.linspace(0.1, 1, 2**i + 1, dtype=np.float32)
        magnitudes.extend(10.0 ** (i - 6) * (edges[1:] + edges[:-1]) / 2)
    magnitudes = np.array(magnitudes)
    return np.sort(np.concatenate([-magnitudes, [0.0], magnitudes, [1.0]])).astype(np.float32)


DYNAMIC = dynamic_levels()


def _nearest(x: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Index of the nearest of ascending levels; the lower one at a tie."""
    return np.searchsorted((levels[1:] + levels[:-1]) / 2, x)
