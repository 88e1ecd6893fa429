"""What results.jsonl says of a stage: its metrics, and those of the teacher's baselines."""

from collections.abc import Callable
from pathlib import Path

import ml_collections
import numpy as np

from diffusion_distill.data.batches import batches_of
from diffusion_distill.devices.distributed import fetch
from diffusion_distill.generate import Sampler
from diffusion_distill.metrics.evaluator import Measured
from diffusion_distill.metrics.measure import Measurer
from diffusion_distill.metrics.names import value_text
from diffusion_distill.stages import Stage
from diffusion_distill.terminal.console import say

# (name of a sampler, number of steps) -> the sampler of one stage's weights.
SamplerOf = Callable[[str, int], Sampler]

# (name of a sampler, number of steps, images, one metric or None for all) -> what was measured.
_Measure = Callable[[str, int, int, str | None], Measured]


def stage_row(
    measurer: Measurer,
    stage: Stage,
    all_steps: list[int],
    sampler_of: SamplerOf,
    folder: Path,
    made_for: int = 0,
) -> dict:
    """What was measured of a stage, for its row of results.jsonl.

    The teacher, which knows all times, is measured at no more than config.eval.max_steps steps; a
    student of more is not measured, and its row says so under "not_measured". A teacher that is
    itself a student is measured at the steps that it is made for, and has no baselines.

    Args:
        measurer: of the run.
        stage: the teacher, or a student.
        all_steps: of all stages: those at which the teacher's baselines are measured.
        sampler_of: its samplers.
        folder: of this stage alone: where blocks of features, and results, are kept until the row
            is written, and where what was stopped goes on from.
        made_for: the teacher's only number of steps, where it is a student itself.
    """
    evaluation = measurer.config.eval
    if not is_measured(stage, evaluation):
        limit = f"config.eval.max_steps, {evaluation.max_steps}"
        return {"not_measured": f"{stage.num_steps} steps are more than {limit}"}
    steps = _steps(stage, evaluation, made_for)
    weights = sampler_of("ddim", steps).fingerprint()

    def measure(name: str, num_steps: int, count: int, only: str | None) -> Measured:
        return measurer.sampler(
            sampler_of(name, num_steps),
            count,
            evaluation.seed,
            folder / f"{name}_{num_steps:04d}{'_baseline' if only else ''}",
            f"{stage.name}: {_part(name, num_steps)}",
            {"weights": weights, "sampler": name},
            only,
        )

    result = measure("ddim", steps, evaluation.num_images, None)
    row = {
        "metric": result.metrics[0],
        "metrics": result.metrics,
        **result.values,
        "notes": result.notes,
        "measured_steps": steps,
        **measurer.definition(evaluation.num_images, evaluation.seed),
    }
    if stage.teacher is None:
        if made_for:
            row["baselines"] = {}
        else:
            row |= _baselines(evaluation, measure, result, steps, all_steps)
        if measurer.evaluator.judge is not None:
            row["judge_accuracy"] = measurer.evaluator.judge.held_out_accuracy
    return row


def is_measured(stage: Stage, evaluation: ml_collections.ConfigDict) -> bool:
    """Whether a stage is measured at all, as a run's config.eval says."""
    return stage.teacher is None or stage.num_steps <= evaluation.max_steps


def measuring_parts(
    stage: Stage, all_steps: list[int], evaluation: ml_collections.ConfigDict, made_for: int = 0
) -> dict[str, int]:
    """What `stage_row` measures of a stage in order, and how much work each is.

    The work is counted in passes of an image through a network: one of the sampled network for
    each step, and one of the network that features come from. See `stage_row` for the arguments.
    """
    if not is_measured(stage, evaluation):
        return {}
    steps = _steps(stage, evaluation, made_for)
    parts = {_part("ddim", steps): (steps + 1) * evaluation.num_images}
    if stage.teacher is None and not made_for:
        count = evaluation.baseline_images or evaluation.num_images
        for name in evaluation.baselines:
            for num_steps in (n for n in all_steps if n <= evaluation.max_steps):
                parts.setdefault(_part(name, num_steps), (num_steps + 1) * count)
    return parts


def first_images(
    measurer: Measurer, sampler_of: SamplerOf, stage: Stage, count: int, made_for: int = 0
) -> np.ndarray:
    """uint8 images 0 to count - 1 of a stage, [N, H, W, C].

    Where the stage is measured they are made in batches of the same size, by the same program; the
    teacher makes them in as many steps as it is measured in. For `made_for` see `stage_row`.
    """
    evaluation = measurer.config.eval
    steps = stage.num_steps
    if stage.teacher is None:
        steps = _steps(stage, evaluation, made_for)
    sampler = sampler_of("ddim", steps)
    measured = is_measured(stage, evaluation)
    size = sampler.batch_size(evaluation.num_images if measured else count)
    labels = sampler.image_labels(count)
    batches = []
    for indices in batches_of(count, size):
        measurer.check()
        batches.append(fetch(sampler.on_devices(evaluation.seed, indices, labels)))
    return np.concatenate(batches)[:count]


def _steps(stage: Stage, evaluation: ml_collections.ConfigDict, made_for: int) -> int:
    """The sampling steps that a stage is measured at."""
    return made_for or min(stage.num_steps, evaluation.max_steps)


def _part(name: str, num_steps: int) -> str:
    """What the measuring of one sampler is called."""
    return f"{name}, {num_steps} steps"


def _baselines(
    evaluation: ml_collections.ConfigDict,
    measure: _Measure,
    result: Measured,
    steps: int,
    all_steps: list[int],
) -> dict:
    """The undistilled teacher by other samplers and steps, compared by the first metric."""
    count = evaluation.baseline_images or evaluation.num_images
    first, metric = evaluation.metrics[0], result.metrics[0]
    baselines = {name: {} for name in evaluation.baselines}
    for name, values in baselines.items():
        for num_steps in (n for n in all_steps if n <= evaluation.max_steps):
            again = (name, num_steps, count) == ("ddim", steps, evaluation.num_images)
            measured = result if again else measure(name, num_steps, count, first)
            metric = measured.metrics[0]
            values[str(num_steps)] = measured.values[metric]
            text = value_text(metric, values[str(num_steps)])
            say(f"teacher: {name}, {num_steps} steps: {metric} {text}")
    return {"baselines": baselines, "baseline_metric": metric}
