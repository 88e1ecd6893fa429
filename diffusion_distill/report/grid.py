"""Image grids as PNG."""

import io

import numpy as np
from PIL import Image


def png(image: np.ndarray) -> bytes:
    """The PNG file of one uint8 image [H, W, C], C 1 or 3."""
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, "PNG")
    return buffer.getvalue()


def grid(images: np.ndarray, columns: int = 10, padding: int = 1, min_side: int = 32) -> np.ndarray:
    """uint8 images [N, H, W, C] in rows of `columns`, as one uint8 image.

    Images smaller than `min_side` are enlarged by a whole factor, pixel by pixel.
    """
    scale = max(1, -(-min_side // images.shape[1]))
    images = images.repeat(scale, axis=1).repeat(scale, axis=2)
    count, height, width, channels = images.shape
    columns = min(columns, count)
    rows = -(-count // columns)
    height, width = height + padding, width + padding
    canvas = np.full((rows * height + padding, columns * width + padding, channels), 128, np.uint8)
    for n, image in enumerate(images):
        top, left = n // columns * height + padding, n % columns * width + padding
        canvas[top : top + height - padding, left : left + width - padding] = image
    return canvas
