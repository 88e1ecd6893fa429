"""The format that large sets train from: memory-mapped uint8 records in files of a set size.

PATH/train/
  manifest.json      counts, shape, labels, preprocessing, and the sha256 of every other file
  labels.npy         int32 [N]
  images-00000.npy   uint8 [n, H, W, C], n as in the manifest
  ...

Plain NumPy files, so that other programs can read them, too. A record costs one page fault or
two, no decoding and no memory of our own (benchmarks/reading.py has it beside array_record).

A split in a bucket is copied to a local cache first, once, by each host. To read single records
from there would be 10^9 paid requests in ImageNet's paper run, far slower than a batch is trained
on; and their checksums could not be compared.
"""

import concurrent.futures
import dataclasses
import hashlib
import json
import os
import shutil
from pathlib import Path

import ml_collections
import numpy as np

from diffusion_distill.data.source import Source, checked_labels
from diffusion_distill.errors import Field, UserError
from diffusion_distill.paper import DATASETS
from diffusion_distill.storage.buckets import THREADS, as_path, is_bucket
from diffusion_distill.storage.files import (
    CACHE_DIR,
    cache_folder,
    locked_in_turn,
    read_json,
    sha256,
    write_atomically,
)
from diffusion_distill.terminal.console import say
from diffusion_distill.terminal.progress import Progress

# Data sets whose settings `prepare` knows.
PUBLISHED = tuple(name for name, data in DATASETS.items() if data.resize)
FORMAT = 1
MANIFEST = "manifest.json"
LABELS = "labels.npy"
PREPARING = "preparing.json"  # is there while `prepare` is at work, or was stopped
VERIFIED_AT_LOADING = 2**30  # bytes; a larger set has its sizes compared, not its checksums


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What is in a prepared split."""

    name: str  # of the data set
    split: str
    image_shape: tuple[int, int, int]  # (H, W, C)
    num_classes: int  # 0 for no labels
    preprocessing: str  # what was done to the published images
    source: dict  # where they came from, as `prepare` was told
    files: list[tuple[str, int, str]]  # (name, images in it, sha256) of each file of images
    labels_sha256: str  # of labels.npy
    unreadable: list[tuple[str, str]]  # (its name, why) of each image that could not be read
    format: int = FORMAT

    @property
    def count(self) -> int:
        """Images in all."""
        return sum(count for _, count, _ in self.files)

    @property
    def fingerprint(self) -> str:
        """Tells these images and labels from others."""
        content = [self.image_shape, self.num_classes, self.labels_sha256]
        content += [(count, sha256) for _, count, sha256 in self.files]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def write(self, folder: Path) -> None:
        """Writes the manifest, with which the split is complete."""
        fields = {"count": self.count, **dataclasses.asdict(self)}
        write_atomically(folder / MANIFEST, json.dumps(fields, indent=1) + "\n")

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """The manifest of a split's folder. Raises UserError where it is missing or damaged."""
        path = folder / MANIFEST
        fields = read_json(path)
        try:
            if fields.pop("format") != FORMAT:
                raise UserError(f"{path} is of another version of the format; prepare it anew")
            count = fields.pop("count")
            fields["image_shape"] = tuple(map(int, fields["image_shape"]))
            fields["files"] = [(str(n), int(c), str(s)) for n, c, s in fields["files"]]
            manifest = cls(**fields)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{path} is damaged: {error!r}") from None
        if manifest.count != count or not count:
            raise UserError(f"{path} is damaged: its files have {manifest.count} images of {count}")
        return manifest


def load(config: ml_collections.ConfigDict, cache: Path | None = None) -> Source:
    """The split config.split of the prepared set in the folder config.path.

    `cache` is where the local copy of a set in a bucket is kept; None for the usual place. Raises
    UserError where a file is missing or damaged. Of sets over a GiB the files' sizes are compared;
    `prepare --verify` compares their checksums.
    """
    root, split = as_path(config.path), config.split
    folder = root / split
    if not root.is_dir():
        raise UserError(f"there is no {root}; ", *_how_to_make(root, config))
    if not (folder / MANIFEST).exists():
        if (folder / PREPARING).exists():
            raise UserError(f"{folder} is not finished: prepare was stopped; its command goes on")
        splits = ", ".join(sorted(p.parent.name for p in root.glob(f"*/{MANIFEST}"))) or "none"
        missing = f"{root} has no prepared split {split!r}; it has {splits}; "
        raise UserError(missing, *_how_to_make(root, config))
    manifest = Manifest.read(folder)
    if is_bucket(folder):
        folder = local_copy(folder, manifest, cache or cache_folder())
    path, count = folder / LABELS, manifest.count
    _check(path, manifest.labels_sha256)
    labels, _ = checked_labels(np.load(path), count, manifest.num_classes, str(path))
    files = [_mapped(folder / name, count, manifest) for name, count, _ in manifest.files]
    if sum(file.nbytes for file in files) <= VERIFIED_AT_LOADING:
        verify(folder, manifest)
    starts = np.cumsum([0] + [count for _, count, _ in manifest.files])

    def read(indices: np.ndarray) -> np.ndarray:
        indices = np.asarray(indices)
        images = np.empty((len(indices), *manifest.image_shape), np.uint8)
        which = np.searchsorted(starts, indices, side="right") - 1
        for number in np.unique(which):
            rows = np.flatnonzero(which == number)
            images[rows] = files[number][indices[rows] - starts[number]]
        return images

    return Source(
        name=manifest.name,
        split=manifest.split,
        image_shape=manifest.image_shape,
        labels=labels,
        num_classes=manifest.num_classes,
        read=read,
        preprocessing=manifest.preprocessing,
        fingerprint_of=lambda: manifest.fingerprint,
        image_name=f"image {{}} of {folder}".format,
    )


def _how_to_make(root: Path, config: ml_collections.ConfigDict) -> tuple[str, Field]:
    rest = "" if config.split == "train" else f"--split={config.split} "
    known = f"--dataset={root.name}"
    if root.name not in PUBLISHED:
        size = config.image_size or "SIZE"
        known = f"--source=folder --image_size={size} --resize=area (or antialias)"
        rest += f"(in place of --source and what it goes with: --dataset={'|'.join(PUBLISHED)}) "
    return (
        f"make it with: python -m diffusion_distill.data.prepare {known} --path=... --out={root} "
        f"{rest}or say where it is with ",
        Field("--config.data.path"),
    )


def local_copy(folder: Path, manifest: Manifest, cache: Path) -> Path:
    """The local copy of a split in a bucket, in `cache`; what is missing of it is copied now.

    Each file is compared with its checksum as it comes. Of several processes on a host one copies,
    and the others wait for it. Raises UserError where a file is damaged or the disk is too small.
    """
    copy = cache / "data" / f"{manifest.name}-{manifest.split}-{manifest.fingerprint[:16]}"
    files = [(LABELS, manifest.labels_sha256), *((n, s) for n, _, s in manifest.files)]
    with locked_in_turn(copy / ".lock", each_process=True):
        missing = [(name, sha) for name, sha in files if not (copy / name).exists()]
        if missing:
            _check_room(copy, manifest)
            say(f"{folder}: copying {len(missing)} files to {copy}")
        progress = Progress(f"{folder}", len(missing), "files")
        with progress, concurrent.futures.ThreadPoolExecutor(THREADS, "copy") as pool:
            work = [pool.submit(_copy, folder / name, copy / name, sha) for name, sha in missing]
            try:
                for done in concurrent.futures.as_completed(work):
                    done.result()
                    progress.add(1)
            finally:
                pool.shutdown(cancel_futures=True)
        (copy / MANIFEST).write_bytes((folder / MANIFEST).read_bytes())
    return copy


def _check_room(copy: Path, manifest: Manifest) -> None:
    there = sum(path.stat().st_size for path in copy.iterdir())
    needed = manifest.count * int(np.prod(manifest.image_shape)) - there
    free = shutil.disk_usage(copy).free
    if free < needed:
        raise UserError(
            f"{copy} has {free / 1e6:,.0f} MB free; the copy of {manifest.name} needs "
            f"{needed / 1e6:,.0f} MB more; config.runtime.cache_dir, or the environment variable "
            f"{CACHE_DIR}, names another place for it"
        )


def _copy(source: Path, target: Path, expected: str) -> None:
    """Copies a file from a bucket, whole and right or not at all."""
    part = target.with_name(f"{target.name}.part")
    digest = hashlib.sha256()
    try:
        with open(part, "wb") as file:
            for block in source.blocks():
                digest.update(block)
                file.write(block)
    except FileNotFoundError:
        raise UserError(f"there is no {source}, which the manifest names") from None
    if digest.hexdigest() != expected:
        raise UserError(f"{source} is damaged: its sha256 is not the manifest's")
    os.replace(part, target)


def verify(folder: Path, manifest: Manifest) -> None:
    """Compares every file of a split with its checksum, by all cores.

    Raises UserError, which names the first that differs or is not there.
    """
    names = [*(name for name, _, _ in manifest.files), LABELS]
    sums = [*(sha for _, _, sha in manifest.files), manifest.labels_sha256]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(_check, (folder / name for name in names), sums))


def _check(path: Path, expected: str) -> None:
    """Raises UserError where a file is missing, or has another checksum."""
    try:
        found = sha256(path)
    except FileNotFoundError:
        raise UserError(f"there is no {path}, which the manifest names") from None
    if found != expected:
        raise UserError(f"{path} is damaged: its sha256 is not the manifest's")


def _mapped(path: Path, count: int, manifest: Manifest) -> np.ndarray:
    try:
        images = np.lib.format.open_memmap(path, mode="r")
    except FileNotFoundError:
        raise UserError(f"there is no {path}, which the manifest names") from None
    except (ValueError, OSError, EOFError) as error:
        raise UserError(f"{path} is damaged: {error}") from None
    if images.dtype != np.uint8 or images.shape != (count, *manifest.image_shape):
        expected = [count, *manifest.image_shape]
        found = f"{images.dtype} {list(images.shape)}"
        raise UserError(f"{path} has {found}; the manifest says uint8 {expected}")
    return images
