"""A run as its files tell it: what is there, and what is missing or damaged.

Nothing that is in a file is taken to be what it should be: a file that was damaged, or written by
another version, costs what it would have shown, and is named among the problems.
"""

import dataclasses
import math
from pathlib import Path

import numpy as np

from diffusion_distill.errors import UserError
from diffusion_distill.runs.workdir import existing
from diffusion_distill.storage.files import read_json, read_npz, read_rows

CURVES = ("loss", "grad_norm", "learning_rate")

_ROW = {"stage": str, "num_steps": int, "updates": int, "images_seen": int, "seconds": float}


@dataclasses.dataclass(frozen=True)
class StageFiles:
    """One stage of a run."""

    name: str  # "teacher", "student_0016"
    num_steps: int  # sampling steps it is made for
    updates: int  # that it makes in all; 0 for a teacher that was trained elsewhere
    row: dict | None  # of results.jsonl; None where it is not measured yet
    # Float arrays of one length, "step" and those of CURVES; empty where nothing is logged yet.
    curves: dict[str, np.ndarray]
    samples: dict[str, np.ndarray] | None  # arrays of samples.npz; None where there is none

    @property
    def is_teacher(self) -> bool:
        """Whether it is the first, whose steps are those that distillation starts from."""
        return self.name == "teacher"

    @property
    def step(self) -> int:
        """Updates that are logged as made."""
        made = self.row["updates"] if self.row else 0
        return max(made, int(self.curves["step"].max(initial=0)))


@dataclasses.dataclass(frozen=True)
class RunFiles:
    """One workdir."""

    path: Path
    config: dict  # sections and fields, as in config.json; {} where that cannot be read
    image_shape: tuple[int, int, int] | None  # (H, W, C) of its images; None for not known
    teacher_is_student: bool  # whether its teacher is made for one number of steps
    stages: list[StageFiles]  # that it runs, in order
    # rows of evaluations.jsonl: what was measured later; less those that give a metric of the
    # results against other images
    evaluations: list[dict]
    real: dict[str, np.ndarray] | None  # arrays of real.npz; None where there is none
    problems: list[str]  # sentences, each on something missing or damaged

    @property
    def results(self) -> list[dict]:
        """The rows of results.jsonl that can be used, one for each measured stage."""
        return [stage.row for stage in self.stages if stage.row is not None]

    def value(self, field: str, default=None):
        """A field of the config by its path, "train.batch_size"; the default where it is not."""
        found = self.config
        for name in field.split("."):
            found = found.get(name) if isinstance(found, dict) else None
        return default if found is None else found


def read_run(path: str | Path) -> RunFiles:
    """The run in a workdir; UserError where there is none, or no run has written to it."""
    path = existing(path, ("config.json", "results.jsonl"))
    reader = _Reader(path, [])
    fields = reader.json("config.json")
    config = fields.get("config")
    rows = {row["stage"]: row for row in reader.rows("results.jsonl", _ROW, needed=False)}
    stages = [reader.stage(*stage, rows.get(stage[0])) for stage in reader.plan(rows)]
    unknown = rows.keys() - {stage.name for stage in stages}
    reader.problems.extend(f"results.jsonl has {n}, which is no stage of the run" for n in unknown)
    real = reader.npz("real.npz", set()) if rows else None
    evaluations = reader.rows("evaluations.jsonl", {"stage": str, "num_steps": int}, False)
    return RunFiles(
        path=path,
        config=config if isinstance(config, dict) else {},
        image_shape=_shape(fields.get("image_shape")),
        teacher_is_student=bool(fields.get("teacher_num_steps")),
        stages=stages,
        evaluations=reader.comparable(evaluations, [*rows.values()]),
        real=real,
        problems=reader.problems,
    )


@dataclasses.dataclass(frozen=True)
class _Reader:
    """Reads files of a workdir, and takes down what is wrong with them."""

    path: Path
    problems: list[str]

    def _lost(self, error: Exception) -> None:
        # The page says which workdir it is of: paths in it are from there.
        self.problems.append(str(error).replace(f"{self.path}/", ""))

    def json(self, name: str) -> dict:
        try:
            found = read_json(self.path / name)
            if isinstance(found, dict):
                return found
            self.problems.append(f"{name} is damaged: it is no JSON object")
        except (UserError, OSError) as error:
            self._lost(error)
        return {}

    def rows(self, name: str, kinds: dict[str, type], needed: bool = True) -> list[dict]:
        """The rows that have these fields; what is wrong with the others is taken down."""
        path = self.path / name
        if not path.exists():
            if needed:
                self.problems.append(f"there is no {name}")
            return []
        try:
            rows = read_rows(path)
        except (UserError, UnicodeDecodeError, OSError) as error:
            self._lost(error)
            return []
        good = [row for row in rows if _has(row, kinds)]
        if bad := len(rows) - len(good):
            lack = f"{bad} of its {len(rows)} rows lack one of {', '.join(kinds)}"
            self.problems.append(f"{name} is damaged: {lack}")
        return good

    def comparable(self, evaluations: list[dict], results: list[dict]) -> list[dict]:
        """The evaluations, less those that give a metric of the results against other images."""
        names = {name for row in results for name in metrics_of(row)}
        known = references_of(results)
        kept = []
        for row in evaluations:
            found = references_of([row])
            if names.isdisjoint(metrics_of(row)) or found <= known or not differ(known | found):
                kept.append(row)
        if others := len(evaluations) - len(kept):
            why = f"other images than results.jsonl: {others} of its rows are left out"
            self.problems.append(f"evaluations.jsonl compares with {why}")
        return kept

    def npz(self, name: str, needed: set[str]) -> dict[str, np.ndarray] | None:
        """The arrays of an .npz with images, or None."""
        try:
            arrays = read_npz(self.path / name)
        except FileNotFoundError:
            self.problems.append(f"there is no {name}")
            return None
        except (UserError, OSError) as error:
            self._lost(error)
            return None
        images = arrays.get("images", np.empty(0))
        is_images = images.dtype == np.uint8 and images.ndim == 4 and images.size
        if not is_images or images.shape[-1] not in (1, 3) or not needed <= arrays.keys():
            self.problems.append(f"{name} is damaged: it lacks what it should hold")
            return None
        return arrays

    def plan(self, rows: dict[str, dict]) -> list[tuple[str, int, int]]:
        """(name, steps, updates) of each stage, from stages.jsonl, else from the results."""
        kinds = {"name": str, "num_steps": int, "updates": int}
        stages = [tuple(row[k] for k in kinds) for row in self.rows("stages.jsonl", kinds)]
        if not stages:
            self.problems.append("stages that are not measured yet are not known")
            stages = [(r["stage"], r["num_steps"], r["updates"]) for r in rows.values()]
        return [s for s in stages if Path(s[0]).name == s[0]]  # no name leads out of the workdir

    def stage(self, name: str, num_steps: int, updates: int, row: dict | None) -> StageFiles:
        logged = f"{name}/metrics.jsonl"
        rows = self.rows(logged, {"step": int}, needed=row is not None and updates > 0)
        names = ("step", *CURVES)
        curves = {field: np.array([_number(r.get(field)) for r in rows]) for field in names}
        kept = {"distances", "nearest"}
        samples = None if row is None else self.npz(f"{name}/samples.npz", kept)
        return StageFiles(name, num_steps, updates, row, curves, samples)


def _has(row, kinds: dict[str, type]) -> bool:
    """Whether a row has these fields, and no number in them is negative."""
    return isinstance(row, dict) and all(
        _is(row.get(name), kind) and (kind is str or row[name] >= 0) for name, kind in kinds.items()
    )


def _is(value, kind: type) -> bool:
    if kind is float:
        return is_number(value)
    return isinstance(value, kind) and not isinstance(value, bool)


def is_number(value) -> bool:
    """Whether a value from JSON is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def metrics_of(row: dict) -> list[str]:
    """Names of what a row of results or evaluations measured."""
    names = row.get("metrics", [row.get("metric")])
    return [n for n in names if isinstance(n, str)] if isinstance(names, list) else []


def references_of(rows: list[dict]) -> set[str]:
    """What tells the images that rows compare with from any others, where rows say it."""
    made_of = [row.get("reference") for row in rows]
    found = [of.get("statistics", of.get("fingerprint")) for of in made_of if isinstance(of, dict)]
    return {value for value in found if isinstance(value, str)}


def differ(references: set[str]) -> bool:
    """Whether these tell of different images: two fingerprints "KIND-SHA256" of one kind do."""
    kinds = [reference.rpartition("-")[0] for reference in references]
    return len(set(kinds)) < len(kinds)


def _number(value) -> float:
    return float(value) if is_number(value) else math.nan


def _shape(value) -> tuple[int, int, int] | None:
    if isinstance(value, list) and len(value) == 3 and all(_is(n, int) for n in value):
        return tuple(value)
    return None
