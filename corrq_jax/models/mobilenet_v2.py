"""MobileNet-v2 of width 1.0: inverted bottlenecks with linear projections and ReLU6.

Sandler, Howard, Zhu, Zhmoginov and Chen, "MobileNetV2: Inverted Residuals and Linear Bottlenecks",
CVPR 2018. Only the inference form is built. Constants and padding are those of Keras: it pads
before its strided depthwise convolutions by itself, which for 3 x 3 kernels comes to the same as
TensorFlow's "SAME" at every size, odd or even, so that is what is used here.
"""

from flax import nnx

from corrq_jax.models.inverted_bottlenecks import BottleneckNetwork, BottleneckStage

STAGES = (
    BottleneckStage(blocks=1, kernel=3, stride=1, expansion=1, features=16),
    BottleneckStage(blocks=2, kernel=3, stride=2, expansion=6, features=24),
    BottleneckStage(blocks=3, kernel=3, stride=2, expansion=6, features=32),
    BottleneckStage(blocks=4, kernel=3, stride=2, expansion=6, features=64),
    BottleneckStage(blocks=3, kernel=3, stride=1, expansion=6, features=96),
    BottleneckStage(blocks=3, kernel=3, stride=2, expansion=6, features=160),
    BottleneckStage(blocks=1, kernel=3, stride=1, expansion=6, features=320),
)


def create(name: str, classes: int = 1000, *, rngs: nnx.Rngs) -> BottleneckNetwork:
    """Builds the network with random weights; `name` is "mobilenet_v2"."""
    return BottleneckNetwork(STAGES, classes, rngs=rngs)
