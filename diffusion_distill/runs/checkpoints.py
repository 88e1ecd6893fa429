"""Checkpoints of one stage: Orbax writes them, SHA-256 says whether they are still what it wrote.

checkpoints/
  400/               one folder an update count
    state/           a tree of arrays each, as it was given: of a run, what training goes on from,
    ema_params/      and on their own the averaged weights, which samplers and the next round read
    meta/            the config, the stage and the seconds spent, as JSON
    sha256.json      of every file; written last, so a folder without it is unfinished. A file that
                     is not in it, which an operating system may leave, is no damage
damaged/             what no longer matched, moved here by a run that went back to an older one

Orbax 0.12 loads a file with a flipped bit without a word. So nothing is restored from here before
every file in its folder has been compared with its checksum. Of several processes each writes and
reads the parts that its devices hold; the first writes the checksums, compares them for all, and
says which step all restore.
"""

import concurrent.futures
import contextlib
import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp

from diffusion_distill.devices.distributed import from_main, is_main, on_main
from diffusion_distill.errors import BucketError, CheckpointError, UserError, reason
from diffusion_distill.storage.buckets import THREADS, is_bucket
from diffusion_distill.storage.files import files_below, remove, sha256, write_atomically

CHECKSUMS = "sha256.json"


def folder(workdir: Path, stage_name: str) -> Path:
    """Where a stage's checkpoints are, as the absolute path that Orbax asks for."""
    path = workdir.absolute() / stage_name / "checkpoints"
    if is_bucket(path):
        return path
    try:
        alike = os.fsencode(path) == str(path).encode()
    except UnicodeEncodeError:
        alike = False
    if not alike:  # TensorStore would look elsewhere, or fail
        shown = os.fsencode(path).decode(errors="backslashreplace")
        way_out = "rename it, or set PYTHONUTF8=1 where the locale is why"
        raise UserError(f"{shown}: a workdir's path must be UTF-8; {way_out}")
    return path


def steps(directory: Path) -> list[int]:
    """Update counts that have a folder, newest first, whole or not."""
    if not directory.is_dir():
        return []
    found = [int(p.name) for p in directory.iterdir() if p.name.isdigit() and p.is_dir()]
    return sorted(found, reverse=True)


def is_finished(directory: Path, step: int) -> bool:
    """Whether writing it came to its end; says nothing about damage since then."""
    return (directory / str(step) / CHECKSUMS).is_file()


@dataclasses.dataclass(frozen=True)
class WholeCheckpoint:
    """A checkpoint that was compared with its checksums: what can be restored from."""

    directory: Path
    step: int

    @property
    def path(self) -> Path:
        """Its folder."""
        return self.directory / str(self.step)

    def trees(self, abstract: dict[str, Any]) -> dict[str, Any]:
        """Trees of arrays by name; `abstract` has the ShapeDtypeStructs with shardings of each."""
        found = self._restore(**{n: ocp.args.StandardRestore(a) for n, a in abstract.items()})
        return {name: found[name] for name in abstract}

    def meta(self) -> dict:
        """What was saved as JSON with the state: config, stage, seconds."""
        return self._restore(meta=ocp.args.JsonRestore())["meta"]

    def _restore(self, **items):
        # Not CheckpointManager, which warns that it does what it was told: it only reads.
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
            return reader.restore(self.path, ocp.args.Composite(**items))


def verify(directory: Path, step: int, item: str | None = None) -> WholeCheckpoint:
    """The checkpoint of that step, every file of it, or of one item of it, read and compared.

    Raises CheckpointError, which says which file is missing or damaged.
    """
    path = directory / str(step)
    if problem := on_main(lambda: _damage(path, item)):
        raise CheckpointError(f"checkpoint {path} cannot be used: {problem}")
    return WholeCheckpoint(directory, step)


def load_ema_params(directory: Path, step: int, abstract: dict) -> dict:
    """The averaged weights, verified: nothing else of the checkpoint is read, or need be there.

    `abstract` has their ShapeDtypeStructs with shardings. Raises CheckpointError as `verify` does.
    """
    whole = verify(directory, step, "ema_params")
    return whole.trees({"ema_params": abstract})["ema_params"]


def newest_whole(directory: Path, report: Callable[[str], None]) -> WholeCheckpoint | None:
    """The newest checkpoint of which every file is as written; None where there is none.

    `report` gets one line for each newer one that is not whole.
    """

    def newest() -> int | None:
        for step in steps(directory):
            try:
                return verify(directory, step).step
            except CheckpointError as error:
                report(f"warning: {error}")
        return None

    step = on_main(newest)
    return None if step is None else WholeCheckpoint(directory, step)


@from_main
def set_aside_newer(directory: Path, whole: WholeCheckpoint | None) -> None:
    """Clears the way for a run that goes on from `whole`: newer folders cannot be written again.

    Unfinished ones are removed; damaged ones are moved to `damaged/` beside.
    """
    for step in steps(directory):
        if whole is not None and step <= whole.step:
            continue
        path = directory / str(step)
        if not is_finished(directory, step):
            remove(path)
            continue
        aside = directory.parent / "damaged"
        aside.mkdir(exist_ok=True)
        there = aside.iterdir() if aside.is_dir() else ()
        count = sum(p.name.startswith(f"{step}-") for p in there)
        path.rename(aside / f"{step}-{count}")


class Writer:
    """Saves a stage's checkpoints while training goes on, one at a time; keeps the newest `kept`.

    Each method raises CheckpointError where the checkpoint that is being written cannot be.
    """

    def __init__(self, directory: Path, kept: int):
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        options = ocp.CheckpointManagerOptions(max_to_keep=kept, cleanup_tmp_directories=True)
        self._manager = ocp.CheckpointManager(directory, options=options)
        # JAX counts the looks at whether to stop; Orbax's own would upset those of training.
        self._manager.reached_preemption = lambda step: False
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "checksums")
        self._pending: concurrent.futures.Future | None = None
        self._step: int | None = None  # of the newest save

    def save(self, step: int, trees: dict[str, Any], meta: dict) -> None:
        """Starts to write trees of arrays, by name, and `meta`, plain JSON values.

        Waits for the one before; returns once the arrays have been copied.
        """
        self.wait()
        self._step = step
        items = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
        with self._explained():
            args = ocp.args.Composite(**items, meta=ocp.args.JsonSave(meta))
            self._manager.save(step, args=args, force=True)
        self._pending = self._thread.submit(self._finish, step)

    @contextlib.contextmanager
    def _explained(self):
        """Turns what Orbax raises, of many kinds and lines, into one line: a full disk, mostly."""
        try:
            yield
        except Exception as error:
            what = f"checkpoint {self._directory / str(self._step)}"
            raise CheckpointError(f"{what} could not be written: {reason(error)}") from error

    def _finish(self, step: int) -> None:
        self._manager.wait_until_finished()
        if not is_main():
            return
        path = self._directory / str(step)
        checksums = _checksums(path, path, _is_written)
        write_atomically(path / CHECKSUMS, json.dumps(checksums, indent=1))

    def check(self) -> None:
        """As `wait`, but raises only what is known by now; never waits."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Waits for the checkpoint that is being written, checksums included."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            with self._explained():
                pending.result()

    def close(self) -> None:
        """Waits, and lets go of the folder."""
        try:
            self.wait()
            with self._explained():
                self._manager.close()
        except CheckpointError:
            with contextlib.suppress(Exception):  # Orbax raises a failed write once more
                self._manager.close()
            raise
        finally:
            self._thread.shutdown()


def _damage(path: Path, item: str | None) -> str | None:
    """What is wrong with a checkpoint or an item of it; None where each file is as written."""
    below = path / item if item else path
    try:
        checksums = json.loads((path / CHECKSUMS).read_text())
        expected = {n: c for n, c in checksums.items() if (path / n).is_relative_to(below)}
        found = _checksums(path, below, expected.__contains__)
    except BucketError:  # it cannot be reached, which says nothing of what is in it
        raise
    except FileNotFoundError:
        return f"it has no {CHECKSUMS}: writing it was cut off"
    except (ValueError, AttributeError):
        return f"{CHECKSUMS} is not what was written"
    except OSError as error:
        return f"{error.filename} cannot be read: {error.strerror}"
    for name in sorted(expected):
        if name not in found:
            return f"{name} is missing"
        if found[name] != expected[name]:
            return f"{name} does not match its SHA-256"
    return None if expected else f"{item} is not in {CHECKSUMS}"


def _checksums(path: Path, below: Path, wanted: Callable[[str], bool]) -> dict[str, str]:
    """SHA-256 of the wanted files under `below`, by their names relative to path."""
    named = ((file.relative_to(path).as_posix(), file) for file in files_below(below))
    files = {name: file for name, file in named if wanted(name)}
    with concurrent.futures.ThreadPoolExecutor(THREADS, "checksums") as pool:
        return dict(zip(files, pool.map(sha256, files.values()), strict=True))


def _is_written(name: str) -> bool:
    """Whether a file was written with a checkpoint: Orbax has no hidden ones, but systems do."""
    return name != CHECKSUMS and not name.rpartition("/")[2].startswith(".")
