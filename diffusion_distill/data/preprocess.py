"""From an image of any size to a square of a set size, as the paper's data sets were made.

The published preprocessing: ImageNet a central square crop, then an area resize; LSUN a central
square crop, then an antialiased resize.
"""

import contextlib
import errno
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageOps

from diffusion_distill.data import fields
from diffusion_distill.errors import BucketError, UserError
from diffusion_distill.storage.buckets import as_path, is_bucket
from diffusion_distill.storage.files import opened

# Modes of Pillow that hold 8 bits a channel, and their channels; others are not 8-bit images.
_CHANNELS = {"L": 1, "RGB": 3}
# What reading damaged content raises, beside errors without a number: all others are of the disk.
_OF_CONTENT = (None, errno.EINVAL, errno.EOVERFLOW)
_AS_COLOUR = ("L", "LA", "RGB", "RGBA", "P", "PA", "CMYK", "YCbCr", "1")


def decode(path: str, channels: int, upright: bool = True) -> np.ndarray:
    """The image in a file, here or in a bucket, uint8 [H, W, C].

    It is turned `upright` as its EXIF orientation says. With `channels` 1 or 3 what is not of that
    kind is converted (grey to colour by repeating it, colour to grey by luma); with 0 nothing is.
    Raises UserError, which names the file, where it is no whole image or not one that `channels`
    allows, or where something would be lost: transparency, bits beyond 8, images beside the first.
    OSError, where it cannot be had: the file, or the disk that it is on, is not there.
    """
    try:
        with Image.open(opened(as_path(path)) if is_bucket(path) else path) as image:
            _check_nothing_is_lost(image, path)
            image.load()
            if upright:
                with contextlib.suppress(Exception):  # of damaged EXIF in a whole image
                    ImageOps.exif_transpose(image, in_place=True)
            pixels = np.asarray(_converted(image, channels, path))
        return pixels.reshape(*pixels.shape[:2], -1)
    except (UserError, BucketError):
        raise
    except Exception as error:  # Pillow raises errors of many kinds for damaged files
        if getattr(error, "errno", None) not in _OF_CONTENT:  # a disk or server that went away
            raise OSError(error.errno, error.strerror, path) from None
        raise UserError(f"{path} cannot be read: {error}") from None


def _check_nothing_is_lost(image: Image.Image, path: str) -> None:
    """Raises UserError for what Pillow leaves out without a word; `image` is not loaded yet."""
    # Of a camera's JPEG the further ones are previews and gain maps.
    if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
        raise UserError(f"{path} has {image.n_frames} images; it must have one")
    # How the file stores a pixel is among the decoder's arguments; BGR;16 has 5 and 6 bits.
    for codec, _, _, arguments in image.tile if image.mode in _AS_COLOUR else ():
        stored, *rest = arguments if isinstance(arguments, tuple) else (arguments,)
        if (";16" in str(stored) and stored != "BGR;16") or (codec == "ppm" and rest[0] > 255):
            raise UserError(f"{path} has 16 bits a channel; it must have 8")


def _converted(image: Image.Image, channels: int, path: str) -> Image.Image:
    if image.mode.startswith("I"):
        raise UserError(f"{path} has more than 8 bits a channel; it must have 8")
    if image.mode not in (_AS_COLOUR if channels else _CHANNELS):
        must = f"{path} is of mode {image.mode}; it must be L (grey) or RGB, or one that "
        raise UserError(must, fields.CHANNELS, "=3 turns into RGB")
    if "A" in image.mode or "transparency" in image.info:
        with_alpha = image.convert("RGBA")
        if np.asarray(with_alpha)[..., 3].min() < 255:
            raise UserError(f"{path} is transparent in places; its alpha channel must be opaque")
        image = image if image.mode in _CHANNELS else with_alpha
    if channels in (0, _CHANNELS.get(image.mode)):
        return image
    return image.convert("RGB" if channels == 3 else "L")


def central_square(image: np.ndarray) -> np.ndarray:
    """The central square [S, S, C] of an image [H, W, C], S the smaller side.

    Where what is left over is odd, the smaller part is cut off above and to the left.
    """
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return image[top : top + side, left : left + side]


def _sums(values: np.ndarray, size: int, dtype: type) -> np.ndarray:
    """The sums of `values` over the `size` equal parts of its first axis, float64.

    By differences of running sums, because a product of matrices would be slower where it matters:
    BLAS starts threads of its own in each of the threads that decode images.
    """
    count = len(values)
    running = np.zeros((count + 1, *values.shape[1:]), dtype)
    np.cumsum(values, axis=0, dtype=dtype, out=running[1:])
    edges = np.arange(size + 1) * (count / size)
    whole = np.minimum(edges.astype(int), count - 1)
    part = (edges - whole).reshape(-1, *[1] * (values.ndim - 1))
    return np.diff(running[whole] + part * values[whole], axis=0)


def area(image: np.ndarray, size: int) -> np.ndarray:
    """A square image [S, S, C] as [size, size, C]: each pixel the mean of the area it covers.

    Input pixels that lie in several output pixels count in each for the part that lies in it
    (what TensorFlow calls AREA). uint8 in and out, by rounding.
    """
    rows = _sums(image, size, np.uint32)  # exact, and half the memory of float64
    sums = _sums(rows.swapaxes(0, 1), size, np.float64).swapaxes(0, 1)
    return np.round(sums * (size / image.shape[0]) ** 2).astype(np.uint8)


def antialias(image: np.ndarray, size: int) -> np.ndarray:
    """A square image [S, S, C] as [size, size, C] by Pillow's antialiased bilinear resize, uint8.

    The triangle filter is widened by the scale, so that no input pixel is left out.
    """
    pillow = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    resized = pillow.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(resized).reshape(size, size, -1)


RESIZES: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {"area": area, "antialias": antialias}


def to_square(image: np.ndarray, size: int, resize: str) -> np.ndarray:
    """A uint8 image [H, W, C] as [size, size, C]; as it is where it is that already, or size is 0.

    `resize` is one of RESIZES.
    """
    if not size or image.shape[:2] == (size, size):
        return image
    return RESIZES[resize](central_square(image), size)


def description(size: int, resize: str) -> str:
    """What `to_square` does, as a manifest and reference statistics record it."""
    return f"central square crop, {resize} resize to {size}" if size else ""
