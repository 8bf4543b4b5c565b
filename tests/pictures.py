"""Pictures for tests."""

import io

from PIL import Image


def jpeg(red):
    file = io.BytesIO()
    Image.new("RGB", (20, 30), (red, 0, 0)).save(file, "JPEG")
    return file.getvalue()
