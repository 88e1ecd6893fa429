"""What a run writes for the report beside its numbers: images of each stage, and of the data.

Small files, each computed once; all stages' images are from the same noise.
"""

import io
from pathlib import Path

import numpy as np

from diffusion_distill.data.source import Source
from diffusion_distill.devices.distributed import on_main
from diffusion_distill.metrics.nearest import nearest, searched
from diffusion_distill.report.grid import grid, png
from diffusion_distill.storage.files import write_atomically

SHOWN = 8  # samples whose nearest training images are kept
NEIGHBOURS = 3  # of each


def write_pictures(
    directory: Path, images: np.ndarray, labels: np.ndarray, source: Source, mirror: bool
) -> None:
    """Writes what a stage is shown by: samples.png and samples.npz in its folder, real.npz beside.

    Of several processes the first does.
    """

    def write() -> None:
        write_atomically(directory / "samples.png", png(grid(images)))
        write_real(directory.parent / "real.npz", source, labels, mirror)
        write_samples(directory / "samples.npz", images, labels, source, mirror)

    on_main(write)


def write_real(path: Path, source: Source, labels: np.ndarray, mirror: bool) -> None:
    """Writes real.npz at `path`, unless it is there: as many images as there are labels.

    images uint8 [N, H, W, C], labels int32 [N], distances float64 [N]: of each to the nearest other
    image of the split; `total` images are in it, of which `compared` were looked at. Where the
    source, the training split, has labels, images have those given. Mirror images count where
    training makes them.
    """
    if path.exists():
        return
    chosen, among = real_indices(source, labels), _searched(source)
    images, distances = source.images(chosen), np.zeros(0)
    if len(among) > 1:
        found = nearest(images, source.images, among, 1, mirror, own=chosen)
        distances = found.distances[:, 0]
    of = {"images": images, "labels": source.labels[chosen], "distances": distances}
    _write(path, **of, total=len(source), compared=len(among))


def write_samples(
    path: Path, images: np.ndarray, labels: np.ndarray, source: Source, mirror: bool
) -> None:
    """Writes samples.npz at `path`.

    images uint8 [N, H, W, C] and labels int32 [N], as given; distances float64 [N]: of each to the
    nearest training image; nearest uint8 [n, k, H, W, C], nearest_distances [n, k], and
    nearest_mirrored bool [n, k], of the first n = SHOWN; `total` and `compared` as in real.npz.
    """
    among = _searched(source)
    found = nearest(images, source.images, among, NEIGHBOURS, mirror)
    first = found.indices[:SHOWN]
    neighbours = source.images(first.ravel()).reshape(*first.shape, *images.shape[1:])
    _write(
        path, images=images, labels=labels, distances=found.distances[:, 0],
        nearest=neighbours, nearest_distances=found.distances[:SHOWN],
        nearest_mirrored=found.mirrored[:SHOWN], total=len(source), compared=len(among),
    )  # fmt: skip


def real_indices(source: Source, labels: np.ndarray) -> np.ndarray:
    """int [N]: images of a source in a fixed random order, with these labels where it has any.

    A label that has fewer images than are wanted gives them again.
    """
    rng = np.random.default_rng(0)
    if not source.num_classes:
        return rng.choice(len(source), len(labels), replace=len(source) < len(labels))
    chosen = np.zeros(len(labels), int)
    for label in np.unique(labels):
        wanted = np.flatnonzero(labels == label)
        there = np.flatnonzero(source.labels == label)
        there = rng.permutation(there if there.size else len(source))
        chosen[wanted] = np.resize(there, len(wanted))
    return chosen


def _searched(source: Source) -> np.ndarray:
    return searched(len(source), int(np.prod(source.image_shape)))


def _write(path: Path, **arrays) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_atomically(path, buffer.getvalue())
