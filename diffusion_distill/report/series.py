"""The numbers behind the plots, from what a run wrote."""

import contextlib
import dataclasses
from pathlib import Path

import numpy as np

from diffusion_distill.metrics.names import kind
from diffusion_distill.paper import DATASETS, Dataset
from diffusion_distill.report.run import CURVES, RunFiles, StageFiles, is_number, metrics_of

BINS = 400  # points of a curve at most: a line of more is not seen


@dataclasses.dataclass(frozen=True)
class Point:
    """A number of sampling steps, measured once or with several seeds."""

    num_steps: int
    mean: float  # over the seeds
    std: float | None = None  # of a sample: over n - 1; None for one seed
    seeds: int = 1  # how many


@dataclasses.dataclass(frozen=True)
class Series:
    """One line of the plot of distance against steps."""

    sampler: str  # by its name in the config
    distilled: bool  # each point is of the stage made for its steps, not of the undistilled teacher
    points: tuple[Point, ...]  # by steps, each number once


PAPER_METRIC = "fid50k_train"  # what the paper reports, by its name here


def benchmark(run: RunFiles) -> Dataset | None:
    """Which of the paper's data sets a run's data is; None for any other data.

    A prepared set is known by the name of its folder.
    """
    name = run.value("data.name")
    if name == "prepared":
        name = Path(str(run.value("data.path", ""))).name
    known = DATASETS.get(name) if isinstance(name, str) else None
    return known if known and run.image_shape == known.image_shape else None


def paper_series(run: RunFiles, metric: str) -> list[Series]:
    """What the paper reports where a run has measured the same; [] elsewhere."""
    known = benchmark(run)
    if known is None or not known.students_fid or metric != PAPER_METRIC:
        return []
    return [
        Series("ddim", distilled, tuple(Point(n, fid[n]) for n in sorted(fid)))
        for distilled, fid in ((True, known.students_fid), (False, known.teacher_fid))
    ]


def distances(run: RunFiles) -> dict[str, list[Series]]:
    """metric -> its lines: first the students', then the undistilled teacher's by its samplers.

    From results.jsonl and evaluations.jsonl together; what differs in the seed alone is one point.
    """
    found = {}  # metric -> (not distilled, not DDIM, sampler) -> steps -> seed -> value

    def add(metric, stage, sampler, num_steps, seed, value):
        usable = is_number(value) and isinstance(num_steps, int) and num_steps >= 1
        if isinstance(metric, str) and isinstance(sampler, str) and usable:
            undistilled = stage == "teacher" and not run.teacher_is_student
            lines = found.setdefault(metric, {})
            seeds = lines.setdefault((undistilled, sampler != "ddim", sampler), {})
            seeds.setdefault(num_steps, {})[str(seed)] = float(value)

    for row in run.results:
        stage, seed = row["stage"], row.get("seed")
        for metric in metrics_of(row):
            add(metric, stage, "ddim", row.get("measured_steps"), seed, row.get(metric))
        of = row.get("baseline_metric", row.get("metric"))
        for sampler, values in _items(row.get("baselines")):
            for num_steps, value in _items(values):
                if num_steps.isdecimal():
                    add(of, stage, sampler, int(num_steps), seed, value)
    stages = {stage.name for stage in run.stages}
    for row in run.evaluations:
        if row["stage"] in stages and not row.get("guidance"):
            for metric in metrics_of(row):
                asked = row["stage"], row.get("sampler"), row["num_steps"], row.get("seed")
                add(metric, *asked, row.get(metric))
    return {
        metric: [
            Series(sampler, not undistilled, tuple(_point(n, by[n]) for n in sorted(by)))
            for (undistilled, _, sampler), by in sorted(lines.items())
        ]
        for metric, lines in found.items()
    }


def guided(run: RunFiles) -> dict[str, dict[str, dict[float, float]]]:
    """metric -> "student, 4 steps" -> w -> value: what was measured of stages at several w.

    From results.jsonl and evaluations.jsonl together. Metrics are the first of the run, and label
    agreement or Inception Score where there is one.
    """
    found = {}

    def add(row, num_steps, w, values):
        names = metrics_of(row)
        shown = [row.get("metric") or next(iter(names), None), "label_agreement"]
        shown += [name for name in names if kind(name) == "is"]
        for metric in shown:
            if is_number(values.get(metric)) and is_number(w) and isinstance(num_steps, int):
                who = "teacher" if row["stage"] == "teacher" else "student"
                lines = found.setdefault(metric, {})
                lines.setdefault(f"{who}, {num_steps} steps", {})[float(w)] = values[metric]

    for row in run.results:
        for w, values in _items(row.get("guidance")):
            with contextlib.suppress(ValueError):
                add(row, row.get("measured_steps"), float(w), dict(_items(values)))
    for row in run.evaluations:
        add(row, row["num_steps"], row.get("guidance"), row)
    return {m: lines for m, lines in found.items() if any(len(by) > 1 for by in lines.values())}


def plotted_metrics(runs: list[RunFiles]) -> list[str]:
    """What the headline plots show: the first metric of each run, and that of its baselines."""
    rows = [row for run in runs for row in run.results]
    names = [row.get(what) for row in rows for what in ("metric", "baseline_metric")]
    return [name for name in dict.fromkeys(names) if isinstance(name, str)]


def chain_curves(run: RunFiles) -> tuple[dict[str, list[tuple]], list[tuple[str, int, int]]]:
    """Curves over the whole chain, and the stages that they cross.

    Returns:
        For each of CURVES, (x, mean, low, high) of each stage that has any: float arrays [K] of
            updates since the chain began, and of the mean, least and most of what was logged
            around there. And (name, first update, last update) of all stages.
    """
    borders, end = [], 0
    for stage in run.stages:
        borders.append((stage.name, end, end + stage.updates))
        end += stage.updates
    width = max(end / BINS, 1.0)
    curves = {name: [] for name in CURVES}
    for stage, (_, begin, _) in zip(run.stages, borders, strict=True):
        steps = stage.curves["step"]
        for name in CURVES:
            values = stage.curves[name]
            known = np.isfinite(values) & np.isfinite(steps)
            if known.any():
                curves[name].append(_binned(begin + steps[known], values[known], width))
    return curves, borders


@dataclasses.dataclass(frozen=True)
class Spent:
    """What was spent on training one stage, so far."""

    stage: StageFiles
    seconds: float | None  # None while they are not known
    images: int  # seen in training
    finished: bool  # whether that is all


def spent(run: RunFiles) -> list[Spent]:
    """What was spent on each stage that has begun, in order."""
    batch_size = run.value("train.batch_size", 0)
    found = []
    for stage in run.stages:
        if stage.row is not None:
            found.append(Spent(stage, float(stage.row["seconds"]), stage.row["images_seen"], True))
        elif stage.step:
            images = stage.step * (batch_size if isinstance(batch_size, int) else 0)
            found.append(Spent(stage, None, images, False))
    return found


def _point(num_steps: int, by_seed: dict[str, float]) -> Point:
    values = list(by_seed.values())
    std = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return Point(num_steps, float(np.mean(values)), std, len(values))


def _items(value) -> list[tuple]:
    return list(value.items()) if isinstance(value, dict) else []


def _binned(x: np.ndarray, y: np.ndarray, width: float) -> tuple[np.ndarray, ...]:
    bins = np.floor(x / width).astype(int)
    starts = np.flatnonzero(np.diff(bins, prepend=bins[0] - 1))
    counts = np.diff(np.append(starts, len(x)))
    mean_x, mean_y = (np.add.reduceat(v, starts) / counts for v in (x, y))
    return mean_x, mean_y, np.minimum.reduceat(y, starts), np.maximum.reduceat(y, starts)
