"""Get a data set, or turn one into the format that large sets train from.

python -m diffusion_distill.data.prepare --dataset=cifar10 --out=data/cifar10
python -m diffusion_distill.data.prepare --dataset=imagenet64 --path=ILSVRC2012/train --out=data/imagenet64
python -m diffusion_distill.data.prepare --source=folder --path=photos --image_size=64 --out=data/photos
python -m diffusion_distill.data.prepare --verify --out=data/photos

The same command goes on where it was stopped; a download begins anew. Images that cannot be read are
left out, and named.
"""  # noqa: E501

import concurrent.futures
import dataclasses
import io
import json
import os
from pathlib import Path

import numpy as np
from absl import flags

from diffusion_distill.config import base
from diffusion_distill.data import cifar10, preprocess, sources
from diffusion_distill.data.prepared import LABELS, MANIFEST, PREPARING, Manifest, sha256, verify
from diffusion_distill.data.source import Source
from diffusion_distill.errors import UserError
from diffusion_distill.storage.buckets import as_path
from diffusion_distill.storage.files import locked, read_json, write_atomically
from diffusion_distill.terminal import cli
from diffusion_distill.terminal.console import Countdown, say

TRIED = 1000  # images after which it is too many when half of them could not be read
FILE_BYTES = 2**27  # of images in one file: what is in memory at once, and what a stop can cost

_DATASET = flags.DEFINE_string("dataset", None, "cifar10 (is downloaded), or one of DATASETS.")
_SOURCE = flags.DEFINE_string("source", None, "folder, npz, tfds, cifar10 or digits.")
_PATH = flags.DEFINE_string("path", None, "Where the source is.")
_SPLIT = flags.DEFINE_string("split", "train", "Which split; also the name of the one made.")
_TFDS_NAME = flags.DEFINE_string("tfds_name", None, "With --source=tfds: lsun/bedroom, say.")
_IMAGE_SIZE = flags.DEFINE_integer("image_size", None, "Crop to a square and resize to this.")
_RESIZE = flags.DEFINE_string("resize", None, "area or antialias.")
_CHANNELS = flags.DEFINE_integer("channels", None, "3 turns grey images into colour.")
_FOLDER_LABELS = flags.DEFINE_bool("folder_labels", None, "Whether subfolders are labels.")
_OUT = flags.DEFINE_string("out", None, "Folder of the prepared set.")
_VERIFY = flags.DEFINE_bool("verify", False, "Compare every file in --out with its checksum.")


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A published data set that we cannot get for a person, and how it is prepared.

    Attributes:
        where: where it comes from, and what `--path` then has to be.
        counts: images in each split, as published.
        fields: of a config's `data` section.
    """

    where: str
    counts: dict[str, int]
    fields: dict


_LSUN = {"image_size": 128, "resize": "antialias", "channels": 3, "folder_labels": False}
_LSUN_WHERE = (
    "is on https://www.yf.io/p/lsun as an LMDB database ({size}), whose own tools (data.py export) "
    "write it as a folder of images: give that with --path. TensorFlow Datasets has it, too: "
    "--source=tfds --tfds_name=lsun/{name} --path=TFDS_FOLDER"
)

DATASETS = {
    "imagenet64": Dataset(
        "needs an account on https://image-net.org, and its terms: unpack the training images of "
        "ILSVRC2012 into a folder with a subfolder for each of the 1,000 classes (n01440764, ...), "
        "and give that with --path. What TensorFlow Datasets prepared will do, too: "
        "--source=tfds --tfds_name=imagenet2012 --path=TFDS_FOLDER",
        {"train": 1_281_167, "val": 50_000, "validation": 50_000},
        {"image_size": 64, "resize": "area", "channels": 3, "folder_labels": True},
    ),
    "lsun_bedroom128": Dataset(
        _LSUN_WHERE.format(name="bedroom", size="43 GB"), {"train": 3_033_042}, _LSUN
    ),
    "lsun_church128": Dataset(
        _LSUN_WHERE.format(name="church", size="2 GB"), {"train": 126_227}, _LSUN
    ),
}


def prepare(source: Source, folder: Path, origin: dict, file_bytes: int = FILE_BYTES) -> Manifest:
    """Writes a source as a prepared split, going on where an earlier call was stopped.

    Args:
        source: what to write. Reading one image may raise UserError: it is left out, and named.
        folder: of the split.
        origin: says where it comes from, to be kept in the manifest; a folder that was begun with
            other settings, or from other images, is refused. Its "path" may be another.
        file_bytes: of images in one file, about.

    Returns:
        The manifest, which is written last.

    Raises:
        UserError: the folder holds another set, or half of the images cannot be read: of all, or
            of the first thousand and more.
    """
    folder.mkdir(parents=True, exist_ok=True)
    size = max(1, file_bytes // int(np.prod(source.image_shape)))
    content = {"images": len(source), "fingerprint": source.fingerprint, "images_per_file": size}
    origin = origin | content
    with locked(folder / ".lock"):
        if (folder / MANIFEST).exists():
            manifest = Manifest.read(folder)
            if differences := _differences(manifest.source, origin):
                raise UserError(f"{folder} holds another set: {differences}; choose another --out")
            _remove_notes(folder)
            say(f"{folder}: prepared already, {manifest.count:,} images")
            return manifest
        _begin(folder, origin)
        progress = Countdown("prepare", len(source), "images")
        parts = []
        tried = _Tried(len(source))
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count(), "prepare") as pool:
            try:
                for number, first in enumerate(range(0, len(source), size)):
                    indices = np.arange(first, min(first + size, len(source)))
                    parts.append(_part(source, folder, number, indices, pool, progress, tried))
            except BaseException:  # nothing that waits in the pool is wanted any more
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return _finish(source, folder, origin, parts)


class _Tried:
    """Names images that cannot be read as they come, and ends where they are too many."""

    def __init__(self, total: int):
        self._total, self._count, self._unreadable = total, 0, []

    def add(self, readable: int, unreadable: list[tuple[str, str]]) -> None:
        """Raises UserError where half of what was tried, TRIED images or all, is unreadable."""
        for name, reason in unreadable:
            say(f"left out: {reason if name in reason else f'{name}: {reason}'}")
        self._unreadable += unreadable
        self._count += readable + len(unreadable)
        many = self._count >= min(TRIED, self._total)
        if many and 2 * len(self._unreadable) >= self._count:
            name, reason = self._unreadable[0]
            so_far = "" if self._count == self._total else f" tried so far, of {self._total},"
            raise UserError(
                f"{len(self._unreadable)} of {self._count} images{so_far} could not be read, and "
                f"no set is made of the rest; the first: {name}: {reason}"
            )


def _differences(old: dict, new: dict) -> str:
    """In which settings two origins differ; the path is none, since the content is compared."""
    names = [n for n in sorted(old.keys() | new.keys()) if old.get(n) != new.get(n) and n != "path"]
    settings = [f"{n} was {old.get(n)!r}, is {new.get(n)!r}" for n in names if n != "fingerprint"]
    return ", ".join(settings or ["its images were others, or have changed" for _ in names])


def _begin(folder: Path, origin: dict) -> None:
    """Notes where a set comes from, or refuses to mix it with what was begun from elsewhere."""
    note = folder / PREPARING
    if note.exists():
        begun = read_json(note)
        if differences := _differences(begun, origin):
            raise UserError(f"{folder} was begun otherwise: {differences}; remove it to begin anew")
        say(f"{folder}: going on where it was stopped")
    elif any(not p.name.startswith(".") for p in folder.iterdir()):
        raise UserError(f"{folder} has other files; choose another --out")
    else:
        write_atomically(note, json.dumps(origin) + "\n")


def _part(source, folder, number, indices, pool, progress, tried) -> dict:
    """One file of images and the note beside it; nothing is done where both are there."""
    path, note = folder / f"images-{number:05d}.npy", folder / f"part-{number:05d}.json"
    if note.exists():
        progress.skip(len(indices))
        part = read_json(note)
        tried.add(len(part["labels"]), [tuple(pair) for pair in part["unreadable"]])
        return part

    def read(index: int) -> tuple[np.ndarray | None, str]:
        try:
            return source.images([index])[0], ""
        except UserError as error:
            return None, _with_flags(str(error))

    images = np.empty((len(indices), *source.image_shape), np.uint8)
    labels, unreadable = [], []
    for index, (image, reason) in zip(indices, pool.map(read, indices), strict=True):
        if image is None:
            unreadable.append((source.image_name(int(index)), reason))
            tried.add(0, unreadable[-1:])
        else:
            images[len(labels)] = image
            labels.append(int(source.labels[index]))
            tried.add(1, [])
        progress.add(1)
    digest = ""
    if labels:
        buffer = io.BytesIO()
        np.save(buffer, images[: len(labels)])
        write_atomically(path, buffer.getbuffer())
        digest = sha256(path)
    part = {"file": path.name, "sha256": digest, "labels": labels, "unreadable": unreadable}
    write_atomically(note, json.dumps(part))
    return part


def _finish(source: Source, folder: Path, origin: dict, parts: list[dict]) -> Manifest:
    labels = np.array([label for part in parts for label in part["labels"]], np.int32)
    unreadable = [tuple(pair) for part in parts for pair in part["unreadable"]]
    buffer = io.BytesIO()
    np.save(buffer, labels)
    write_atomically(folder / LABELS, buffer.getbuffer())
    manifest = Manifest(
        name=source.name,
        split=source.split,
        image_shape=source.image_shape,
        num_classes=source.num_classes,
        preprocessing=source.preprocessing,
        source=origin,
        files=[(p["file"], len(p["labels"]), p["sha256"]) for p in parts if p["labels"]],
        labels_sha256=sha256(folder / LABELS),
        unreadable=unreadable,
    )
    manifest.write(folder)
    _remove_notes(folder)
    left_out = f", {len(unreadable):,} could not be read and were left out" if unreadable else ""
    say(f"{folder}: {manifest.count:,} images{left_out}")
    return manifest


def _remove_notes(folder: Path) -> None:
    """What only a set in the making needs; a stop may have come between its manifest and this."""
    for note in [*folder.glob("part-*.json"), folder / PREPARING]:
        note.unlink(missing_ok=True)


def main(argv: list[str]) -> None:
    cli.no_arguments(argv)
    if _VERIFY.value:
        _verify_all(_out())
    elif _DATASET.value == "cifar10" and _SOURCE.value is None and _PATH.value is None:
        cifar10.download(_out())
    else:
        name = _DATASET.value or ""
        config = _data_config(name)  # before --out, because it says where a data set is got
        out = _out()
        try:
            source = sources.load(config)
        except UserError as error:
            raise UserError(_with_flags(str(error))) from error
        if name:
            source = dataclasses.replace(source, name=name)
        origin = {"name": config.name, "path": config.path, "tfds_name": config.tfds_name}
        origin |= {"split": config.split, "preprocessing": source.preprocessing}
        origin |= {"channels": config.channels, "folder_labels": config.folder_labels}
        manifest = prepare(source, out / config.split, origin)
        expected = DATASETS[name].counts.get(config.split) if name in DATASETS else None
        if expected not in (None, manifest.count):
            say(f"warning: {name} {config.split} has {expected:,} images as published")


def _out() -> Path:
    return as_path(cli.required("out", _OUT.value))


def _with_flags(message: str) -> str:
    """A message about a config's data, with the flags that stand for its fields here."""
    message = message.replace("--config.data.", "--").replace("config.data.name", "--source")
    return message.replace("config.data.", "--")


def _data_config(dataset: str):
    """A config's `data` section from the flags, over the data set's own fields."""
    config = base().data
    config.name, config.split = _SOURCE.value or "folder", _SPLIT.value
    if dataset == "cifar10":
        config.name = "cifar10"
    elif dataset:
        if dataset not in DATASETS:
            raise UserError(f"--dataset is {dataset!r}; there are cifar10, {', '.join(DATASETS)}")
        if _PATH.value is None:
            raise UserError(f"{dataset} {DATASETS[dataset].where}")
        config.update(DATASETS[dataset].fields)
    elif _SOURCE.value is None:
        raise UserError("--dataset or --source must be given; --help says how")
    given = {
        "path": _PATH.value,
        "tfds_name": _TFDS_NAME.value,
        "image_size": _IMAGE_SIZE.value,
        "resize": _RESIZE.value,
        "channels": _CHANNELS.value,
        "folder_labels": _FOLDER_LABELS.value,
    }
    config.update({name: value for name, value in given.items() if value is not None})
    if config.resize not in preprocess.RESIZES:
        raise UserError(f"--resize is {config.resize!r}; there are {', '.join(preprocess.RESIZES)}")
    if config.image_size < 0 or config.channels not in (0, 1, 3):
        raise UserError("--image_size must be at least 0, and --channels 0, 1 or 3")
    return config


def _verify_all(out: Path) -> None:
    manifests = sorted(out.glob(f"*/{MANIFEST}"))
    if not manifests:
        raise UserError(f"{out} has no prepared split")
    for path in manifests:
        verify(path.parent, Manifest.read(path.parent))
        say(f"{path.parent}: every file is as it was written")


if __name__ == "__main__":
    cli.run(main)
