"""What several networks are built of."""

from collections.abc import Callable

import jax
from flax import nnx

from corrq_jax.models.convolution import convolve

Padding = str | tuple[tuple[int, int], tuple[int, int]]


class ConvNorm(nnx.Module):
    """A convolution, BatchNorm with its running averages, and an activation.

    The epsilon of BatchNorm differs from network to network, so it has no default.
    """

    def __init__(
        self,
        in_features: int,
        features: int,
        kernel: int | tuple[int, int] = 1,
        stride: int = 1,
        *,
        epsilon: float,
        groups: int = 1,
        padding: Padding = "SAME",
        use_bias: bool = False,
        use_scale: bool = True,
        activation: Callable[[jax.Array], jax.Array] | None = None,
        rngs: nnx.Rngs,
    ):
        """Builds it with random weights.

        Args:
            in_features: channels of the input.
            features: channels of the output.
            kernel: height and width of the kernel, or one number for both.
            stride: step along height and width.
            epsilon: added to BatchNorm's variance.
            groups: 1, or `in_features` for a depthwise convolution.
            padding: "SAME" as TensorFlow pads, "VALID", or (low, high) for height and width.
            use_bias: whether the convolution has a bias.
            use_scale: whether BatchNorm has a scale.
            activation: what follows BatchNorm; nothing by default.
            rngs: source of the weights.
        """
        self.conv = nnx.Conv(
            in_features,
            features,
            (kernel, kernel) if isinstance(kernel, int) else kernel,
            (stride, stride),
            padding=padding,
            feature_group_count=groups,
            use_bias=use_bias,
            conv_general_dilated=convolve,
            rngs=rngs,
        )
        self.norm = nnx.BatchNorm(
            features, use_running_average=True, use_scale=use_scale, epsilon=epsilon, rngs=rngs
        )
        self.activation = activation

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps float[batch, height, width, in_features] to `features` features."""
        x = self.norm(self.conv(x))
        return x if self.activation is None else self.activation(x)


class Row(nnx.Module):
    """Blocks applied one after the other: `block1`, `block2`, and so on."""

    def __init__(self, blocks: list[nnx.Module]):
        """Holds the blocks under their names."""
        self.blocks = len(blocks)
        for index, block in enumerate(blocks):
            setattr(self, f"block{index + 1}", block)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the blocks in order."""
        for index in range(self.blocks):
            x = getattr(self, f"block{index + 1}")(x)
        return x
