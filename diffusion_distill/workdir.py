"""The folder of a run: what is in it, and whether it is ours to write to.

workdir/
  config.json      the config, and the shape of the data
  results.jsonl    a row for each stage that was trained and measured
  results.txt      the table of them
  teacher/         checkpoints/ metrics.jsonl tensorboard/ samples.png
  student_0016/    ...
"""

import dataclasses
import json
import shutil
from pathlib import Path

import ml_collections

from diffusion_distill import config as configs
from diffusion_distill.errors import UserError
from diffusion_distill.files import locked, read_json, read_rows, write_atomically, write_rows
from diffusion_distill.training import checkpoints
from diffusion_distill.training.stages import Stage


@dataclasses.dataclass(frozen=True)
class Workdir:
    """A run's folder.

    Attributes:
        path: the folder.
        config: the run's config, as this start wants it.
        image_shape: (H, W, C) of the run's images.
        num_classes: labels of the run's data; 0 for none.
    """

    path: Path
    config: ml_collections.ConfigDict
    image_shape: tuple[int, int, int]
    num_classes: int

    @classmethod
    def open(cls, path: str | Path) -> "Workdir":
        """The run that is in `path`.

        Raises:
            UserError: there is none, or its config.json is damaged or of another version.
        """
        path = Path(path)
        if not path.is_dir():
            raise UserError(f"there is no workdir {path}")
        if not (path / "config.json").exists():
            raise UserError(f"{path} is not the workdir of a run: it has no config.json")
        fields = read_json(path / "config.json")
        try:
            config = configs.from_dict(fields["config"])
            return cls(path, config, tuple(fields["image_shape"]), fields["num_classes"])
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path / 'config.json'} is damaged: {error!r}") from None
        except UserError as error:
            raise UserError(f"{path / 'config.json'}: {error}") from None

    @classmethod
    def create_or_continue(
        cls,
        path: str | Path,
        config: ml_collections.ConfigDict,
        image_shape: tuple[int, int, int],
        num_classes: int,
    ) -> "Workdir":
        """The run of this config in `path`: a new one, or the one that is there already.

        Raises:
            UserError: another config's run is there, or other files; names the fields that differ.
            OSError: the folder cannot be written to.
        """
        path = Path(path)
        run = cls(path, config, tuple(image_shape), num_classes)
        if (path / "config.json").exists():
            lines = configs.differences(_fields(cls.open(path)), _fields(run))
            if lines:
                raise UserError(
                    f"{path} holds a run of another config: {'; '.join(lines)}. Choose another "
                    "--workdir, or the config that it was started with"
                )
        elif path.is_dir() and any(not p.name.startswith(".") for p in path.iterdir()):
            raise UserError(f"{path} has files but no config.json: it is not the workdir of a run")
        path.mkdir(parents=True, exist_ok=True)
        write_atomically(path / "config.json", json.dumps(_fields(run), indent=1) + "\n")
        return run

    def check_space(self, stage: Stage, state_bytes: int) -> None:
        """Raises UserError where the disk cannot hold the checkpoints that a stage still writes."""
        directory = checkpoints.folder(self.path, stage.name)
        there = sum(p.stat().st_size for p in directory.rglob("*") if p.is_file())
        needed = (self.config.train.checkpoints_kept + 1) * state_bytes - there
        free = shutil.disk_usage(self.path).free
        if free < needed:
            raise UserError(
                f"{self.path} has {free / 1e6:,.0f} MB free; the checkpoints of {stage.name} need "
                f"{needed / 1e6:,.0f} MB"
            )

    def is_finished(self, stage: Stage) -> bool:
        """Whether the stage made all its updates; says nothing about damage since then."""
        return checkpoints.is_finished(checkpoints.folder(self.path, stage.name), stage.updates)

    def results(self) -> list[dict]:
        """The rows of results.jsonl, one for each stage that was measured, in order."""
        return read_rows(self.path / "results.jsonl")

    def add_result(self, row: dict) -> None:
        """Adds a row to results.jsonl."""
        write_rows(self.path / "results.jsonl", [*self.results(), row])

    def lock(self):
        """A `with` for as long as something writes here; UserError where another process does."""
        return locked(self.path / ".lock")


def _fields(run: Workdir) -> dict:
    return {
        "config": configs.to_dict(run.config),
        "image_shape": list(run.image_shape),
        "num_classes": run.num_classes,
    }
