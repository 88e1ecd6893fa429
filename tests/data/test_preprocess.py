"""Images of any size and kind become squares of one size, as published."""

import concurrent.futures
import time

import numpy as np
import pytest
from PIL import Image
from threadpoolctl import threadpool_limits

from diffusion_distill.data.preprocess import antialias, area, central_square, decode, to_square
from diffusion_distill.errors import UserError

RNG = np.random.default_rng(0)


def area_by_hand(image, size):
    """The mean of the area that each output pixel covers, from its definition, in float64."""
    source = image.shape[0]
    out = np.zeros((size, size, image.shape[2]))
    for i in range(size):
        for j in range(size):
            weight = np.zeros((source, source))
            for y in range(source):
                for x in range(source):
                    rows = min((i + 1) * source / size, y + 1) - max(i * source / size, y)
                    cols = min((j + 1) * source / size, x + 1) - max(j * source / size, x)
                    weight[y, x] = max(rows, 0) * max(cols, 0)
            out[i, j] = np.tensordot(weight, image, 2) / weight.sum()
    return out


@pytest.mark.parametrize(("source", "size"), [(12, 4), (11, 4), (7, 5), (9, 9), (5, 7)])
def test_area_resize_is_the_mean_of_the_area_that_a_pixel_covers(source, size):
    image = RNG.integers(0, 256, (source, source, 3), np.uint8)
    # Half a level of rounding, and float32 within.
    np.testing.assert_allclose(area(image, size), area_by_hand(image, size), atol=0.5 + 1e-4)


def test_area_resize_in_several_threads_is_not_held_up_by_those_of_a_library():
    """`prepare` and folders call it so; with BLAS in it, it took many times the processor time."""
    image = RNG.integers(0, 256, (375, 375, 3), np.uint8)

    def seconds(threads):  # of all processors together
        with concurrent.futures.ThreadPoolExecutor(threads) as pool:
            began = time.process_time()
            list(pool.map(lambda _: area(image, 64), range(20)))
            return time.process_time() - began

    with threadpool_limits(1):
        alone = min(seconds(1) for _ in range(3))
    assert min(seconds(2) for _ in range(3)) < 4 * alone


@pytest.mark.parametrize("resize", [area, antialias])
@pytest.mark.parametrize("channels", [1, 3])
def test_resizing_keeps_what_is_flat_and_takes_in_every_pixel(resize, channels):
    flat = np.full((37, 37, channels), 93, np.uint8)
    np.testing.assert_array_equal(resize(flat, 16), np.full((16, 16, channels), 93))
    # Stripes finer than the result become grey, where a resize that skips pixels shows some.
    stripes = np.zeros((96, 96, channels), np.uint8)
    stripes[:, ::2] = 200
    # The triangle is cut off at the border, where one side's stripes count for more.
    np.testing.assert_allclose(resize(stripes, 16), 100, atol=6)


def test_antialiased_resize_is_the_triangle_filter_widened_by_the_scale():
    column = RNG.integers(0, 256, (30, 30, 1), np.uint8)
    column[:] = column[:, :1]
    centres = (np.arange(10) + 0.5) * 3
    weights = np.maximum(1 - np.abs(centres[:, None] - (np.arange(30) + 0.5)) / 3, 0)
    expected = weights @ column[:, 0, 0] / weights.sum(axis=1)
    # Pillow rounds its weights and once between the two passes.
    np.testing.assert_allclose(antialias(column, 10)[:, 4, 0], expected, atol=1.01)


@pytest.mark.parametrize(
    ("shape", "rows", "cols"),
    [((6, 10), slice(0, 6), slice(2, 8)), ((11, 6), slice(2, 8), slice(0, 6)),
     ((5, 5), slice(0, 5), slice(0, 5))],
)  # fmt: skip
def test_the_crop_is_the_central_square(shape, rows, cols):
    image = RNG.integers(0, 256, (*shape, 3), np.uint8)
    np.testing.assert_array_equal(central_square(image), image[rows, cols])


def test_an_image_of_the_right_size_is_left_as_it_is():
    image = RNG.integers(0, 256, (8, 8, 3), np.uint8)
    assert to_square(image, 8, "area") is image
    assert to_square(image, 0, "area") is image


def test_colour_and_grey_are_read_as_they_are(tmp_path):
    colour = RNG.integers(0, 256, (5, 7, 3), np.uint8)
    Image.fromarray(colour).save(tmp_path / "a.png")
    Image.fromarray(colour[..., 0]).save(tmp_path / "g.png")
    np.testing.assert_array_equal(decode(str(tmp_path / "a.png"), 0), colour)
    np.testing.assert_array_equal(decode(str(tmp_path / "g.png"), 0), colour[..., :1])
    np.testing.assert_array_equal(
        decode(str(tmp_path / "g.png"), 3), np.repeat(colour[..., :1], 3, axis=-1)
    )


def save(path, mode, alpha=255):
    image = Image.fromarray(RNG.integers(0, 256, (5, 7, 3), np.uint8)).convert(mode)
    if "A" in mode:
        image.putalpha(alpha)
    image.save(path)


@pytest.mark.parametrize(("mode", "name"), [("P", "p.png"), ("CMYK", "c.jpg"), ("RGBA", "a.png")])
def test_other_kinds_become_colour_where_that_is_asked_for(tmp_path, mode, name):
    save(tmp_path / name, mode)
    assert decode(str(tmp_path / name), 3).shape == (5, 7, 3)
    with pytest.raises(UserError, match=f"{name} is of mode {mode}; .* config.data.channels=3"):
        decode(str(tmp_path / name), 0)


def test_transparency_is_never_dropped_without_a_word(tmp_path):
    save(tmp_path / "a.png", "RGBA", alpha=100)
    with pytest.raises(UserError, match="a.png is transparent in places"):
        decode(str(tmp_path / "a.png"), 3)


def test_sixteen_bits_are_refused(tmp_path):
    Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000).save(tmp_path / "d.png")
    with pytest.raises(UserError, match="d.png is of mode I;16"):
        decode(str(tmp_path / "d.png"), 3)


@pytest.mark.parametrize("kept", [0, 30, 0.5])
def test_a_truncated_file_is_named(tmp_path, kept):
    save(tmp_path / "t.png", "RGB")
    whole = (tmp_path / "t.png").read_bytes()
    kept = int(len(whole) * kept) if isinstance(kept, float) else kept
    (tmp_path / "t.png").write_bytes(whole[:kept])
    with pytest.raises(UserError, match="t.png cannot be read"):
        decode(str(tmp_path / "t.png"), 0)
