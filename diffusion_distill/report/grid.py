"""Several images as one, and that as PNG."""

import io

import numpy as np
from PIL import Image

SIDE = 64  # pixels: a mosaic's images are at least as high


def png(image: np.ndarray) -> bytes:
    """The PNG file of one uint8 image [H, W, C], C 1 or 3."""
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, "PNG")
    return buffer.getvalue()


def grid(images: np.ndarray, columns: int = 10, padding: int = 1, min_side: int = 32) -> np.ndarray:
    """uint8 images [N, H, W, C] in rows of `columns`, grey between them, as one uint8 image.

    Images smaller than `min_side` are enlarged by a whole factor, pixel by pixel.
    """
    images = _enlarged(images, min_side)
    count, height, width, channels = images.shape
    columns = min(columns, count)
    rows = -(-count // columns)
    height, width = height + padding, width + padding
    canvas = np.full((rows * height + padding, columns * width + padding, channels), 128, np.uint8)
    for n, image in enumerate(images):
        top, left = n // columns * height + padding, n % columns * width + padding
        canvas[top : top + height - padding, left : left + width - padding] = image
    return canvas


def mosaic(images: np.ndarray) -> np.ndarray:
    """uint8 images [R, K, H, W, C], C 1 or 3, in R rows of K as one uint8 image of 4 channels.

    Between them it is transparent. Images smaller than SIDE are enlarged by a whole factor.
    """
    images = _enlarged(images, SIDE)
    if images.shape[-1] == 1:
        images = images.repeat(3, axis=-1)
    opaque = np.full((*images.shape[:-1], 1), 255, np.uint8)
    gap = max(2, images.shape[2] // 16)
    padding = [(0, 0), (0, 0), (0, gap), (0, gap), (0, 0)]
    tiles = np.pad(np.concatenate([images, opaque], axis=-1), padding)
    rows, columns, height, width, _ = tiles.shape
    canvas = tiles.transpose(0, 2, 1, 3, 4).reshape(rows * height, columns * width, 4)
    return canvas[:-gap, :-gap]


def _enlarged(images: np.ndarray, min_side: int) -> np.ndarray:
    scale = max(1, -(-min_side // images.shape[-3]))
    return images.repeat(scale, axis=-3).repeat(scale, axis=-2)
