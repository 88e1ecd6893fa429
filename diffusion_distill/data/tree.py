"""What is below a folder, here or in a bucket: which files are images, and what is left out."""

import collections
import dataclasses
import os
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from diffusion_distill.data import fields
from diffusion_distill.data.prepared import LABELS, MANIFEST, PREPARING
from diffusion_distill.errors import UserError
from diffusion_distill.storage.buckets import is_bucket
from diffusion_distill.terminal.console import say_once

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff")
# What systems keep beside anybody's files; whatever begins with a dot, too.
_OF_SYSTEMS = {
    *("__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found"),
    *("Thumbs.db", "ehthumbs.db", "desktop.ini"),
}
WORKDIR, PREPARED = "the workdir of a run", "a prepared set"
LABELS_FILE = "dataset.json"  # beside images of EDM and StyleGAN; see `labels`
_WAY_OUT = (": ", fields.NAME, "=prepared reads it")
_NAMED = 10  # of what is left out, one by one

Parts = tuple[str, ...]  # a path below the root


@dataclasses.dataclass(frozen=True)
class Tree:
    """What is below a folder. Files of a folder come before its subfolders', each by name."""

    root: Path
    images: list[Parts] = dataclasses.field(default_factory=list)  # by their names
    others: list[Parts] = dataclasses.field(default_factory=list)  # files that are none
    # right below the root, with images or without
    folders: list[str] = dataclasses.field(default_factory=list)
    # what might have been read, and why it is not
    left_out: dict[Parts, str] = dataclasses.field(default_factory=dict)

    def tell(self) -> None:
        """Says, once, what is not read."""
        for parts, why in [*self.left_out.items()][:_NAMED]:
            say_once(f"left out: {self.root}/{_readable(parts)}: {why}")
        if (more := len(self.left_out) - _NAMED) > 0:
            say_once(f"left out: {more:,} more in {self.root}")
        if others := [parts for parts in self.others if parts != (LABELS_FILE,)]:
            count = f"{self.root}: {len(others):,} files are not images by their names"
            ends = collections.Counter(PurePosixPath(parts[-1]).suffix.lower() for parts in others)
            kinds = (f"{n:,} {end or 'without an extension'}" for end, n in ends.most_common(5))
            example = f"{_readable(others[0])} for one"
            say_once(f"{count}, and are left out: {', '.join(kinds)}; {example}")

    def check(self) -> None:
        """Raises UserError where there is no image."""
        if not self.images:
            why = [f"; {_readable(parts)} is {what}" for parts, what in self.left_out.items()][:1]
            way_out = _WAY_OUT if PREPARED in [*self.left_out.values()][:1] else ()
            extensions = ", ".join(EXTENSIONS)
            raise UserError(f"{self.root} has no images ({extensions})", *why, *way_out)


def is_image(name: str) -> bool:
    """Whether a file is an image by its name."""
    return name.lower().endswith(EXTENSIONS) and name[0] != "."


def is_anybodys(name: str) -> bool:
    """Whether a file or folder is no system's by its name."""
    return name[0] != "." and name not in _OF_SYSTEMS


def project_folder(has: Callable[[str], bool]) -> str:
    """WORKDIR or PREPARED, where a folder is one; "" for any other. `has` knows its files."""
    if has("config.json") and (has("stages.jsonl") or has("results.jsonl")):
        return WORKDIR
    return PREPARED if has(PREPARING) or (has(MANIFEST) and has(LABELS)) else ""


def below(root: Path) -> Tree:
    """What is in a folder and below it; links are followed, but not in a circle.

    Workdirs, prepared sets, broken links and names that are not UTF-8 are left out. Raises
    UserError where `root` is no folder, or is one of the first two itself, or where a folder cannot
    be read.
    """
    if not root.is_dir():
        file = f"{root} is a file; it must be a folder of images: unpack it, if it is an archive"
        raise UserError(file if root.exists() else f"there is no folder {root}")
    tree = Tree(root)
    for parts, folders, files in _walk(_listing(root), (), tree.left_out):
        if not parts:
            tree.folders.extend(folders)
        for name in files:
            (tree.images if is_image(name) else tree.others).append((*parts, name))
    if what := tree.left_out.get(()):
        way_out = _WAY_OUT if what == PREPARED else ()
        raise UserError(f"{root} is {what}, no folder of images", *way_out)
    return tree


def has_images(root: Path) -> bool:
    """Whether a folder has images at any depth that `below` would find."""
    return any(is_image(name) for *_, files in _walk(_listing(root), (), {}) for name in files)


# (path below the root, what to leave out) -> names of folders there, of files there
_Listing = Callable[[Parts, dict[Parts, str]], tuple[set[str], set[str]]]


def _walk(
    listing: _Listing, parts: Parts, left_out: dict[Parts, str]
) -> Iterator[tuple[Parts, list[str], list[str]]]:
    """(path, names of folders, names of files) of each folder, each before its subfolders."""
    folders, files = (set(filter(is_anybodys, names)) for names in listing(parts, left_out))
    if what := project_folder(files.__contains__):
        left_out[parts] = what
        return
    yield parts, sorted(folders), sorted(files)
    for name in sorted(folders):
        yield from _walk(listing, (*parts, name), left_out)


def _listing(root: Path) -> _Listing:
    return _in_bucket(root) if is_bucket(root) else _on_disk(root)


def _in_bucket(root: Path) -> _Listing:
    # From one listing: to ask for a thousand folders takes minutes.
    folders, files = collections.defaultdict(set), collections.defaultdict(set)
    for path in root.below():
        *above, name = path.relative_to(root).parts
        files[tuple(above)].add(name)
        for depth, folder in enumerate(above):
            folders[tuple(above[:depth])].add(folder)
    return lambda parts, left_out: (folders[parts], files[parts])


def _on_disk(root: Path) -> _Listing:
    above = {(): {_identity(folder) for folder in root.resolve().parents}}

    def listing(parts: Parts, left_out: dict[Parts, str]) -> tuple[set[str], set[str]]:
        folder, folders, files = os.path.join(root, *parts), set(), set()
        here = above.pop(parts) | {_identity(folder)}
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            raise UserError(f"{folder} cannot be read: {error.strerror}") from None
        for entry in filter(lambda entry: is_anybodys(entry.name), entries):
            path = (*parts, entry.name)
            if why := _not_read(entry, here):
                left_out[path] = why
            elif entry.is_dir():
                folders.add(entry.name)
                above[path] = here
            else:
                files.add(entry.name)
        return folders, files

    return listing


def _not_read(entry: os.DirEntry, above: set[tuple[int, int]]) -> str:
    """Why what is there cannot be read, or must not be; ""."""
    try:
        entry.name.encode()
        if entry.is_dir():
            return "a link to a folder that it is in" if _identity(entry.path) in above else ""
        if entry.is_file():
            return ""
        return "a broken link" if entry.is_symlink() else "no file"
    except UnicodeEncodeError:
        return "its name is not UTF-8"
    except OSError as error:
        return error.strerror


def _identity(folder: str | Path) -> tuple[int, int]:
    stat = os.stat(folder)
    return stat.st_dev, stat.st_ino


def _readable(parts: Parts) -> str:
    """A path that any terminal can show: bytes of it that are not UTF-8 as their numbers."""
    return "/".join(parts).encode(errors="surrogateescape").decode(errors="backslashreplace")
