"""The folder of a run: what is in it, and whether it is ours to write to.

workdir/          a folder, or one in a bucket: gs://bucket/folder
  config.json      the config, the shape of the data, and what tells its images from others
  stages.jsonl     a row for each stage that the config asks for, in order
  results.jsonl    a row for each stage that was trained and measured
  results.txt      the table of them
  real.npz         images of the data
  report.html      all of it as one page; report/ has its plots
  evaluations.jsonl  a row for each thing that `evaluate` measured; evaluating/ while it does
  teacher/         checkpoints/ metrics.jsonl tensorboard/ samples.png samples.npz; damaged/ has
                   what was set aside
  student_0016/    ...
"""

import contextlib
import dataclasses
import json
import shutil
from pathlib import Path

from ml_collections import ConfigDict

from diffusion_distill.config import differences, to_dict
from diffusion_distill.devices.distributed import from_main
from diffusion_distill.errors import CheckpointError, UserError
from diffusion_distill.runs import checkpoints
from diffusion_distill.stages import Stage, plan, student_config
from diffusion_distill.storage import files
from diffusion_distill.storage.buckets import as_path, is_bucket
from diffusion_distill.terminal.console import say
from diffusion_distill.validate import from_dict


def existing(path: str | Path, names: tuple[str, ...] = ("config.json",)) -> Path:
    """The path of a workdir that a run has written to: a file of one of these names is there.

    Raises UserError where there is no such folder, or none of the files in it.
    """
    path = as_path(path)
    if not path.is_dir():
        raise UserError(f"there is no workdir {path}")
    if not any((path / name).exists() for name in names):
        raise UserError(f"{path} is not the workdir of a run: it has no config.json")
    return path


@dataclasses.dataclass(frozen=True)
class Workdir:
    """A run's folder."""

    path: Path
    config: ConfigDict  # as this start wants it
    image_shape: tuple[int, int, int]  # (H, W, C) of the run's images
    num_classes: int  # labels that the run's network knows; 0 for none
    # The only number of sampling steps that its teacher takes, where config.distill.teacher names
    # a student; None for a teacher that takes any.
    teacher_fixed_steps: int | None = None
    # Fields of its teacher's network, where config.distill.teacher names another than the run
    # trains: of `describe`; None where it is the run's.
    teacher_network: dict | None = None
    # What tells the images that are trained on ("training"), and those that are compared with
    # ("reference"), from any others; {} for not known, as in runs of older versions.
    data: dict[str, dict] = dataclasses.field(default_factory=dict)

    @classmethod
    def open(cls, path: str | Path) -> "Workdir":
        """The run that is in `path`.

        Raises UserError where there is none, or its config.json is damaged or of another version.
        """
        path = existing(path)
        fields = files.read_json(path / "config.json")
        try:
            config, shape = from_dict(fields["config"]), tuple(fields["image_shape"])
            teacher_fixed_steps = fields["teacher_num_steps"] or None
            others = fields["num_classes"], teacher_fixed_steps, fields.get("teacher_network")
            data = {what: dict(**found) for what, found in fields.get("data", {}).items()}
            run = cls(path, config, shape, *others, data)
            with_network(config, run.teacher_network)  # can be made
            return run
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path / 'config.json'} is damaged: {error!r}") from None
        except UserError as error:
            raise UserError(f"{path / 'config.json'}: {error}") from None

    @from_main
    def check(self) -> None:
        """Raises UserError where another run, or other files, are in `path`. Writes nothing."""
        path = self.path
        checkpoints.folder(path, "teacher")  # has a name that checkpoints can have
        if (path / "config.json").exists():
            here = Workdir.open(path)
            old, new = _fields(here), _fields(self)
            if here.config.eval.reference and self.config.eval.reference:  # told by content below
                old["config"]["eval"]["reference"] = self.config.eval.reference
            if lines := differences(old | {"data": {}}, new | {"data": {}}):
                way_out = "Choose another --workdir, or the config that it was started with"
                raise UserError(
                    f"{path} holds a run of another config: {'; '.join(lines)}. {way_out}"
                )
            here.check_data(self.data)
        elif path.is_dir() and any(not p.name.startswith(".") for p in path.iterdir()):
            raise UserError(f"{path} has files but no config.json: it is not the workdir of a run")

    def check_data(self, data: dict[str, dict]) -> None:
        """Raises UserError where these are not the images of the run in `path`; for `data` see it.

        Only what is known of both is compared.
        """
        for what, kept in self.known_data().items():
            found = data.get(what, {})
            lines = [
                f"{name}: {_short(kept[name])} -> {_short(found[name])}"
                for name in kept
                if name in found and kept[name] != found[name]
            ]
            if lines:
                field = "eval.reference" if "statistics" in found else "data.path"
                raise UserError(
                    f"{self.path} began with other {what} images than are there now: "
                    f"{'; '.join(lines)}. Let config.{field} name those, or choose another "
                    '--workdir; where you know that they are the same, remove "data" from its '
                    "config.json"
                )

    def known_data(self) -> dict[str, dict]:
        """`data`; of a run of an older version, what its results say of their reference."""
        if self.data:
            return self.data
        made_of = next((row.get("reference") for row in self.results()), None)
        found = made_of if isinstance(made_of, dict) else {}
        names = {"split", "count", "image_shape", "statistics"} & found.keys()
        return {"reference": {name: found[name] for name in sorted(names)}}

    @from_main
    def begin(self) -> None:
        """Makes the folder, and notes in it what the run is. Raises UserError as `check` does."""
        self.check()
        self.path.mkdir(parents=True, exist_ok=True)
        fields, path = _fields(self), self.path / "config.json"
        if path.exists():
            fields["data"] = Workdir.open(self.path).data | self.data
        files.write_atomically(path, json.dumps(fields, indent=1) + "\n")
        files.write_rows(self.path / "stages.jsonl", [vars(stage) for stage in plan(self.config)])

    @from_main
    def check_space(self, stage: Stage, state_bytes: int) -> None:
        """Raises UserError where the disk cannot hold the checkpoints that a stage still writes.

        A bucket has no end.
        """
        if is_bucket(self.path):
            return
        directory = checkpoints.folder(self.path, stage.name)
        there = sum(p.stat().st_size for p in directory.rglob("*") if p.is_file())
        needed = (self.config.train.checkpoints_kept + 1) * state_bytes - there
        free = shutil.disk_usage(self.path).free
        if free < needed:
            need = f"the checkpoints of {stage.name} need {needed / 1e6:,.0f} MB"
            raise UserError(f"{self.path} has {free / 1e6:,.0f} MB free; {need}")

    @from_main
    def is_finished(self, stage: Stage) -> bool:
        """Whether the stage made all its updates; says nothing about damage since then."""
        directory = checkpoints.folder(self.path, stage.name)
        return checkpoints.is_finished(directory, stage.updates)

    def is_settled(self, stage: Stage) -> bool:
        """Whether a measured stage is done with: it has no damage that can be mended.

        A last checkpoint that somebody removed stays removed: training it anew may take days.
        """
        if not self.is_finished(stage):
            say(f"{stage.name}: measured; its last checkpoint is gone, and is not made again")
            return True
        try:
            directory = checkpoints.folder(self.path, stage.name)
            checkpoints.verify(directory, stage.updates, "ema_params")
        except CheckpointError:
            return False
        return True

    def fixed_steps(self, stage: Stage) -> int | None:
        """The only number of sampling steps that a stage's network takes; None for any."""
        return self.teacher_fixed_steps if stage.knows_all_times else stage.num_steps

    def network_config(self, stage: Stage) -> ConfigDict:
        """The run's config, with the fields of the network that a stage has."""
        if stage.has_teacher:
            return student_config(self.config)
        return with_network(self.config, self.teacher_network)

    def finished_stage(self, num_steps: int | None = None, name: str | None = None) -> Stage:
        """The finished stage of that number of steps, or of that name; the last one for None.

        A stage that knows all times, asked for by its name, may have any num_steps. Raises
        UserError where there is no such stage, or it is not finished.
        """
        stages = plan(self.config)
        finished = [s for s in stages if self.is_finished(s)]
        there = ", ".join(f"{s.name} ({s.num_steps} steps)" for s in finished) or "none"
        if num_steps is not None and num_steps < 1:
            raise UserError(f"num_steps is {num_steps}; it must be at least 1")
        if name is None and num_steps is None:
            if not finished:
                raise UserError(f"{self.path} has no finished stage yet")
            return finished[-1]
        matches = [s for s in stages if name in (None, s.name) and num_steps in (None, s.num_steps)]
        if name is not None and not matches:
            matches = [s for s in stages if s.name == name and self.fixed_steps(s) is None]
        if not matches:
            asked = f"named {name}" if name else ""
            asked += f" of {num_steps} steps" if num_steps is not None else ""
            raise UserError(f"{self.path} has no stage {asked.strip()}; finished stages: {there}")
        if matches[0] not in finished:
            name = f"{matches[0].name} in {self.path}"
            raise UserError(f"{name} is not finished; finished stages: {there}")
        return matches[0]

    def put_teacher(self, params: dict) -> bool:
        """Makes weights that were trained elsewhere the finished stage "teacher"; the lock is held.

        Leaves a whole copy that is there already as it is, and returns False; sets a damaged one
        aside. Raises CheckpointError where they could not be written.
        """
        stage = plan(self.config)[0]
        directory = checkpoints.folder(self.path, stage.name)
        with contextlib.suppress(CheckpointError):
            checkpoints.verify(directory, stage.updates)
            return False
        checkpoints.set_aside_newer(directory, None)
        with contextlib.closing(checkpoints.Writer(directory, kept=1)) as writer:
            meta = {"config": to_dict(self.config), "stage": vars(stage), "seconds": 0.0}
            writer.save(0, {"ema_params": params}, meta)
        return True

    @from_main
    def results(self) -> list[dict]:
        """The rows of results.jsonl, one for each stage that was measured, in order."""
        return files.read_rows(self.path / "results.jsonl")

    def add_result(self, row: dict) -> None:
        """Adds a row to results.jsonl."""
        files.write_rows(self.path / "results.jsonl", [*self.results(), row])

    def lock(self):
        """A `with` for as long as something writes here; UserError where another process does."""
        return files.locked(self.path / ".lock")


def _fields(run: Workdir) -> dict:
    other = {"teacher_network": run.teacher_network} if run.teacher_network else {}
    return {
        "config": to_dict(run.config),
        "image_shape": list(run.image_shape),
        "num_classes": run.num_classes,
        "teacher_num_steps": run.teacher_fixed_steps or 0,
        **other,
        "data": run.data,
    }


def _short(value) -> str:
    """A value of `Workdir.data` as a message shows it: of a checksum, enough to tell it."""
    return value[:12] if isinstance(value, str) else str(value)


def describe(config: ConfigDict) -> dict:
    """The fields of a config that say what a network is, as plain JSON values."""
    fields = to_dict(config)
    taught = {"label_dropout": fields["teacher"]["label_dropout"]}
    sections = ["model", "diffusion"]
    if config.model.architecture == "unet2d":
        sections += ["unet2d", "scheduler"]
    return {name: fields[name] for name in sections} | {"teacher": taught}


def with_network(config: ConfigDict, network: dict | None) -> ConfigDict:
    """A config with another network's fields, of `describe`; None for its own. Raises UserError."""
    if network is None:
        return config
    fields = to_dict(config)
    taught = fields["teacher"] | network["teacher"]
    return from_dict(fields | network | {"teacher": taught})
