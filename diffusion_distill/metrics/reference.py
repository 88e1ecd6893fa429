"""What generated images are compared with: statistics and features of real ones, computed once."""

import dataclasses
import functools
import hashlib
import json
import re
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from diffusion_distill import __version__
from diffusion_distill.data.batches import subset
from diffusion_distill.data.source import Source
from diffusion_distill.data.sources import load_images
from diffusion_distill.errors import UserError
from diffusion_distill.metrics.blocks import BlockStore, OnBatch, in_blocks
from diffusion_distill.metrics.features import FeatureNetwork
from diffusion_distill.metrics.frechet import Moments, Statistics, merge, moments, to_statistics
from diffusion_distill.metrics.precision_recall import radii
from diffusion_distill.storage.buckets import as_path
from diffusion_distill.storage.files import (
    CACHE_DIR,
    check_can_write,
    locked_in_turn,
    read_npz,
    save_arrays,
)

KEPT = 50_000  # features at most, for what compares with features
FORMAT = 1  # raised whenever the same images would give other arrays
SAVED_EVERY = 20.0  # seconds: what a stop can cost
_MOMENTS = 0  # number in the store of the moments so far; features kept have those from 1 on


@dataclasses.dataclass(frozen=True)
class Reference:
    """One set of real images, as distances need it."""

    name: str  # as metric names have it: a split, or "vs_NAME" for what is no split of the data set
    statistics: Statistics  # of the features of all its images
    # float32 [M, D] of a fixed random subset, M at most KEPT; None where only statistics are known
    features: np.ndarray | None
    count: int | None  # images it is made of; None where that is not known
    made_of: dict  # plain JSON values that tell it from any other

    @functools.cached_property
    def radii(self) -> np.ndarray:
        """Of its features, for precision and recall; see `precision_recall`."""
        return radii(self.features)

    @property
    def size(self) -> int:
        """D, the length of a feature."""
        return len(self.statistics.mean)


def reference_of(
    source: Source,
    network: FeatureNetwork,
    batch_size: int,
    cache_dir: Path,
    say: Callable[[str], None] = print,
    on_batch: OnBatch = lambda done, count: None,
) -> Reference:
    """The reference of all images of a source: from the cache, or computed and put there.

    It is taken from the cache only where everything that it was computed from is the same, and its
    arrays match their checksum; a source without a fingerprint is not cached. Where computing it
    was stopped, it goes on.

    Raises:
        UserError: there are too few images, or another process computes the same reference.
    """
    if len(source) < 2:
        raise UserError(f"{source.name} has {len(source)} images; a reference takes at least 2")
    made_of = _made_of(source, network)
    if not source.fingerprint:
        arrays = _compute(source, network, batch_size, None, on_batch)
    else:
        path = _path(cache_dir, made_of)
        store = BlockStore(path.with_suffix(""), made_of, say)
        arrays = store.read(path)
        if arrays is None:
            arrays = _compute_and_cache(source, network, batch_size, path, store, on_batch)
    statistics = Statistics(arrays["mean"], arrays["covariance"])
    return Reference(source.split, statistics, arrays["features"], len(source), made_of)


def check_cache(source: Source, network: FeatureNetwork, cache_dir: Path) -> None:
    """Raises UserError where `reference_of` could not keep what it computes."""
    if source.fingerprint and not (path := _path(cache_dir, _made_of(source, network))).exists():
        try:
            check_can_write(path)
        except OSError as error:
            way_out = f"config.runtime.cache_dir, or the environment's {CACHE_DIR}, names another"
            raise UserError(
                f"the cache {cache_dir} cannot be written to: {error.strerror}; {way_out}"
            ) from error


def reference_from_file(path: str | Path) -> Reference:
    """The statistics that another project left in an npz: `mu` [D] and `sigma` [D, D].

    Raises:
        UserError: there is no such file, or it does not hold these.
    """
    path = as_path(path)
    if not path.is_file():
        raise UserError(f"there is no file {path} of reference statistics")
    arrays = read_npz(path, names=("mu", "sigma"))  # others may be there, of gigabytes
    if not {"mu", "sigma"} <= arrays.keys():
        raise UserError(f"{path} has no arrays mu and sigma: it is no file of statistics")
    try:
        mean, covariance = (np.asarray(arrays[n], np.float64) for n in ("mu", "sigma"))
    except ValueError as error:
        raise UserError(f"{path}: mu and sigma are not numbers: {error}") from None
    if mean.ndim != 1 or covariance.shape != 2 * mean.shape:
        raise UserError(
            f"{path}: mu is {list(mean.shape)} and sigma {list(covariance.shape)}; they must be "
            "[D] and [D, D]"
        )
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise UserError(f"{path}: mu or sigma has a value that is not finite")
    if not np.allclose(covariance, covariance.T, atol=1e-6 * np.abs(covariance).max()):
        raise UserError(f"{path}: sigma is not symmetric, so it is no covariance")
    covariance = (covariance + covariance.T) / 2
    digest = hashlib.sha256(mean.tobytes() + covariance.tobytes()).hexdigest()
    made_of = {"statistics": digest}
    return Reference(_vs_name(path), Statistics(mean, covariance), None, None, made_of)


def images_or_statistics(path: str | Path) -> Source | Reference:
    """What is at a path to compare with: a folder or an .npz of images, or an .npz of statistics.

    Raises:
        UserError: it is none of these; see `load_images` and `reference_from_file`.
    """
    file = as_path(path)
    if file.suffix.lower() == ".npz" and file.is_file() and "mu" in read_npz(file, names=("mu",)):
        return reference_from_file(path)
    return dataclasses.replace(load_images(path), split=_vs_name(path))


def check_image_shapes(images: Source, reference: Source | Reference) -> None:
    """Raises UserError where images have another shape than the reference's, if that is known."""
    if isinstance(reference, Source) and images.image_shape != reference.image_shape:
        a, b = ("x".join(map(str, s.image_shape)) for s in (images, reference))
        raise UserError(
            f"{images.name} has images of {a}, the reference {reference.name} of {b}; they must be "
            "of one size, and how they are resized moves the distance"
        )


def _vs_name(path: str | Path) -> str:
    """What metric names call a reference that is a file or a folder: "vs_" and its name."""
    return "vs_" + re.sub(r"[^A-Za-z0-9.-]+", "-", Path(path).resolve().stem)


def _made_of(source: Source, network: FeatureNetwork) -> dict:
    return {
        "data": source.name,
        "split": source.split,
        "count": len(source),
        "image_shape": list(source.image_shape),
        "preprocessing": source.preprocessing,
        "fingerprint": source.fingerprint,
        "features": network.name,
        "network": network.fingerprint,
        "features_kept": KEPT,
        "format": FORMAT,
        "version": __version__,
    }


def _path(cache_dir: Path, made_of: dict) -> Path:
    key = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()
    readable = "-".join(str(made_of[field]) for field in ("data", "split", "features"))
    readable = re.sub(r"[^A-Za-z0-9.]+", "-", readable)[:80]
    return cache_dir / "references" / f"{readable}-{key[:16]}.npz"


def _compute_and_cache(source, network, batch_size, path, store, on_batch) -> dict:
    def waiting(looks: int) -> None:
        if not looks:
            store.say("reference: another process computes it; waiting")
        on_batch(0, len(source))  # which may say that it is time to stop

    with locked_in_turn(store.folder / ".lock", waiting):
        arrays = store.read(path)  # by now another process may have made it
        if arrays is not None:
            store.clear()  # with the lock, which waiting has made again
            return arrays
        store.say(
            f"reference: {len(source):,} images of {source.name}, {source.split}, "
            f"by {network.name}: kept in {path}"
        )
        arrays = _compute(source, network, batch_size, store, on_batch)
        save_arrays(path, arrays, store.made_of)
        store.clear()
    return arrays


def _compute(source, network, batch_size, store, on_batch) -> dict:
    def batch_fn(indices):
        return {"features": network.apply(network.params, source.images(indices))[0]}

    kept = subset(len(source), KEPT)
    total, features = _saved(store) if store else (None, [])
    saved, saved_at = len(features), time.monotonic()
    first = total.count if total else 0
    for block in in_blocks(batch_fn, len(source), batch_size, None, on_batch, first):
        block = block["features"]
        total = moments(block) if total is None else merge(total, moments(block))
        here = kept[(kept >= first) & (kept < first + len(block))]
        features.append(block[here - first])
        first += len(block)
        if store and time.monotonic() - saved_at > SAVED_EVERY:
            features[saved:] = [np.concatenate(features[saved:])]
            saved, saved_at = saved + 1, time.monotonic()
            store.save(saved, {"features": features[-1]})
            store.save(_MOMENTS, {"saved": np.array(saved)} | total._asdict())
    return to_statistics(total)._asdict() | {"features": np.concatenate(features)}


def _saved(store: BlockStore) -> tuple[Moments | None, list[np.ndarray]]:
    """The moments of the images that were done before a stop, and of those the features kept."""
    found = store.load(_MOMENTS)
    if found is not None:
        blocks = [store.load(number) for number in range(1, int(found.pop("saved")) + 1)]
        if None not in blocks:
            total = Moments(int(found["count"]), found["mean"], found["scatter"])
            return total, [block["features"] for block in blocks]
    return None, []
