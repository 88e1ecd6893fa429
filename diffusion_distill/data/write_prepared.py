"""Writes a data set in the format that large sets train from; see `prepared`."""

import concurrent.futures
import io
import json
import os
from pathlib import Path

import numpy as np

from diffusion_distill.data.folder import BY_CONTENT
from diffusion_distill.data.prepared import LABELS, MANIFEST, PREPARING, Manifest
from diffusion_distill.data.source import Source
from diffusion_distill.errors import UserError
from diffusion_distill.storage.files import locked, read_json, sha256, write_atomically
from diffusion_distill.terminal.console import say
from diffusion_distill.terminal.progress import Progress

TRIED = 1000  # images after which it is too many when half of them could not be read
FILE_BYTES = 2**27  # of images in one file: what is in memory at once, and what a stop can cost


def write(source: Source, folder: Path, origin: dict, file_bytes: int = FILE_BYTES) -> Manifest:
    """Writes a source as a prepared split, going on where an earlier call was stopped.

    An image whose reading raises UserError is left out, and named. `origin` says where the source
    comes from, and is kept in the manifest: a folder that was begun with another ("path" apart), or
    from other images, is refused. About `file_bytes` of images are in a file. Raises UserError
    there, and where half of the images cannot be read: of all, or of the first thousand and more.
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
        progress = Progress("prepare", len(source), "images")
        parts, tried = [], _Tried(progress, len(source))
        with progress, concurrent.futures.ThreadPoolExecutor(os.cpu_count(), "prepare") as pool:
            try:
                for number, first in enumerate(range(0, len(source), size)):
                    indices = np.arange(first, min(first + size, len(source)))
                    parts.append(_part(source, folder, number, indices, pool, tried))
            except BaseException:  # nothing that waits in the pool is wanted any more
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return _finish(source, folder, origin, parts)


class _Tried:
    """Names images that cannot be read as they come, and ends where they are too many."""

    def __init__(self, progress: Progress, total: int):
        self.progress = progress
        self._total, self._count, self._unreadable = total, 0, []

    def add(self, readable: int, unreadable: list[tuple[str, str]]) -> None:
        """Raises UserError where half of what was tried, TRIED images or all, is unreadable."""
        for _, reason in unreadable:
            say(f"left out: {reason}")
        self._unreadable += unreadable
        self._count += readable + len(unreadable)
        many = self._count >= min(TRIED, self._total)
        if many and 2 * len(self._unreadable) >= self._count:
            name, reason = self._unreadable[0]
            so_far = "" if self._count == self._total else f" tried so far, of {self._total},"
            bad = f"{len(self._unreadable)} of {self._count} images{so_far} could not be read"
            rest = "no set is made of the rest"
            raise UserError(f"{bad}, and {rest}; the first: {name}: {reason}")


def _differences(old: dict, new: dict) -> str:
    """In which settings two origins differ; the path is none, since the content is compared."""
    names = [n for n in sorted(old.keys() | new.keys()) if old.get(n) != new.get(n) and n != "path"]
    if BY_CONTENT in new["fingerprint"] and BY_CONTENT not in old.get("fingerprint", ""):
        names.remove("fingerprint")  # of an older version, and of another kind
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


def _part(source: Source, folder: Path, number: int, indices, pool, tried: _Tried) -> dict:
    """One file of images and the note beside it; nothing is done where both are there."""
    path, note = folder / f"images-{number:05d}.npy", folder / f"part-{number:05d}.json"
    if note.exists():
        tried.progress.skip(len(indices))
        part = read_json(note)
        tried.add(len(part["labels"]), [tuple(pair) for pair in part["unreadable"]])
        return part

    def read(index: int) -> tuple[np.ndarray | None, str]:
        try:
            return source.images([index])[0], ""
        except UserError as error:
            return None, str(error)

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
        tried.progress.add(1)
    digest = _save(path, images[: len(labels)]) if labels else ""
    part = {"file": path.name, "sha256": digest, "labels": labels, "unreadable": unreadable}
    write_atomically(note, json.dumps(part))
    return part


def _finish(source: Source, folder: Path, origin: dict, parts: list[dict]) -> Manifest:
    labels = np.array([label for part in parts for label in part["labels"]], np.int32)
    unreadable = [tuple(pair) for part in parts for pair in part["unreadable"]]
    manifest = Manifest(
        name=source.name,
        split=source.split,
        image_shape=source.image_shape,
        num_classes=source.num_classes,
        preprocessing=source.preprocessing,
        source=origin,
        files=[(p["file"], len(p["labels"]), p["sha256"]) for p in parts if p["labels"]],
        labels_sha256=_save(folder / LABELS, labels),
        unreadable=unreadable,
    )
    manifest.write(folder)
    _remove_notes(folder)
    left_out = f", {len(unreadable):,} could not be read and were left out" if unreadable else ""
    say(f"{folder}: {manifest.count:,} images{left_out}")
    return manifest


def _save(path: Path, array: np.ndarray) -> str:
    """Writes an array as .npy; returns the file's sha256."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    write_atomically(path, buffer.getbuffer())
    return sha256(path)


def _remove_notes(folder: Path) -> None:
    """What only a set in the making needs; a stop may have come between its manifest and this."""
    for note in [*folder.glob("part-*.json"), folder / PREPARING]:
        note.unlink(missing_ok=True)
