"""A folder of images, of any size, with subfolders as labels where wanted."""

import concurrent.futures
import functools
import hashlib
import os
from collections.abc import Callable, Iterable

import ml_collections
import numpy as np

from diffusion_distill.data import fields, preprocess, splits, tree
from diffusion_distill.data.batches import subset
from diffusion_distill.data.labels import labels_of
from diffusion_distill.data.source import Source
from diffusion_distill.errors import BucketError, UserError
from diffusion_distill.storage.buckets import THREADS, as_path, is_bucket
from diffusion_distill.storage.files import opened
from diffusion_distill.terminal.console import say_once

BY_CONTENT = "-content"  # ends a fingerprint: an older one was of names, sizes and times
SAMPLED = 4096  # files whose content a fingerprint looks into
BLOCK = 4096  # bytes of them: of the beginning, the middle and the end each; a small one is whole


def load(config: ml_collections.ConfigDict) -> Source:
    """The images in the folder config.path, or in the one of its subfolders that is config.split.

    With config.folder_labels each subfolder is a label, in the order of their names (for ImageNet's
    that is the usual one), unless a dataset.json has the labels; without, images at any depth are
    taken. Files are read when they are asked for; what is left out is said. Raises UserError where
    there is no such folder, no image, images beside labels, or where subfolders may be splits, or
    parts of one, as well as labels.
    """
    path = as_path(config.path)
    root = splits.split_folder(path, config.split)
    below = tree.below(root)
    below.tell()
    if config.split != splits.ALL and (mixed := splits.mixed(below)):
        if config.split:
            one = f"{mixed}, which would be one set: give "
            whole = f"={splits.ALL}, which takes them together"
            raise UserError(one, fields.PATH, " a folder of one alone, or ", fields.SPLIT, whole)
        say_once(f"warning: {mixed}, which are taken together")
    labels, num_classes = labels_of(below, config)
    below.check()
    files = [os.path.join(root, *parts) for parts in below.images]
    size, resize = config.image_size, config.resize
    decode = functools.partial(preprocess.decode, channels=config.channels, upright=config.upright)
    shape, alike = _usual_shape(files, decode, size)

    def one(index: int) -> np.ndarray:
        image = preprocess.to_square(decode(files[index]), size, resize)
        if image.shape != shape:
            found, usual = ("x".join(map(str, s)) for s in (image.shape, shape))
            sizes = f"is {found}, where {alike} is {usual} (height, width, channels)"
            way_out = ("; set ", fields.IMAGE_SIZE, " and ", fields.CHANNELS, " to make them alike")
            raise UserError(f"{files[index]} {sizes}", *way_out)
        return image

    what = (shape, resize, num_classes, config.upright, hashlib.sha256(labels).hexdigest())
    return Source(
        name=path.name if root != path or path.name != config.split else path.parent.name,
        split=config.split,
        image_shape=tuple(map(int, shape)),
        labels=labels,
        num_classes=num_classes,
        read=in_threads(one, shape, THREADS if is_bucket(root) else os.cpu_count()),
        preprocessing=preprocess.description(size, resize),
        fingerprint_of=lambda: _fingerprint(below, what),
        image_name=files.__getitem__,
    )


def _usual_shape(
    files: list[str], decode: Callable[[str], np.ndarray], size: int
) -> tuple[tuple[int, int, int], str]:
    """(the most common shape of twenty images from all over the set, the first that has it).

    What is damaged is left out.
    """
    of_shape, errors = {}, []
    for file in files[:: max(1, len(files) // 20)]:
        try:
            height, width, depth = decode(file).shape
        except UserError as error:
            errors.append(error)
        else:
            shape = (size, size, depth) if size else (height, width, depth)
            of_shape.setdefault(shape, []).append(file)
    if not of_shape:
        raise errors[0]
    shape, alike = max(of_shape.items(), key=lambda item: len(item[1]))
    return shape, alike[0]


def in_threads(one, shape: tuple[int, ...], threads: int | None = None):
    """`read` of a Source from a function of one index; a batch is read by all cores at once.

    Decoding and resizing let go of Python's lock, so threads do.
    """
    pool = concurrent.futures.ThreadPoolExecutor(threads or os.cpu_count(), "images")

    def read(indices: np.ndarray) -> np.ndarray:
        indices = np.asarray(indices)
        if len(indices) == 1:
            return one(int(indices[0]))[None]
        images = np.empty((len(indices), *shape), np.uint8)
        for row, image in enumerate(pool.map(one, indices.tolist())):
            images[row] = image
        return images

    return read


def _fingerprint(below: tree.Tree, what: tuple) -> str:
    """Of names, sizes, and the content of at most SAMPLED files, drawn once and for all.

    Not of times: archives set them to 0, and a copy elsewhere has others. That a file became
    another of the same size is missed where it was not drawn. Of 50,000 files of 3 kB it took 1.5
    seconds on two busy cores, 2 from a disk where nothing was in memory, where names and sizes
    alone took 0.6; a bucket is asked for each file that is drawn.
    """
    root, names = below.root, ["/".join(parts) for parts in below.images]
    objects = root.below() if is_bucket(root) else {}
    digest = hashlib.sha256(repr(what).encode())

    def sizes(part: list[str]) -> list[int]:
        if objects:
            return [objects[root / name]["size"] for name in part]
        return [os.path.getsize(os.path.join(root, name)) for name in part]

    def some(index: int) -> bytes:
        parts = []
        with opened(root / names[index]) as file:
            for start in _starts(size[index]):
                file.seek(start)
                parts.append(file.read(BLOCK))
        return b"".join(parts)

    try:
        with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
            parts = [names[n : n + 1000] for n in range(0, len(names), 1000)]
            size = [n for part in pool.map(sizes, parts) for n in part]
            for name_and_size in zip(names, size, strict=True):
                digest.update("{} {}\n".format(*name_and_size).encode())
            for content in pool.map(some, subset(len(names), SAMPLED).tolist()):
                digest.update(content)
    except BucketError:
        raise
    except OSError as error:
        raise UserError(f"{error.filename or root} cannot be read: {error.strerror}") from None
    return digest.hexdigest() + BY_CONTENT


def _starts(size: int) -> Iterable[int]:
    """Where to read BLOCK bytes of a file each."""
    return range(0, size, BLOCK) if size <= 3 * BLOCK else (0, (size - BLOCK) // 2, size - BLOCK)
