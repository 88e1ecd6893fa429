"""Several images as one."""

import io

import numpy as np
import pytest
from PIL import Image

from diffusion_distill.report.grid import grid, mosaic, png


def test_grid_keeps_every_pixel_in_its_place():
    images = np.random.default_rng(0).integers(0, 256, (7, 8, 8, 3), np.uint8)
    canvas = grid(images, columns=3, padding=2, min_side=16)
    assert canvas.shape == (3 * 18 + 2, 3 * 18 + 2, 3)
    fourth = canvas[20:36, 2:18]  # second row, first column, enlarged twice
    np.testing.assert_array_equal(fourth[::2, ::2], images[3])
    np.testing.assert_array_equal(fourth[1::2, 1::2], images[3])
    for channels in (1, 3):
        decoded = np.asarray(Image.open(io.BytesIO(png(canvas[..., :channels]))))
        np.testing.assert_array_equal(decoded.reshape(*canvas.shape[:2], channels),
                                      canvas[..., :channels])  # fmt: skip


@pytest.mark.parametrize("channels", [1, 3])
def test_a_mosaic_keeps_every_pixel_in_its_place_and_is_transparent_between(channels):
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32, channels), np.uint8)
    canvas = mosaic(images)
    assert canvas.shape == (2 * 64 + 4, 3 * 64 + 2 * 4, 4)
    sixth = canvas[68:, 136:]  # enlarged twice, four pixels from its neighbours
    for n in range(4):
        pixels = sixth[n % 2 :: 2, n // 2 :: 2]
        np.testing.assert_array_equal(pixels[..., :3], np.broadcast_to(images[1, 2], (32, 32, 3)))
    shown = np.zeros(canvas.shape[:2], bool)
    for top in (0, 68):
        for left in (0, 68, 136):
            shown[top : top + 64, left : left + 64] = True
    np.testing.assert_array_equal(canvas[..., 3], np.where(shown, 255, 0))
