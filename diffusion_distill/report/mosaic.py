"""Images in rows and columns as one PNG, with nothing between them: the page shows through."""

import numpy as np

from diffusion_distill.report.grid import png

SIDE = 64  # pixels: smaller images are enlarged by a whole factor


def mosaic(images: np.ndarray) -> bytes:
    """The PNG of uint8 images [R, K, H, W, C], C 1 or 3, in R rows of K."""
    rows, columns, height, width, channels = images.shape
    scale = max(1, -(-SIDE // height))
    images = images.repeat(scale, axis=2).repeat(scale, axis=3)
    if channels == 1:
        images = images.repeat(3, axis=-1)
    height, width = height * scale, width * scale
    gap = max(2, height // 16)
    shape = (rows * (height + gap) - gap, columns * (width + gap) - gap, 4)
    canvas = np.zeros(shape, np.uint8)
    for row in range(rows):
        for column in range(columns):
            top, left = row * (height + gap), column * (width + gap)
            canvas[top : top + height, left : left + width, :3] = images[row, column]
            canvas[top : top + height, left : left + width, 3] = 255
    return png(canvas)
