"""Where the ImageNet weights of Keras are published, and by what hash they are known.

The files are those with the classification top that `keras.applications` downloads for
`weights="imagenet"`. URLs and hashes are the ones that Keras 3.15 states in its own sources,
`keras/src/applications/*.py`; a test compares this table with them.

Keras publishes MD5 hashes only. MD5 finds a broken or a mistaken file; it is no proof against
somebody who makes a second file with the same hash on purpose. Where that matters, compare the
file with a copy of known origin.

For MobileNet-v2 Keras publishes no hash at all. What `fetch` does about that is said there.
"""

import dataclasses
import types
from collections.abc import Mapping

__all__ = ["PUBLISHED", "Published"]


@dataclasses.dataclass(frozen=True)
class Published:
    """A published file of weights.

    Attributes:
        url: where it can be downloaded.
        file: its name in the cache folder, without a folder.
        hash: what is known of its content, as `"algorithm:hexadecimal digits"`. None where the
            publisher states no hash: such a file cannot be verified.
    """

    url: str
    file: str
    hash: str | None


_BASE = "https://storage.googleapis.com/tensorflow/keras-applications/"


def _keras(folder: str, file: str, md5: str | None) -> Published:
    return Published(f"{_BASE}{folder}/{file}", file, None if md5 is None else f"md5:{md5}")


def _with_top(name: str, md5: str, folder: str | None = None) -> Published:
    return _keras(folder or name, f"{name}_weights_tf_dim_ordering_tf_kernels.h5", md5)


PUBLISHED: Mapping[str, Published] = types.MappingProxyType(
    {
        "vgg16": _with_top("vgg16", "64373286793e3c8b2b4e3219cbf3544b"),
        "resnet50": _with_top("resnet50", "2cb95161c43110f7111970584f804107", "resnet"),
        "xception": _with_top("xception", "0a58e3b7378bc2990ea3b43d5981f1f6"),
        "inception_v3": _with_top("inception_v3", "9a0d58056eeedaa3f26cb7ebd46da564"),
        # Width 1.0 at 224 x 224 pixels: Keras has a file for each width and resolution.
        "mobilenet_v2": _keras(
            "mobilenet_v2", "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224.h5", None
        ),
        "resnet152v2": _with_top("resnet152v2", "a49b44d1979771252814e80f8ec446f9", "resnet"),
    }
)
