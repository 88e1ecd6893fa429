"""The numbers behind the plots, from what a run wrote."""

import dataclasses
from pathlib import Path

import numpy as np

from diffusion_distill.paper import DATASETS, Dataset
from diffusion_distill.report.run import CURVES, RunFiles, StageFiles, is_number

BINS = 400  # points of a curve at most: a line of more is not seen


@dataclasses.dataclass(frozen=True)
class Point:
    """One number of steps, measured once or with several seeds.

    Attributes:
        num_steps: sampling steps.
        mean: over the seeds.
        std: their standard deviation (of a sample: over n - 1); None for one seed.
        seeds: how many.
    """

    num_steps: int
    mean: float
    std: float | None = None
    seeds: int = 1


@dataclasses.dataclass(frozen=True)
class Series:
    """One line of the plot of distance against steps.

    Attributes:
        sampler: by its name in the config.
        distilled: whether each point is of the stage that is made for its steps, not of the
            undistilled teacher.
        points: by steps, each number once.
    """

    sampler: str
    distilled: bool
    points: tuple[Point, ...]


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
    found = {}  # metric -> (not distilled, sampler) -> steps -> seed -> value

    def add(metric, distilled, sampler, num_steps, seed, value):
        usable = is_number(value) and isinstance(num_steps, int) and num_steps >= 1
        if isinstance(metric, str) and isinstance(sampler, str) and usable:
            lines = found.setdefault(metric, {})
            seeds = lines.setdefault((not distilled, sampler), {}).setdefault(num_steps, {})
            seeds[str(seed)] = float(value)

    def is_distilled(name: str) -> bool:
        return name != "teacher" or run.teacher_is_student

    for row in run.results:
        distilled, seed = is_distilled(row["stage"]), row.get("seed")
        for metric in _metrics(row):
            add(metric, distilled, "ddim", row.get("measured_steps"), seed, row.get(metric))
        of = row.get("baseline_metric", row.get("metric"))
        for sampler, values in _items(row.get("baselines")):
            for num_steps, value in _items(values):
                if num_steps.isdecimal():
                    add(of, distilled, sampler, int(num_steps), seed, value)
    stages = {stage.name for stage in run.stages}
    for row in run.evaluations:
        if row["stage"] in stages:
            for metric in _metrics(row):
                sampler, value = row.get("sampler"), row.get(metric)
                distilled = is_distilled(row["stage"])
                add(metric, distilled, sampler, row["num_steps"], row.get("seed"), value)
    return {
        metric: [
            Series(sampler, not undistilled, tuple(_point(n, by[n]) for n in sorted(by)))
            for (undistilled, sampler), by in sorted(lines.items(), key=_by_kind)
        ]
        for metric, lines in found.items()
    }


def plotted_metrics(runs: list[RunFiles]) -> list[str]:
    """What the headline plots show: the first metric of each run, and that of its baselines."""
    names = []
    for run in runs:
        for row in run.results:
            names += [row.get("metric"), row.get("baseline_metric")]
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
        for name in CURVES:
            values = stage.curves[name]
            known = np.isfinite(values) & np.isfinite(stage.curves["step"])
            if known.any():
                curves[name].append(
                    _binned(begin + stage.curves["step"][known], values[known], width)
                )
    return curves, borders


@dataclasses.dataclass(frozen=True)
class Spent:
    """What was spent on training one stage, so far.

    Attributes:
        stage: which.
        seconds: None while they are not known.
        images: seen in training.
        finished: whether that is all.
    """

    stage: StageFiles
    seconds: float | None
    images: int
    finished: bool


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


def _by_kind(item: tuple) -> tuple:
    """Sorts lines: students, the teacher with DDIM, then by the name of the sampler."""
    (undistilled, sampler), _ = item
    return undistilled, sampler != "ddim", sampler


def _point(num_steps: int, by_seed: dict[str, float]) -> Point:
    values = list(by_seed.values())
    std = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return Point(num_steps, float(np.mean(values)), std, len(values))


def _metrics(row: dict) -> list[str]:
    names = row.get("metrics", [row.get("metric")])
    return [n for n in names if isinstance(n, str)] if isinstance(names, list) else []


def _items(value) -> list[tuple]:
    return list(value.items()) if isinstance(value, dict) else []


def _binned(x: np.ndarray, y: np.ndarray, width: float) -> tuple[np.ndarray, ...]:
    bins = np.floor(x / width).astype(int)
    starts = np.flatnonzero(np.diff(bins, prepend=bins[0] - 1))
    counts = np.diff(np.append(starts, len(x)))
    mean_x, mean_y = (np.add.reduceat(v, starts) / counts for v in (x, y))
    return mean_x, mean_y, np.minimum.reduceat(y, starts), np.maximum.reduceat(y, starts)
