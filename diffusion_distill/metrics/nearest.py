"""The training images that an image is nearest to, pixel by pixel: whether a model copies them."""

import dataclasses
from collections.abc import Callable

import numpy as np

from diffusion_distill.data.batches import subset

MOST_IMAGES = 50_000  # of a larger set a fixed random subset is searched
MOST_BYTES = 2**30  # and so of one whose images are larger: reading them must not take long
CHUNK = 2**23  # numbers at once: 32 MiB as float32


@dataclasses.dataclass(frozen=True)
class Nearest:
    """For each of Q images, its K nearest ones of a set, the nearest first."""

    indices: np.ndarray  # int [Q, K], of images of the set
    # float64 [Q, K], root mean square over pixels and channels, in levels of 0 to 255
    distances: np.ndarray
    mirrored: np.ndarray  # bool [Q, K], whether it is the mirror image that is so near


def searched(size: int, image_bytes: int) -> np.ndarray:
    """Indices of the images to search in a set of `size`, in order: all, or a fixed random subset.

    At most MOST_IMAGES, and MOST_BYTES where an image has `image_bytes`.
    """
    return subset(size, min(MOST_IMAGES, max(MOST_BYTES // image_bytes, 1)))


def nearest(
    images: np.ndarray,
    read: Callable[[np.ndarray], np.ndarray],
    among: np.ndarray,
    count: int,
    mirror: bool = False,
    own: np.ndarray | None = None,
) -> Nearest:
    """The `count` images of a set that are nearest to each of `images`; fewer where it has fewer.

    The set is read in chunks. Candidates are found in float32, as |a|^2 + |b|^2 - 2 ab; the
    distances of those that are kept are then computed from differences, so that a copy is at 0.

    Args:
        images: uint8 [Q, H, W, C].
        read: indices int [n] -> uint8 [n, H, W, C], images of the set.
        among: int [M], those to search.
        mirror: whether mirror images count, as where training mirrors at random.
        own: int [Q], an index for each image that is left out: its own, where it is of the set.
    """
    queries = np.stack([images, images[:, :, ::-1]][: 1 + mirror])  # [V, Q, H, W, C]
    flat = _centred(queries.reshape(-1, *images.shape[1:]))
    count = min(count, len(among) - (own is not None))
    best = np.zeros((3, len(images), 0))  # squared distance, index, which of the V
    step = max(CHUNK // flat.shape[1], 1)
    for first in range(0, len(among), step):
        indices = among[first : first + step]
        chunk = _centred(read(indices))
        squares = np.square(flat).sum(1)[:, None] + np.square(chunk).sum(1) - 2 * flat @ chunk.T
        squares = squares.reshape(len(queries), len(images), -1)
        if own is not None:
            squares[:, own[:, None] == indices] = np.inf
        there = np.broadcast_to(indices, squares.shape[1:])
        here = np.stack([squares.min(0), there, squares.argmin(0)])
        best = np.concatenate([best, here], 2)
        kept = np.argsort(best[0], 1, kind="stable")[:, :count]
        best = np.take_along_axis(best, kept[None], 2)
    indices, which = best[1:].astype(int)
    seen = queries[which, np.arange(len(images))[:, None]]  # [Q, K, H, W, C]
    found = read(indices.ravel()).reshape(seen.shape)
    distances = np.sqrt(np.square(seen.astype(float) - found).mean((2, 3, 4)))
    return Nearest(indices, distances, which.astype(bool))


def _centred(images: np.ndarray) -> np.ndarray:
    """uint8 [N, H, W, C] -> float32 [N, D] about 0, where squares lose least to rounding."""
    return images.reshape(len(images), -1).astype(np.float32) - 127.5
