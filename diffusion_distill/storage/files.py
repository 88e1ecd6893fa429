"""Small files, and arrays with a checksum: written whole or not at all. Nothing is unpickled."""

import contextlib
import errno
import fcntl
import hashlib
import io
import json
import os
import shutil
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np

from diffusion_distill.devices import distributed
from diffusion_distill.errors import UserError
from diffusion_distill.storage import buckets
from diffusion_distill.storage.buckets import as_path, is_bucket

CACHE_DIR = "DIFFUSION_DISTILL_CACHE"  # environment variable: the cache where no config names one
HEADER = "header"  # the entry of an npz that holds what is not an array, as JSON
LOOKS_EVERY = 2.0  # seconds, while a lock is another process's


def cache_folder(named: str = "") -> Path:
    """The cache: config.runtime.cache_dir where it is given; it may not be there yet.

    Raises UserError where it is in a bucket.
    """
    folder = named or os.environ.get(CACHE_DIR) or "~/.cache/diffusion_distill"
    if is_bucket(folder):
        what = "config.runtime.cache_dir" if named else CACHE_DIR
        raise UserError(f"{what} is {folder}; it must be a folder of this host")
    return as_path(folder)


def write_atomically(path: Path, content: str | bytes | memoryview) -> None:
    """Writes a file so that readers, and a restart, see the old content or the new, not a part.

    Of several processes only the first writes.
    """
    if not distributed.is_main():
        return
    data = content.encode() if isinstance(content, str) else content
    if is_bucket(path):
        path.write_bytes(data)
        return
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def check_can_write(path: Path) -> None:
    """Raises OSError where a file at `path` could not be written; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not is_bucket(path) and not os.access(path.parent, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path.parent))


@contextlib.contextmanager
def locked(path: Path):
    """Holds the lock file at `path` for a `with`; UserError where another process does.

    It goes with the process. Of several that work as one, the first holds it for all. In a bucket
    see `buckets.locked`.
    """
    with contextlib.ExitStack() as stack:

        def lock() -> None:
            if is_bucket(path):
                stack.enter_context(buckets.locked(path))
            elif not _hold(path, stack):
                raise UserError(f"{path.parent} is in use by another process")

        distributed.on_main(lock)
        yield


@contextlib.contextmanager
def locked_in_turn(
    path: Path, waiting: Callable[[int], None] = lambda looks: None, *, each_process: bool = False
):
    """As `locked`, for a file of this host, but waits until another process lets go of it.

    The folder is made, and who holds the lock may remove it. `waiting` is called before each new
    look, by all of several processes, with how many looks there were after the first. With
    `each_process` each of several holds it for itself: for what each host has of its own.
    """
    with contextlib.ExitStack() as stack:

        def lock() -> bool:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                return _hold(path, stack)
            except FileNotFoundError:  # who was done has just removed the folder
                return False

        looks = 0
        while not (lock() if each_process else distributed.on_main(lock)):
            waiting(looks)
            looks += 1
            time.sleep(LOOKS_EVERY)
        yield


def _hold(path: Path, stack: contextlib.ExitStack) -> bool:
    """Whether a lock file is no other process's; it is then held until `stack` is closed."""
    file = open(path, "a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return False
    except OSError as error:
        file.close()
        way_out = "mount its file system with locks (Lustre: -o flock), or choose another place"
        raise UserError(f"{path} cannot be locked: {error.strerror}; {way_out}") from error
    stack.enter_context(file)
    return True


def remove(folder: Path) -> None:
    """Removes a folder and what is in it; of several processes, the first does."""
    if distributed.is_main():
        with contextlib.suppress(FileNotFoundError):
            folder.rmtree() if is_bucket(folder) else shutil.rmtree(folder)


def files_below(folder: Path) -> list[Path]:
    """All files in a folder and its subfolders, in order."""
    if is_bucket(folder):
        return list(folder.below())
    return [file for file in sorted(folder.rglob("*")) if file.is_file()]


def sha256(path: Path) -> str:
    """The checksum of a file, read a part at a time."""
    if is_bucket(path):
        digest = hashlib.sha256()
        for block in path.blocks():
            digest.update(block)
        return digest.hexdigest()
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def opened(path: Path) -> BinaryIO:
    """A file, open for reading; one in a bucket is read whole."""
    return io.BytesIO(path.read_bytes()) if is_bucket(path) else open(path, "rb")


def read_json(path: Path) -> dict:
    """The content of a JSON file. Raises UserError where it is missing, or is not JSON."""
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise UserError(f"there is no {path}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged: not JSON ({error})") from None


def read_rows(path: Path, whole: bool = False) -> list[dict]:
    """The rows of a .jsonl file; [] where there is none. A last line that was cut off is out.

    Raises UserError where another line is not JSON; with `whole`, where any line is no row.
    """
    if not path.exists():
        return []
    rows = []
    try:
        lines = path.read_text("utf-8").splitlines()
        for number, line in enumerate(lines, 1):
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                if whole or number < len(lines):
                    raise UserError(f"{path} is damaged in line {number}: not JSON") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is damaged: not JSON ({error})") from None
    if whole and not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path} has lines that are JSON, but no rows")
    return rows


def write_rows(path: Path, rows: list[dict]) -> None:
    """Replaces a .jsonl file by these rows."""
    write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows))


def read_npz(
    path: Path, file: BinaryIO | None = None, names: tuple[str, ...] | None = None
) -> dict[str, np.ndarray]:
    """Arrays of an .npz file, or of its content where `file` has that; nothing is unpickled.

    Only those of `names` that are in it, where names are given. Raises UserError where the file is
    damaged, or holds what would have to be unpickled; FileNotFoundError where there is none.
    """
    try:
        with file or opened(path) as content:
            if content.read(6) == np.lib.format.MAGIC_PREFIX:
                raise ValueError("it is an .npy, whatever its name; np.savez writes an .npz")
            if not zipfile.is_zipfile(content):
                raise ValueError("it is no zip file, or was cut off")
            content.seek(0)
            with np.load(content, allow_pickle=False) as npz:
                wanted = npz.files if names is None else [n for n in npz.files if n in names]
                return {name: _array(npz, name) for name in wanted}
    except OSError:
        raise
    except Exception as error:  # of many kinds, by where the damage is
        raise UserError(f"{path} cannot be read as .npz: {error}") from None


def _array(npz: np.lib.npyio.NpzFile, name: str) -> np.ndarray:
    """An array of an .npz; ValueError where it would have to be unpickled."""
    form = np.lib.format
    with npz.zip.open(f"{name}.npy") as file:
        old = form.read_magic(file) == (1, 0)
        dtype = (form.read_array_header_1_0 if old else form.read_array_header_2_0)(file)[2]
    if dtype.hasobject:
        raise ValueError(f"its array {name} is of Python objects, which are not read; save numbers")
    return npz[name]


def save_arrays(path: Path, arrays: dict[str, np.ndarray], made_of: dict) -> None:
    """Writes an npz of arrays of numbers, whole or not at all; its folder is made.

    `made_of` says in plain JSON values what the arrays were computed from.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    header = json.dumps({"made_of": made_of, "sha256": _digest(arrays)})
    buffer = io.BytesIO()
    np.savez(buffer, **arrays, **{HEADER: np.array(header)})
    write_atomically(path, buffer.getbuffer())


def load_arrays(path: Path) -> tuple[dict[str, np.ndarray], dict]:
    """(arrays, made_of) of a file that `save_arrays` wrote; of several processes the first reads.

    Raises UserError where the file does not match its checksum, FileNotFoundError where there is
    none.
    """
    try:
        file = io.BytesIO(distributed.on_main(path.read_bytes)) if distributed.several() else None
        arrays = read_npz(path, file)
        header = json.loads(str(arrays.pop(HEADER)))
        expected, made_of = header["sha256"], header["made_of"]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged: {error}") from None
    if _digest(arrays) != expected:
        raise UserError(f"{path} is damaged: its arrays do not match their SHA-256")
    return arrays, made_of


def _digest(arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {array.shape} ".encode())
        digest.update(array.data)
    return digest.hexdigest()
