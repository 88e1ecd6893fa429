"""Anybody's images, by the path of a folder or a file: for measuring."""

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path

from diffusion_distill.config import base
from diffusion_distill.data import folder, sources
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
    config = base().data
    config.path, config.split, config.folder_labels = str(path), "", False
    if path.is_dir():
        source = folder.load(config)
        files = [as_path(source.image_name(index)) for index in range(len(source))]
        source = dataclasses.replace(source, fingerprint_of=lambda: _content(files))
        if lossy := [file.name for file in files if file.suffix.lower() in _LOSSY]:
            say(
                f"warning: {len(lossy)} files in {path} are lossy, like {lossy[0]}: "
                "compression alone moves FID, by as much as methods differ"
            )
    elif path.suffix == ".npz" and path.is_file():
        source = sources.npz(config)
    else:
        raise UserError(f"{path} is neither a folder of images nor an .npz")
    return dataclasses.replace(source, name=str(path), split="all")


def _content(files: list[Path]) -> str:
    """A sha256 of all files: what is measured is read anyway, and no two sets are confused."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()
