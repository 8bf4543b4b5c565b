"""Convolutions computed the way that is fastest on the platform at hand, with equal results.

`convolve` takes the place of `jax.lax.conv_general_dilated` in `flax.nnx.Conv`, so that kernels
keep Flax's standard layouts and no network has to know how its convolutions are computed.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def convolve(
    images: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    *,
    feature_group_count: int = 1,
    precision: Any = None,
    **options: Any,
) -> jax.Array:
    """A convolution of images (batch, height, width, channels) in Flax's layouts.

    Pointwise convolutions are matrix products on every platform. XLA's grouped convolution is
    several times slower on CPUs than the sum of shifted products, one for each tap of the kernel,
    so a depthwise convolution is that sum there.

    Args:
        images: float[batch, height, width, channels].
        kernel: float[kh, kw, channels / feature_group_count, features].
        strides: step along height and width.
        padding: "SAME", "VALID", or (low, high) for height and width.
        feature_group_count: 1, or `channels` for a depthwise convolution.
        precision: as in `jax.lax.conv_general_dilated`.
        **options: the other arguments of `jax.lax.conv_general_dilated`.

    Returns:
        float[batch, height', width', features].
    """

    def general(images: jax.Array, kernel: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(
            images,
            kernel,
            strides,
            padding,
            feature_group_count=feature_group_count,
            precision=precision,
            **options,
        )

    def shifted(images: jax.Array, kernel: jax.Array) -> jax.Array:
        return _sum_of_shifted_products(images, kernel, (strides[0], strides[1]), padding)

    if images.ndim != 4 or _special(options):
        return general(images, kernel)
    unpadded = isinstance(padding, str) or not np.any(padding)  # "SAME" does not pad a 1 x 1 kernel
    pointwise = kernel.shape[:2] == (1, 1) and tuple(strides) == (1, 1) and unpadded
    if pointwise and feature_group_count == 1:
        return jnp.matmul(images, kernel[0, 0], precision=precision)
    if feature_group_count == kernel.shape[-1] == images.shape[-1]:
        return lax.platform_dependent(images, kernel, cpu=shifted, default=general)
    return general(images, kernel)


def _special(options: dict[str, Any]) -> bool:
    """Whether `options` ask for what only the general convolution does."""
    if options.get("preferred_element_type") is not None:
        return True
    dilations = (options.get("lhs_dilation"), options.get("rhs_dilation"))
    return any(d is not None and any(step != 1 for step in d) for d in dilations)


def _sum_of_shifted_products(
    images: jax.Array,
    kernel: jax.Array,
    strides: tuple[int, int],
    padding: str | Sequence[tuple[int, int]],
) -> jax.Array:
    """A depthwise convolution with a kernel[kh, kw, 1, channels]."""
    batch, height, width, channels = images.shape
    taps = kernel.shape[:2]
    if isinstance(padding, str):
        padding = lax.padtype_to_pads((height, width), taps, strides, padding)
    rows, columns = (
        (size + sum(pads) - tap) // stride + 1
        for size, pads, tap, stride in zip((height, width), padding, taps, strides, strict=True)
    )
    padded = jnp.pad(images, ((0, 0), *padding, (0, 0)))
    # Like a convolution, sums are at least in float32.
    total_dtype = jnp.promote_types(images.dtype, jnp.float32)
    total = jnp.zeros((batch, rows, columns, channels), total_dtype)
    for i in range(taps[0]):
        for j in range(taps[1]):
            stop = (i + (rows - 1) * strides[0] + 1, j + (columns - 1) * strides[1] + 1)
            shifted = lax.slice(padded, (0, i, j, 0), (batch, *stop, channels), (1, *strides, 1))
            total = total + shifted.astype(total_dtype) * kernel[i, j, 0].astype(total_dtype)
    return total.astype(images.dtype)
