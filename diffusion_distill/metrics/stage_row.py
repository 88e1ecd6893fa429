"""What results.jsonl says of a stage: its metrics, and those of the teacher's baselines."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from diffusion_distill.data.batches import batches_of
from diffusion_distill.devices.distributed import fetch
from diffusion_distill.generate import Sampler
from diffusion_distill.metrics.measure import Measurer
from diffusion_distill.metrics.names import value_text
from diffusion_distill.metrics.request import Result, of_sampler
from diffusion_distill.stages import Stage
from diffusion_distill.terminal.console import say

# (name of a sampler, number of steps) -> the sampler of one stage's weights.
SamplerOf = Callable[[str, int], Sampler]


@dataclasses.dataclass(frozen=True)
class Setting:
    """One way in which a stage's weights are sampled and measured."""

    sampler: str  # its name
    num_steps: int
    count: int  # images
    only: str | None = None  # the one metric of a baseline; None for all that are asked for

    def __str__(self) -> str:
        return f"{self.sampler}, {self.num_steps} steps"

    @property
    def work(self) -> int:
        """Passes of an image through a network: the sampled one at each step, and features'."""
        return (self.num_steps + 1) * self.count

    @property
    def folder(self) -> str:
        """The name of the folder that is its own."""
        return f"{self.sampler}_{self.num_steps:04d}{'_baseline' if self.only else ''}"


def stage_row(
    measurer: Measurer,
    stage: Stage,
    all_steps: list[int],
    sampler_of: SamplerOf,
    folder: Path,
    fixed_steps: int | None = None,
) -> dict:
    """What was measured of a stage, for its row of results.jsonl.

    The teacher, which knows all times, is measured at no more than config.eval.max_steps steps; a
    student of more is not measured, and its row says so under "not_measured". A teacher that is
    itself a student is measured at its own number of steps, and has no baselines.

    Args:
        all_steps: of all stages: those at which the teacher's baselines are measured.
        folder: of this stage alone: where blocks of features, and results, are kept until the row
            is written, and where what was stopped goes on from.
        fixed_steps: the only number of steps that the teacher takes; None where any will do.
    """
    evaluation = measurer.config.eval
    own = _own_setting(stage, evaluation, fixed_steps)
    if own is None:
        limit = f"config.eval.max_steps, {evaluation.max_steps}"
        return {"not_measured": f"{stage.num_steps} steps are more than {limit}"}
    weights = sampler_of(own.sampler, own.num_steps).fingerprint()

    def measure(setting: Setting) -> Result:
        made_of = {"weights": weights, "sampler": setting.sampler}
        made_of |= {"ancestral_variance": evaluation.ancestral_variance}
        sampler = sampler_of(setting.sampler, setting.num_steps)
        request = of_sampler(sampler, setting.count, evaluation.seed, made_of, setting.only)
        return measurer.measure(request, folder / setting.folder, f"{stage.name}: {setting}")

    result = measure(own)
    row = {
        "metric": result.metrics[0],
        **result.row(),
        "measured_steps": own.num_steps,
        **measurer.definition(own.count, evaluation.seed),
    }
    if not stage.is_student:
        row["baselines"] = {}
        if fixed_steps is None:
            row["baselines"] = {name: {} for name in evaluation.baselines}
            row["baseline_metric"] = row["metric"]
        for setting in _baselines(stage, all_steps, evaluation, fixed_steps):
            same = dataclasses.replace(setting, only=None) == own
            found = result if same else measure(setting)
            metric = row["baseline_metric"] = found.metrics[0]
            value = found.values[metric]
            row["baselines"][setting.sampler][str(setting.num_steps)] = value
            say(f"teacher: {setting}: {metric} {value_text(metric, value)}")
        if (judge := measurer.yardstick.judge) is not None:
            row["judge_accuracy"] = judge.held_out_accuracy
    return row


def measuring_work(
    stage: Stage, all_steps: list[int], evaluation: ConfigDict, fixed_steps: int | None = None
) -> dict[str, int]:
    """What `stage_row` measures of a stage in order, as progress names it, and the work in each.

    See `stage_row` for the arguments, `Setting.work` for the unit.
    """
    own = _own_setting(stage, evaluation, fixed_steps)
    work = {} if own is None else {str(own): own.work}
    for setting in _baselines(stage, all_steps, evaluation, fixed_steps):
        work.setdefault(str(setting), setting.work)
    return work


def first_images(
    measurer: Measurer,
    sampler_of: SamplerOf,
    stage: Stage,
    count: int,
    fixed_steps: int | None = None,
) -> np.ndarray:
    """uint8 images 0 to count - 1 of a stage, [N, H, W, C].

    Where the stage is measured they are made in batches of the same size, by the same program; the
    teacher makes them in as many steps as it is measured in. For `fixed_steps` see `stage_row`.
    """
    evaluation = measurer.config.eval
    setting = _own_setting(stage, evaluation, fixed_steps)
    if setting is None:
        setting = Setting("ddim", stage.num_steps, count)
    sampler = sampler_of(setting.sampler, setting.num_steps)
    labels, batches = sampler.image_labels(count), []
    for indices in batches_of(count, sampler.batch_size(setting.count)):
        measurer.check()
        batches.append(fetch(sampler.on_devices(evaluation.seed, indices, labels)))
    return np.concatenate(batches)[:count]


def _own_setting(stage: Stage, evaluation: ConfigDict, fixed_steps: int | None) -> Setting | None:
    """What a stage is measured at itself; None for a student of too many steps."""
    steps = min(stage.num_steps, evaluation.max_steps)
    if stage.is_student and steps < stage.num_steps:
        return None
    return Setting("ddim", fixed_steps or steps, evaluation.num_images)


def _baselines(
    stage: Stage, all_steps: list[int], evaluation: ConfigDict, fixed_steps: int | None
) -> list[Setting]:
    """The undistilled teacher by other samplers and steps, compared by the first metric."""
    if stage.is_student or fixed_steps is not None:
        return []
    count = evaluation.baseline_images or evaluation.num_images
    return [
        Setting(name, num_steps, count, evaluation.metrics[0])
        for name in evaluation.baselines
        for num_steps in all_steps
        if num_steps <= evaluation.max_steps
    ]
