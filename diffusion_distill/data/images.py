"""Anybody's images, by the path of a folder or a file: for measuring."""

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path

import ml_collections

from diffusion_distill.data import folder, npz
from diffusion_distill.data.source import Source
from diffusion_distill.errors import UserError
from diffusion_distill.storage.buckets import as_path

_LOSSY = (".jpg", ".jpeg", ".webp")


def load_images(path: str | Path, say: Callable[[str], None] = print) -> Source:
    """The images in a folder, at any depth, or in an .npz, as they are: nothing is resized.

    `say` is told where files are lossy. Raises UserError where there is nothing at `path`; reading
    images of several sizes raises it, too.
    """
    path = as_path(path)
    fields = {"image_size": 0, "resize": "area", "channels": 0, "folder_labels": False}
    config = ml_collections.ConfigDict({"path": str(path), "split": "", **fields})
    if path.is_dir():
        source = folder.load(config)
        files = source
        source = dataclasses.replace(source, fingerprint_of=lambda: _content(files))
        _warn_of_loss(source, path, say)
    elif path.suffix == ".npz" and path.is_file():
        source = npz.load(config)
    else:
        raise UserError(f"{path} is neither a folder of images nor an .npz")
    return dataclasses.replace(source, name=str(path), split="all")


def _content(source: Source) -> str:
    """A sha256 of all files: what is measured is read anyway, and no two sets are confused."""
    digest = hashlib.sha256()
    for index in range(len(source)):
        digest.update(hashlib.sha256(as_path(source.image_name(index)).read_bytes()).digest())
    return digest.hexdigest()


def _warn_of_loss(source: Source, path: Path, say: Callable[[str], None]) -> None:
    lossy = [
        n for n in map(source.image_name, range(len(source))) if Path(n).suffix.lower() in _LOSSY
    ]
    if lossy:
        say(
            f"warning: {len(lossy)} files in {path} are lossy, like {Path(lossy[0]).name}: "
            "compression alone moves FID, by as much as methods differ"
        )
