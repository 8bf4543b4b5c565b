"""Pictures small enough to lie inside of a page."""

import base64
import io

import numpy as np

from corrq_jax.errors import require

SIDE = 96  # pixels
_QUALITY = 75  # of JPEG: about 3 kB a picture


def thumbnail(pixels: np.ndarray, side: int = SIDE) -> str:
    """A picture as an address that holds it, a JPEG of a few kB.

    Args:
        pixels: uint8[height, width, 3] red, green, blue, or uint8[height, width, 1] grey.
        side: the longer side of the result in pixels; a smaller picture stays as it is.

    Returns:
        ``data:image/jpeg;base64,...``.

    Raises:
        MissingDependencyError: Pillow is not installed.

    >>> thumbnail(np.zeros((4, 4, 3), np.uint8))[:23]
    'data:image/jpeg;base64,'
    """
    pillow = require("PIL.Image", "data")
    image = pillow.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    image.thumbnail((side, side))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=_QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode("ascii")
