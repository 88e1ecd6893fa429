"""A folder of images, of any size, with subfolders as labels where wanted."""

import concurrent.futures
import hashlib
import os
from pathlib import Path

import ml_collections
import numpy as np

from diffusion_distill.data import fields, preprocess
from diffusion_distill.data.source import Source
from diffusion_distill.errors import UserError
from diffusion_distill.storage.buckets import THREADS, as_path, is_bucket

SPLITS = ("train", "val", "validation", "test")  # what a subfolder may be called, and no label
EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff")


def load(config: ml_collections.ConfigDict) -> Source:
    """The images in the folder config.path, or in its subfolder config.split where there is one.

    With config.folder_labels each subfolder is a label, in the order of their names (for ImageNet's
    that is the usual one); without, images at any depth are taken. Files are read when they are
    asked for. Raises UserError where there is no such folder, no image, or images beside labels.
    """
    root = as_path(config.path)
    splits = [name for name in SPLITS if (root / name).is_dir()]
    if config.split in SPLITS and splits:
        _check_all_splits(root, splits)
    if (root / config.split).is_dir():
        root = root / config.split
    elif splits:
        raise UserError(f"{root} has no split {config.split!r}; it has {', '.join(splits)}")
    files, labels, num_classes = _scan(root, config.folder_labels)
    size, resize, channels = config.image_size, config.resize, config.channels
    shape, alike = _usual_shape(files, channels, size)

    def one(index: int) -> np.ndarray:
        image = preprocess.to_square(preprocess.decode(files[index], channels), size, resize)
        if image.shape != shape:
            raise UserError(
                f"{files[index]} is {'x'.join(map(str, image.shape))}, where {alike} is "
                f"{'x'.join(map(str, shape))} (height, width, channels); set ",
                fields.IMAGE_SIZE,
                " and ",
                fields.CHANNELS,
                " to make them alike",
            )
        return image

    return Source(
        name=root.name if root.name != config.split else root.parent.name,
        split=config.split,
        image_shape=tuple(map(int, shape)),
        labels=labels,
        num_classes=num_classes,
        read=in_threads(one, shape, THREADS if is_bucket(root) else os.cpu_count()),
        preprocessing=preprocess.description(size, resize),
        fingerprint_of=lambda: _fingerprint(root, files, (shape, resize, num_classes)),
        image_name=files.__getitem__,
    )


def _check_all_splits(root: Path, splits: list[str]) -> None:
    """Raises UserError where labels, or images, stand beside what would be taken for splits."""
    for other in sorted(root.iterdir()):
        if other.name in splits or other.name[0] == ".":
            continue
        if _is_image(other.name) or (other.is_dir() and _images_below(other)):
            raise UserError(
                f"{root} has {', '.join(splits)}, which would be a split, beside {other.name}, "
                "which is none: give ",
                fields.PATH,
                f"={root / splits[0]} where it is a split, and rename it where it is a label",
            )


def _is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS) and name[0] != "."


def _usual_shape(files: list[str], channels: int, size: int) -> tuple[tuple[int, int, int], str]:
    """(the most common shape of twenty images from all over the set, the first that has it).

    What is damaged is left out.
    """
    of_shape, errors = {}, []
    for file in files[:: max(1, len(files) // 20)]:
        try:
            height, width, depth = preprocess.decode(file, channels).shape
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


def _scan(root: Path, folder_labels: bool) -> tuple[list[str], np.ndarray, int]:
    """Paths of all images in order, their labels [N], and how many labels there are."""
    if not root.is_dir():
        raise UserError(f"there is no folder {root}")
    if not folder_labels:
        files = _images_below(root)
        labels, names = np.zeros(len(files), np.int32), []
    else:
        names, loose, below = _labelled(root)
        if loose:
            raise UserError(
                f"{root} has images beside its subfolders, {min(loose)} for one; with ",
                fields.FOLDER_LABELS,
                " each must be in a subfolder, whose place is its label",
            )
        empty = [name for name, images in zip(names, below, strict=True) if not images]
        if empty:
            raise UserError(f"{root / empty[0]} has no images: a label would have none")
        files = [file for images in below for file in images]
        labels = np.repeat(np.arange(len(names), dtype=np.int32), [len(b) for b in below])
    if not files:
        raise UserError(f"{root} has no images ({', '.join(EXTENSIONS)})")
    return files, labels, len(names)


def _labelled(root: Path) -> tuple[list[str], list[str], list[list[str]]]:
    """(names of subfolders, names of images beside them, paths of the images in each subfolder)."""
    if not is_bucket(root):
        names = sorted(p.name for p in root.iterdir() if p.is_dir() and p.name[0] != ".")
        loose = [p.name for p in root.iterdir() if p.suffix.lower() in EXTENSIONS and p.is_file()]
        return names, loose, [_images_below(root / name) for name in names]
    below, loose = {}, []  # from one listing: to ask for a thousand folders takes minutes
    for file in _images_below(root):
        first, inside, _ = file.removeprefix(f"{root}/").partition("/")
        if inside:
            below.setdefault(first, []).append(file)
        else:
            loose.append(first)
    return list(below), loose, list(below.values())


def _images_below(root: Path) -> list[str]:
    """Paths of all images: those of a folder in order, then those of its subfolders in order."""
    if is_bucket(root):
        inside = [path.relative_to(root).parts for path in root.below()]
        images = [
            parts
            for parts in inside
            if parts[-1].lower().endswith(EXTENSIONS) and not any(p[0] == "." for p in parts)
        ]
        images.sort(key=lambda parts: [*((1, name) for name in parts[:-1]), (0, parts[-1])])
        return [f"{root}/{'/'.join(parts)}" for parts in images]
    found = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(s for s in subfolders if s[0] != ".")
        found += [os.path.join(folder, name) for name in sorted(names) if _is_image(name)]
    return found


def _fingerprint(root: Path, files: list[str], rest: tuple) -> str:
    """Of names, sizes and times of change: to read a million files again would take too long.

    In a bucket, of the number that each content of an object has to itself.
    """
    digest = hashlib.sha256(repr(rest).encode())
    objects = {str(path): at for path, at in root.below().items()} if is_bucket(root) else {}
    for file in files:
        if objects:
            line = f"{file} {objects[file]['generation']}\n"
        else:
            stat = os.stat(file)
            line = f"{os.path.relpath(file, root)} {stat.st_size} {stat.st_mtime_ns}\n"
        digest.update(line.encode())
    return digest.hexdigest()
