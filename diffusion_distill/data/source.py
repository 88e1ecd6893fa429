"""The one interface that everything above the data works through: images by index."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable

import numpy as np

from diffusion_distill.errors import UserError
from diffusion_distill.terminal.console import say_once

_COLOURS = (1, 2, 3, 4)  # how many channels an image may well have


@dataclasses.dataclass(frozen=True)
class Source:
    """One split of a data set: images of one size, read by index."""

    name: str  # of the data set, as messages and metrics have it: "cifar10"
    split: str  # "train" or "test", or whatever the data set calls it
    image_shape: tuple[int, int, int]  # (H, W, C)
    labels: np.ndarray  # int32 [N] in 0..num_classes - 1; all 0 where there are none
    num_classes: int  # 0 for data without labels
    # Indices int [n] -> uint8 [n, H, W, C]; may be called from several threads at once. Where an
    # image cannot be read it raises UserError, which names it.
    read: Callable[[np.ndarray], np.ndarray]
    preprocessing: str = ""  # what was done to the images after they were published
    fingerprint_of: Callable[[], str] = lambda: ""  # see `fingerprint`
    image_name: Callable[[int], str] = "image {}".format  # for a person: mostly a file's path

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def nbytes(self) -> int:
        """Bytes of all images."""
        return len(self) * int(np.prod(self.image_shape))

    @functools.cached_property
    def fingerprint(self) -> str:
        """What tells these images from others, wherever they are: a sha256 of the content where
        that is in memory or in a manifest, of a part of it where reading all takes long.
        """
        return self.fingerprint_of()

    def identity(self) -> dict:
        """What tells these images from any others, wherever they are, in plain JSON values."""
        labels = hashlib.sha256(np.ascontiguousarray(self.labels, np.int32).data).hexdigest()
        return {
            "split": self.split,
            "count": len(self),
            "image_shape": list(self.image_shape),
            "labels": labels,
            "fingerprint": self.fingerprint,
        }

    def images(self, indices: np.ndarray | None = None) -> np.ndarray:
        """uint8 images [n, H, W, C] at these indices; all of them for None."""
        return self.read(np.arange(len(self)) if indices is None else np.asarray(indices))


def from_arrays(
    images: np.ndarray,
    labels: np.ndarray | None = None,
    num_classes: int | None = None,
    *,
    name: str = "arrays",
    split: str = "train",
) -> Source:
    """A source of images in memory, or memory-mapped: uint8 [N, H, W, C], N at least 1.

    `labels` are integers [N], None for none; for `num_classes` None see `checked_labels`. Raises
    UserError, with `name` in it, where an array has another shape, type, range or order of axes.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or not images.size:
        found = f"{images.dtype} {list(images.shape)}"
        raise UserError(f"{name}: images are {found}; they must be uint8 [N, H, W, C]")
    if images.shape[3] > max(_COLOURS) and (
        axes := [axis for axis in (1, 2) if images.shape[axis] in _COLOURS]
    ):
        order = (0, 2, 3, 1) if axes[0] == 1 else (3, 0, 1, 2)
        found = f"{list(images.shape)}, which would be images of {images.shape[3]} channels"
        raise UserError(f"{name}: images are {found}; if not, np.transpose(images, {order})")
    if labels is None:
        labels, num_classes = np.zeros(len(images), np.int32), 0
    labels, num_classes = checked_labels(labels, len(images), num_classes, name)

    def fingerprint_of():
        digest = hashlib.sha256(f"{images.shape} {num_classes} ".encode())
        for array in (images, labels):
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    return Source(
        name=name,
        split=split,
        image_shape=tuple(map(int, images.shape[1:])),
        labels=labels,
        num_classes=num_classes,
        read=lambda indices: images[indices],
        fingerprint_of=fingerprint_of,
    )


def checked_labels(
    labels: np.ndarray, count: int, num_classes: int | None, name: str
) -> tuple[np.ndarray, int]:
    """(labels as int32 [count], num_classes), where they are what labels must be.

    Where `num_classes` is None it is one more than the largest, and each must have an image, since
    samples are drawn of all; elsewhere one that has none is said. Raises UserError where that is
    not so, or they are not integers, not one an image, or out of range.
    """
    if not np.issubdtype(labels.dtype, np.integer) or labels.shape != (count,):
        found, must = f"{labels.dtype} {list(labels.shape)}", "they must be integers, one for each"
        raise UserError(f"{name}: labels are {found}; {must} of the {count} images")
    limit = int(labels.max()) + 1 if num_classes is None else num_classes
    wrong = np.flatnonzero((labels < 0) | (labels >= max(limit, 1)))
    if wrong.size:
        found = f"label {labels[wrong[0]]} of image {wrong[0]}"
        raise UserError(f"{name}: {found} is out of range 0 to {limit - 1}")
    there = np.unique(labels)
    if len(there) < limit:
        none = next((n for n, label in enumerate(there) if n != label), len(there))
        if num_classes is None:
            found = f"labels are {there[0]} to {there[-1]}, and {none} has no image"
            raise UserError(f"{name}: {found}; they must be 0 to their number - 1")
        say_once(f"warning: {name}: label {none} has no image, and samples may be asked for it")
    return labels.astype(np.int32), limit
