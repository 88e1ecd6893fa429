"""Images of any size and kind become squares of one size, as published."""

import concurrent.futures
import errno
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image
from threadpoolctl import threadpool_limits

from diffusion_distill.data import preprocess
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


@pytest.mark.parametrize(("mode", "channels"), [("RGBA", 3), ("LA", 3), ("LA", 1)])
def test_transparency_is_never_dropped_without_a_word(tmp_path, mode, channels):
    save(tmp_path / "a.png", mode, alpha=100)
    with pytest.raises(UserError, match="a.png is transparent in places"):
        decode(str(tmp_path / "a.png"), channels)


@pytest.mark.parametrize("channels", [0, 1, 3])
@pytest.mark.parametrize("kind", ["L", "RGB"])
def test_a_colour_that_is_transparent_is_no_colour(tmp_path, kind, channels):
    """A PNG without an alpha channel may name one, in its tRNS."""
    image = Image.fromarray(np.full((5, 7, 3), 9, np.uint8)).convert(kind)
    image.save(tmp_path / "b.png", transparency=8 if kind == "L" else (9, 9, 8))  # no pixel's
    found = decode(str(tmp_path / "b.png"), channels)
    np.testing.assert_array_equal(found, np.full((5, 7, channels or len(kind)), 9))
    image.save(tmp_path / "c.png", transparency=9 if kind == "L" else (9, 9, 9))
    with pytest.raises(UserError, match="c.png is transparent in places"):
        decode(str(tmp_path / "c.png"), channels)


@pytest.mark.parametrize("error", [errno.ENOENT, errno.EIO, errno.ESTALE, errno.EMFILE])
def test_a_disk_that_went_away_is_no_damaged_image(tmp_path, monkeypatch, error):
    """What is read of a set in pieces must not take the rest of it for unreadable images."""

    def opened(path):
        raise OSError(error, "gone")

    monkeypatch.setattr(preprocess.Image, "open", opened)
    with pytest.raises(OSError, match="gone") as raised:
        decode(str(tmp_path / "e.png"), 0)
    assert (raised.value.errno, raised.value.filename) == (error, str(tmp_path / "e.png"))


def test_sixteen_bits_are_refused(tmp_path):
    Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000).save(tmp_path / "d.png")
    with pytest.raises(UserError, match="d.png has more than 8 bits a channel"):
        decode(str(tmp_path / "d.png"), 3)


def png_of_sixteen_bits(colour_type, channels):
    """7x5, by the format's own description: Pillow writes none in colour."""

    def chunk(name, content):
        both = name + content
        return struct.pack(">I", len(content)) + both + struct.pack(">I", zlib.crc32(both))

    rows = RNG.integers(0, 2**16, (5, 7 * channels)).astype(">u2")
    pixels = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    head = struct.pack(">IIBBBBB", 7, 5, 16, colour_type, 0, 0, 0)
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def tiff_of_sixteen_bits():
    """7x5 in colour, uncompressed."""
    pixels = RNG.integers(0, 2**16, (5, 7, 3)).astype("<u2").tobytes()
    after = 8 + 2 + 9 * 12 + 4
    short = [(256, 7), (257, 5), (259, 1), (262, 2), (277, 3), (278, 5)]
    entries = [struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in short]
    entries += [struct.pack("<HHII", 258, 3, 3, after), struct.pack("<HHII", 273, 4, 1, after + 6)]
    entries += [struct.pack("<HHII", 279, 4, 1, len(pixels))]
    head = b"II*\0" + struct.pack("<IH", 8, 9) + b"".join(sorted(entries, key=lambda e: e[1::-1]))
    return head + bytes(4) + struct.pack("<HHH", 16, 16, 16) + pixels


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rgb.png", png_of_sixteen_bits(2, 3)),
        ("la.png", png_of_sixteen_bits(4, 2)),
        ("rgba.png", png_of_sixteen_bits(6, 4)),
        ("a.ppm", b"P6 7 5 65535\n" + bytes(210)),
        ("a.tiff", tiff_of_sixteen_bits()),
    ],
)
def test_sixteen_bits_in_colour_are_never_cut_to_eight(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    Image.open(tmp_path / name).load()  # a whole image
    with pytest.raises(UserError, match=f"{name} has 16 bits a channel; it must have 8"):
        decode(str(tmp_path / name), 3)


def test_fewer_than_eight_bits_are_read(tmp_path):
    (tmp_path / "a.ppm").write_bytes(b"P6 1 1 15\n" + bytes([15, 0, 5]))
    assert decode(str(tmp_path / "a.ppm"), 0).tolist() == [[[255, 0, 85]]]


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.tiff"])
def test_several_images_in_a_file_are_refused(tmp_path, name):
    pages = [Image.fromarray(RNG.integers(0, 256, (5, 7, 3), np.uint8)) for _ in range(3)]
    pages[0].save(tmp_path / name, save_all=True, append_images=pages[1:])
    with pytest.raises(UserError, match=f"{name} has 3 images; it must have one"):
        decode(str(tmp_path / name), 3)


def test_of_a_cameras_jpeg_the_first_is_the_photo(tmp_path):
    """Phones put previews and gain maps behind it."""
    pages = [Image.new("RGB", (7, 5), colour) for colour in ("white", "black")]
    pages[0].save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=pages[1:])
    assert decode(str(tmp_path / "a.jpg"), 3).min() == 255


# What is to be done with the stored rows and columns, by the number that the EXIF standard has.
TURNS = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: np.rot90(x, 2).swapaxes(0, 1),
    8: lambda x: np.rot90(x),
}


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.tiff"])
@pytest.mark.parametrize("orientation", TURNS)
def test_photos_are_turned_upright(tmp_path, name, orientation):
    stored = np.kron(RNG.integers(0, 256, (2, 3, 3)), np.ones((16, 16, 1))).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    lossless = {"lossless": True} if name == "a.webp" else {"quality": 100, "subsampling": 0}
    Image.fromarray(stored).save(tmp_path / name, exif=exif, **lossless)
    # JPEG at its best is off by a level or two.
    upright = decode(str(tmp_path / name), 3)
    np.testing.assert_allclose(upright, TURNS[orientation](stored), atol=3 * (name == "a.jpg"))
    if name != "a.tiff":  # of which the orientation is a part
        as_stored = decode(str(tmp_path / name), 3, upright=False)
        np.testing.assert_allclose(as_stored, stored, atol=3 * (name == "a.jpg"))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_is_no_damage_to_the_image(tmp_path):
    image = Image.fromarray(RNG.integers(0, 256, (5, 7, 3), np.uint8))
    for n, exif in enumerate((b"Exif\0\0nonsense", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0")):
        image.save(tmp_path / f"{n}.png", exif=exif)
        np.testing.assert_array_equal(decode(str(tmp_path / f"{n}.png"), 3), np.asarray(image))


@pytest.mark.parametrize("kept", [0, 30, 0.5])
def test_a_truncated_file_is_named(tmp_path, kept):
    save(tmp_path / "t.png", "RGB")
    whole = (tmp_path / "t.png").read_bytes()
    kept = int(len(whole) * kept) if isinstance(kept, float) else kept
    (tmp_path / "t.png").write_bytes(whole[:kept])
    with pytest.raises(UserError, match="t.png cannot be read"):
        decode(str(tmp_path / "t.png"), 0)
