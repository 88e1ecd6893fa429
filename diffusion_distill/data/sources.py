"""Data sources by name, what config.data.name may be, and anybody's images by path.

To add one, write a function from a config's `data` section to a `Source` and name it in SOURCES;
everything above works by index. See "Your own images" in docs/data.md.
"""

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path

import ml_collections
import numpy as np

from diffusion_distill.config import base
from diffusion_distill.data import cifar10, fields, folder, prepared, tfds
from diffusion_distill.data.source import Source, from_arrays
from diffusion_distill.data.splits import splits_in
from diffusion_distill.errors import Field, UserError
from diffusion_distill.storage.buckets import as_path
from diffusion_distill.storage.files import read_npz
from diffusion_distill.terminal.console import say_once


def digits(config: ml_collections.ConfigDict | None = None) -> Source:
    """The handwritten digits that scikit-learn ships: 1,797 real images of 8x8, 10 labels.

    Their 17 grey levels 0..16 become uint8 by rounding 255 / 16 times the level. They have the
    one split "train".
    """
    from sklearn import datasets

    if config is not None and config.split != "train":
        raise UserError(fields.SPLIT, f" is {config.split!r}; digits have only 'train'")
    bunch = datasets.load_digits()
    images = np.round(bunch.images * (255.0 / 16.0)).astype(np.uint8)[..., None]
    return from_arrays(images, bunch.target, 10, name="digits")


def npz(config: ml_collections.ConfigDict, with_labels: bool = True) -> Source:
    """The arrays in config.path: `images` uint8 [N, H, W, C] and, where there are, `labels` [N].

    As in sample files of other projects, images may be `arr_0`, and an only array have any name.
    What else may be labels is not read, and named. config.split says what to call them. All are
    kept in memory.
    """
    path = as_path(config.path)
    try:
        arrays = read_npz(path)
    except FileNotFoundError:
        raise UserError(f"there is no {path}") from None
    if "images" not in arrays and ("arr_0" in arrays or len(arrays) == 1):
        arrays["images"] = arrays.get("arr_0", next(iter(arrays.values())))
    if "images" not in arrays:
        raise UserError(f"{path} has the arrays {', '.join(arrays) or 'none'}; it must have images")
    images, labels = arrays["images"], arrays.get("labels") if with_labels else None
    for other, array in arrays.items() if with_labels and labels is None else ():
        if np.issubdtype(array.dtype, np.integer) and array.shape == images.shape[:1]:
            say_once(f"{path}: {other} is not read; labels must be called labels")
    return from_arrays(images, labels, name=str(path), split=config.split)


SOURCES: dict[str, Callable[[ml_collections.ConfigDict], Source]] = {
    "cifar10": cifar10.load,
    "digits": digits,
    "folder": folder.load,
    "npz": npz,
    "prepared": prepared.load,
    "tfds": tfds.load,
}
_NEED_PATH = ("cifar10", "folder", "npz", "prepared")
_RESIZE = ("folder", "tfds")
_LOSSY = (".jpg", ".jpeg", ".webp")


def load(
    config: ml_collections.ConfigDict, split: str | None = None, cache: Path | None = None
) -> Source:
    """The source that a config's `data` section names.

    `split` is in place of config.split; `cache` is where copies from a bucket are kept, None for
    the usual place. Raises UserError, which says what to do, where files are missing or wrong.
    """
    if config.name not in SOURCES:
        raise UserError(fields.NAME, f" is {config.name!r}; there are {', '.join(SOURCES)}")
    if split not in (None, config.split):
        _check_has(config, split)
        config = config.copy_and_resolve_references()
        config.split = split
    if config.name in _NEED_PATH and not config.path:
        raise UserError(fields.PATH, f" is ''; it must say where the {config.name} images are")
    by_name = SOURCES[config.name]
    try:
        source = by_name(config, cache) if by_name is prepared.load else by_name(config)
    except UserError as error:
        if config.name not in _NEED_PATH or isinstance(error.parts[0], Field):
            raise
        raise UserError(fields.PATH, ": ", *error.parts) from None
    _check_as_asked(config, source)
    return source


def _check_as_asked(config: ml_collections.ConfigDict, source: Source) -> None:
    """Raises UserError where fields ask for a conversion that this source does not make."""
    what, (height, width, channels) = config.path or config.name, source.image_shape
    size, resize = config.image_size, config.resize
    if size and (height, width) != (size, size):
        raise UserError(fields.IMAGE_SIZE, f" is {size}, but {what} has images of {height}x{width}")
    if config.channels not in (0, channels):
        found = f"{what} has images of {channels}; only folder and tfds convert"
        raise UserError(fields.CHANNELS, f" is {config.channels}, but {found}")
    # "area" is the default, and asks for nothing.
    if config.name not in _RESIZE and resize not in ("area", *source.preprocessing.split()):
        rest = f"{what} is not resized; only folder and tfds are"
        raise UserError(fields.RESIZE, f" is {resize!r}, but {rest}")


def _check_has(config: ml_collections.ConfigDict, split: str) -> None:
    """Raises UserError where config.path is one split, and another is asked for."""
    if config.name == "npz" or (config.name == "folder" and not _has_splits(config.path, split)):
        alone = f"it is the split {config.split!r} alone"
        raise UserError(fields.PATH, f": {config.path} has no split {split!r}: {alone}")


def _has_splits(folder: str, split: str) -> bool:
    path = as_path(folder)
    return path.is_dir() and ((path / split).is_dir() or bool(splits_in(path)))


def load_images(path: str | Path, say: Callable[[str], None] = print) -> Source:
    """The images in a folder, at any depth, or in an .npz, as they are: nothing is resized.

    `say` is told where files are lossy. Raises UserError where there is nothing at `path`; reading
    images of several sizes raises it, too.
    """
    path = as_path(path)
    config = base().data
    config.path, config.split, config.folder_labels = str(path), "", False
    if path.is_dir():
        source = folder.load(config)
        files = [as_path(source.image_name(index)) for index in range(len(source))]
        source = dataclasses.replace(source, fingerprint_of=lambda: _content(files))
        if lossy := [file.name for file in files if file.suffix.lower() in _LOSSY]:
            why = "compression alone moves FID, by as much as methods differ"
            say(f"warning: {len(lossy)} files in {path} are lossy, like {lossy[0]}: {why}")
    elif path.suffix.lower() == ".npz" and path.is_file():
        source = npz(config, with_labels=False)  # samples may be of any
    else:
        raise UserError(f"{path} is neither a folder of images nor an .npz")
    return dataclasses.replace(source, name=str(path), split="all")


def _content(files: list[Path]) -> str:
    """A sha256 of all files: what is measured is read anyway, and no two sets are confused."""
    digest = hashlib.sha256(b"upright")  # how they are decoded
    for file in files:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()
