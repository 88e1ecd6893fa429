"""Anybody's images, by the path of a folder or a file: for measuring."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from diffusion_distill.data.source import Source, from_arrays
from diffusion_distill.errors import UserError

SUFFIXES = (".png", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp", ".jpg", ".jpeg")
_LOSSY = (".jpg", ".jpeg", ".webp")


def load_images(path: str | Path, say: Callable[[str], None] = print) -> Source:
    """The images in a folder (in the order of their names) or in an npz of uint8 [N, H, W, C].

    In an npz they are the array `images`, `arr_0`, or the only one. Images are read as they are:
    nothing is resized or cropped.

    Args:
        path: of the folder or the npz.
        say: where it is said that files are lossy.

    Raises:
        UserError: there is nothing there, or images are of several sizes; names which.
    """
    path = Path(path)
    if path.is_dir():
        return _folder(path, say)
    if path.suffix != ".npz" or not path.is_file():
        raise UserError(f"{path} is neither a folder of images nor an .npz")
    return _npz(path)


def _npz(path: Path) -> Source:
    try:
        with np.load(path, allow_pickle=False) as npz:
            names = [n for n in ("images", "arr_0") if n in npz.files] or npz.files
            if len(names) > 1 and names[0] not in ("images", "arr_0"):
                raise UserError(f"{path} has the arrays {', '.join(names)}; none is named images")
            images = npz[names[0]] if names else np.zeros(0)
    except UserError:
        raise
    except Exception as error:  # numpy and zipfile raise a dozen kinds for damaged files
        raise UserError(f"{path} is not a whole npz of plain arrays: {error}") from None
    return from_arrays(images, name=str(path), split="all")


def _folder(path: Path, say: Callable[[str], None]) -> Source:
    files = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES)
    if not files:
        raise UserError(f"{path} has no images ({', '.join(SUFFIXES)})")
    lossy = [p for p in files if p.suffix.lower() in _LOSSY]
    if lossy:
        say(
            f"warning: {len(lossy)} files in {path} are lossy, like {lossy[0].name}: compression "
            "alone moves FID, by as much as methods differ"
        )
    shapes = {}
    for file in files:
        shapes.setdefault(_shape(file), file)
    if len(shapes) > 1:
        (a, first), (b, second) = list(shapes.items())[:2]
        raise UserError(
            f"images must be of one size; {first} is {_words(a)} and {second} {_words(b)}"
        )
    shape = next(iter(shapes))

    def read(indices):
        return np.stack([_pixels(files[n], shape) for n in indices])

    source = from_arrays(read([0]), name=str(path), split="all")
    labels = np.zeros(len(files), np.int32)
    return Source(
        name=source.name, split="all", image_shape=shape, labels=labels, num_classes=0, read=read,
        fingerprint_of=lambda: _fingerprint(files), image_name=lambda n: str(files[n]),
    )  # fmt: skip


def _fingerprint(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def _shape(file: Path) -> tuple[int, int, int]:
    try:
        with Image.open(file) as image:
            channels = 1 if image.mode in ("L", "1") else 3
            return image.height, image.width, channels
    except (OSError, UnidentifiedImageError) as error:
        raise UserError(f"{file} is not an image: {error}") from None


def _pixels(file: Path, shape: tuple[int, int, int]) -> np.ndarray:
    try:
        with Image.open(file) as image:
            return np.asarray(image.convert("L" if shape[-1] == 1 else "RGB")).reshape(shape)
    except (OSError, UnidentifiedImageError, ValueError) as error:
        raise UserError(f"{file} is not a whole image: {error}") from None


def _words(shape: tuple[int, int, int]) -> str:
    return "x".join(map(str, shape))
