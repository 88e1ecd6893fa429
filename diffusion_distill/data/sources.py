"""Data sources by name: what config.data.name may be.

To add one, write a function from a config's `data` section to a `Source` and name it in SOURCES;
everything above works by index. See "Your own images" in docs/data.md.
"""

from collections.abc import Callable
from pathlib import Path

import ml_collections
import numpy as np

from diffusion_distill.data import cifar10, fields, folder, npz, prepared, tfds
from diffusion_distill.data.source import Source, from_arrays
from diffusion_distill.errors import Field, UserError
from diffusion_distill.storage.buckets import as_path


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


SOURCES: dict[str, Callable[[ml_collections.ConfigDict], Source]] = {
    "cifar10": cifar10.load,
    "digits": digits,
    "folder": folder.load,
    "npz": npz.load,
    "prepared": prepared.load,
    "tfds": tfds.load,
}
_NEED_PATH = ("cifar10", "folder", "npz", "prepared")
_RESIZE = ("folder", "tfds")


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
    if config.image_size and (height, width) != (config.image_size,) * 2:
        raise UserError(
            fields.IMAGE_SIZE,
            f" is {config.image_size}, but {what} has images of {height}x{width}",
        )
    if config.channels not in (0, channels):
        raise UserError(
            fields.CHANNELS,
            f" is {config.channels}, but {what} has images of {channels}; only folder and tfds "
            "convert",
        )
    # "area" is the default, and asks for nothing.
    if config.name not in _RESIZE and config.resize not in ("area", *source.preprocessing.split()):
        raise UserError(
            fields.RESIZE,
            f" is {config.resize!r}, but {what} is not resized; only folder and tfds are",
        )


def _check_has(config: ml_collections.ConfigDict, split: str) -> None:
    """Raises UserError where config.path is one split, and another is asked for."""
    alone = config.name == "npz" or (
        config.name == "folder" and not (as_path(config.path) / split).is_dir()
    )
    if alone:
        raise UserError(
            fields.PATH,
            f": {config.path} has no split {split!r}: it is the split {config.split!r} alone",
        )
