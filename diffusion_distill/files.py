"""Small files of a workdir: written whole or not at all, whenever the program is stopped."""

import contextlib
import fcntl
import json
import os
import shutil
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from diffusion_distill import distributed
from diffusion_distill.errors import UserError


def write_atomically(path: Path, content: str | bytes | memoryview) -> None:
    """Writes a file so that readers, and a restart, see the old content or the new, not a part.

    Of several processes only the first writes.
    """
    if not distributed.is_main():
        return
    temporary = path.with_name(f".{path.name}.tmp")
    data = content.encode() if isinstance(content, str) else content
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def locked(path: Path):
    """Holds the lock file at `path` for the time of a `with`; it goes with the process.

    Of several processes that work as one, the first holds it for all.

    Raises:
        UserError: another process holds it.
    """
    with contextlib.ExitStack() as stack:

        def lock() -> None:
            file = stack.enter_context(open(path, "a"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"{path.parent} is in use by another process") from None

        distributed.on_main(lock)
        yield


def remove(folder: Path) -> None:
    """Removes a folder and what is in it; of several processes, the first does."""
    if distributed.is_main():
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(folder)


def read_json(path: Path) -> dict:
    """The content of a JSON file.

    Raises:
        UserError: the file is missing, or is not JSON.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"there is no {path}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged: not JSON ({error})") from None


def read_rows(path: Path) -> list[dict]:
    """The rows of a .jsonl file; [] where there is none. A last line that was cut off is out."""
    if not path.exists():
        return []
    lines = path.read_text().splitlines()
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            if number < len(lines):
                raise UserError(f"{path} is damaged in line {number}: not JSON") from None
    return rows


def write_rows(path: Path, rows: list[dict]) -> None:
    """Replaces a .jsonl file by these rows."""
    write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows))


# What NumPy and zipfile raise for a damaged .npz, each for damage in another place.
_DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    NotImplementedError,
    RuntimeError,
)


def read_npz(
    path: Path, file: BinaryIO | None = None, names: tuple[str, ...] | None = None
) -> dict[str, np.ndarray]:
    """Arrays of an .npz file; nothing is unpickled.

    Args:
        path: of the file.
        file: its content, where that is at hand.
        names: of the arrays to read; None for all. Those that are not in the file are left out.

    Raises:
        UserError: the file is damaged, or holds what would have to be unpickled.
        FileNotFoundError: there is none.
    """
    try:
        with np.load(path if file is None else file, allow_pickle=False) as npz:
            wanted = npz.files if names is None else [n for n in npz.files if n in names]
            return {name: npz[name] for name in wanted}
    except _DAMAGED as error:
        raise UserError(f"{path} cannot be read as .npz: {error}") from None
