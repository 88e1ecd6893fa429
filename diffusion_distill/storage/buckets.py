"""Folders in a bucket, gs://bucket/folder, and what they cannot do that a local folder can.

etils.epath gives them the methods of pathlib.Path, and gcsfs does the work. An object is written
whole or not at all, so nothing need be renamed to be safe. But nothing can be appended to one,
there are no folders apart from the names of objects, and no lock goes with a process: here are a
file that grows, listings, and a lock that has to be renewed.

Why not universal-pathlib: Orbax takes none of its paths, so that checkpoints would need a second
kind. `is_file` says False of a bucket that cannot be reached, `mkdir` tries to make the bucket,
there is no `replace`, and errors come as gcsfs raises them: nearly every method would be ours.
"""

import contextlib
import importlib.util
import itertools
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

# Before gcsfs and etils look. gcsfs would ask a gRPC service of its own for the kind of each
# bucket; etils would use TensorFlow wherever it happens to be installed.
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
os.environ.setdefault("EPATH_USE_TF", "false")

import fsspec
from etils.epath.gpath import PosixGPath

from diffusion_distill.errors import BucketError, UserError, reason
from diffusion_distill.terminal.console import say

# TensorStore and other processes write objects, too: a listing that is kept would lack them.
fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
# It logs, with a traceback, what it raises anyway.
logging.getLogger("gcsfs").setLevel(logging.CRITICAL)

SCHEME = "gs://"
BLOCK = 2**25  # bytes asked for at once
THREADS = 16  # that read objects at once: latency counts more than anything
HEARTBEAT = 10.0  # seconds between two signs of life of a lock
SILENCE = 60.0  # seconds without one, after which a lock counts as left behind


def is_bucket(path: str | Path) -> bool:
    """Whether a path is in a bucket."""
    return str(path).startswith(SCHEME)


def as_path(path: str | Path) -> Path:
    """What a flag or a field of a config names: a pathlib.Path, or a BucketPath.

    "~" and "~name" are home folders. Raises UserError where it is an address of another kind,
    nobody has that name, or gcsfs is not installed.
    """
    if not is_bucket(path):
        if re.match(r"\w+:/", str(path)):
            raise UserError(f"{path} is neither a folder nor an address such as gs://bucket/folder")
        try:
            return Path(path).expanduser()
        except RuntimeError:
            name = Path(path).parts[0]
            raise UserError(f"{path}: {name} has no home folder; ./{path} is one here") from None
    if not re.match(r"gs://[^/]+/[^/]", str(path)):
        raise UserError(f"{path} does not name a folder in a bucket, as gs://bucket/folder does")
    if importlib.util.find_spec("gcsfs") is None:
        raise UserError(f"{path} needs gcsfs: pip install -e '.[gcs]'")
    return BucketPath(path)


class BucketPath(PosixGPath):
    """A path in a bucket, with what of pathlib.Path is used here.

    What is not there raises FileNotFoundError. That a bucket cannot be reached, or may not be, is
    never taken for that: it raises BucketError, of one line.
    """

    def exists(self) -> bool:
        return self._kind() is not None

    def is_dir(self) -> bool:
        return self._kind() == "directory"

    def is_file(self) -> bool:
        return self._kind() == "file"

    def _kind(self) -> str | None:
        with contextlib.suppress(FileNotFoundError):
            return self._ask("info")["type"]
        return None

    def _ask(self, method: str, *args, **kwargs):
        """What a method of gcsfs gives for this path."""
        with explained(self):
            return getattr(_filesystem(), method)(str(self), *args, **kwargs)

    def absolute(self) -> "BucketPath":
        return self

    def mkdir(self, mode=None, parents: bool = False, exist_ok: bool = False) -> None:
        """Makes nothing, as there are no folders; but there must be the bucket."""
        bucket, name = _names(self)
        with explained(self, makes=True):
            _filesystem().call("GET", "b/{}/o", bucket, prefix=name, maxResults=1, json_out=True)

    def iterdir(self) -> Iterator["BucketPath"]:
        names = self._ask("ls", detail=False)
        return iter([BucketPath(f"{SCHEME}{name}") for name in names if name != str(self)[5:]])

    def glob(self, pattern: str) -> Iterator["BucketPath"]:
        with explained(self):
            return iter([*super().glob(pattern)])

    def below(self) -> dict["BucketPath", dict]:
        """All objects below, in the order of their names, with `size`, `generation`, ..."""
        return {
            BucketPath(f"{SCHEME}{name}"): entry
            for name, entry in sorted(self._ask("find", detail=True).items())
            if not name.endswith("/")  # what other programs put in the place of a folder
        }

    def read_bytes(self) -> bytes:
        return self._ask("cat_file")

    def read_text(self, encoding: str | None = None) -> str:
        return self.read_bytes().decode()

    def blocks(self) -> Iterator[bytes]:
        """What read_bytes gives, a part at a time."""
        size = self._ask("info")["size"]
        for start in range(0, size, BLOCK):
            yield self._ask("cat_file", start, min(start + BLOCK, size))

    def write_bytes(self, data: bytes) -> None:
        """Readers see the old object or the new, not a part."""
        with explained(self, makes=True):
            _filesystem().pipe_file(str(self), bytes(data))

    def replace(self, target: "BucketPath") -> "BucketPath":
        """Moves an object, or all objects below, one after another."""
        self._ask("mv", str(target), recursive=True)
        return target

    rename = replace

    def unlink(self, missing_ok: bool = False) -> None:
        with explained(self):
            super().unlink(missing_ok)

    def rmtree(self, missing_ok: bool = False) -> None:
        with explained(self):
            super().rmtree(missing_ok)


class Growing:
    """An object that grows, as an open file does: what was written is kept, flush uploads all.

    `content` is what the object holds by now.
    """

    def __init__(self, path: Path | str, content: str = ""):
        self._path, self._content = BucketPath(path), bytearray(content.encode())
        self._uploaded = len(self._content)

    def write(self, content: str | bytes) -> None:
        self._content += content.encode() if isinstance(content, str) else content

    def flush(self) -> None:
        """Replaces the object by all that was written."""
        if len(self._content) > self._uploaded:
            self._path.write_bytes(self._content)
            self._uploaded = len(self._content)

    close = flush


@contextlib.contextmanager
def locked(path: Path, lost: Callable[[str], None] | None = None) -> Iterator[None]:
    """Holds the lock object at `path` for a `with`; UserError where another process does.

    Of several that create it, the bucket lets one (its generation must be 0). While it is held it
    is changed every HEARTBEAT seconds. A process that ends without letting go leaves it behind,
    unchanged: another one that watches it so for SILENCE seconds, by its own clock, removes it, on
    condition that it is still unchanged, and takes its place. Who finds its lock in other hands was
    silent for too long (suspended, say), and ends within HEARTBEAT seconds of going on: `lost` is
    called in another thread with one line, and ends the process.
    """
    with explained(path):
        generation = _acquire(path)
    done = threading.Event()
    arguments = (path, generation, done, lost or _end)
    beating = threading.Thread(target=_beat, args=arguments, daemon=True)
    beating.start()
    try:
        yield
    finally:
        done.set()
        beating.join()
        # Not there, or not ours: then there is nothing to let go of. Nor does it matter where the
        # bucket cannot be reached: what is left behind is found out by the next.
        with contextlib.suppress(Exception):
            _call("DELETE", path, ifGenerationMatch=generation)


def _call(method: str, path: Path, **kwargs):
    """A call of the bucket's own interface that is about one object."""
    return _filesystem().call(method, "b/{}/o/{}", *_names(path), **kwargs)


def _acquire(path: Path) -> str:
    """The generation of the lock object, once it is ours."""
    fs = _filesystem()
    seen = since = None
    while True:
        with contextlib.suppress(FileExistsError):
            fs.pipe_file(str(path), b"", mode="create")
            return fs.info(str(path))["generation"]
        try:
            fields = _call("GET", path, json_out=True)
        except FileNotFoundError:
            continue  # let go of just now
        now = {f"if{kind.title()}Match": fields[kind] for kind in ("generation", "metageneration")}
        if seen is None:
            seen, since = now, time.monotonic()
            sign = "a sign of life of the process that did it"
            say(f"{path.parent} is locked; waiting up to {SILENCE:.0f} s for {sign}")
        elif now != seen:
            raise UserError(f"{path.parent} is in use by another process")
        elif time.monotonic() - since > SILENCE:
            with contextlib.suppress(FileNotFoundError, FileExistsError):
                _call("DELETE", path, **seen)
            seen = None
            continue
        time.sleep(HEARTBEAT / 5)


def _beat(path: Path, generation: str, done: threading.Event, lost) -> None:
    """Changes the lock object now and then, until `done`."""
    patience = SILENCE - 2 * HEARTBEAT  # so that the end comes before anybody takes over
    for count in itertools.count():
        if done.wait(HEARTBEAT):
            return
        fields = {"metadata": {"heartbeat": str(count)}}
        try:
            _call("PATCH", path, json=fields, ifGenerationMatch=generation, timeout=patience)
        except (FileExistsError, FileNotFoundError):
            return lost(f"{path.parent} was taken over by another process")
        except Exception as error:  # of many kinds, after half a minute of attempts
            return lost(f"{path.parent} could not be held: {reason(error)}")


def _end(why: str) -> None:
    """Ends the process, which may write no more to what belongs to another one by now."""
    print(f"error: {why}", file=sys.stderr, flush=True)
    os._exit(2)


@contextlib.contextmanager
def explained(path: Path, makes: bool = False) -> Iterator[None]:
    """Turns what gcsfs and those below it raise, of many kinds and lines, into one line.

    Where the path is to be made, what is not there is its bucket.
    """
    try:
        yield
    except FileNotFoundError:
        if makes:
            raise UserError(f"{path}: there is no bucket {_names(path)[0]}") from None
        raise
    except (UserError, BucketError, FileExistsError):
        raise
    except Exception as error:
        raise BucketError(f"{path} cannot be used: {reason(error)}") from error


def _filesystem():
    return fsspec.filesystem("gcs")


def _names(path: Path) -> tuple[str, str]:
    """(bucket, name of the object)."""
    bucket, _, name = str(path).removeprefix(SCHEME).partition("/")
    return bucket, name
