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

# (name of a sampler, number of steps, w or None) -> the sampler of one stage's weights.
SamplerOf = Callable[[str, int, float | None], Sampler]


@dataclasses.dataclass(frozen=True)
class Setting:
    """One way in which a stage's weights are sampled and measured."""

    sampler: str  # its name
    num_steps: int
    count: int  # images
    only: str | None = None  # the one metric of a baseline; None for all that are asked for
    guidance: float | None = None  # w; None for the least that the network knows

    def __str__(self) -> str:
        guided = "" if self.guidance is None else f", guidance {self.guidance:g}"
        return f"{self.sampler}, {self.num_steps} steps{guided}"

    @property
    def work(self) -> int:
        """Passes of an image through a network: the sampled one at each step, and features'."""
        return (self.num_steps + 1) * self.count

    @property
    def folder(self) -> str:
        """The name of the folder that is its own."""
        guided = "" if self.guidance is None else f"_w{self.guidance:g}"
        return f"{self.sampler}_{self.num_steps:04d}{guided}{'_baseline' if self.only else ''}"


@dataclasses.dataclass(frozen=True)
class Subject:
    """A stage that is measured, and what decides in which settings.

    A stage that knows all times is measured at no more than config.eval.max_steps steps; a student
    of more is not measured. A teacher that is itself a student is measured at its own number of
    steps, and has no baselines.
    """

    stage: Stage
    evaluation: ConfigDict  # config.eval
    all_steps: tuple[int, ...]  # of all stages: those at which the teacher's baselines are measured
    fixed_steps: int | None = None  # the only number that the teacher takes; None where any will do
    # the range of w that its network knows; None where it knows no guidance
    guidance: tuple[float, float] | None = None

    def own(self) -> Setting | None:
        """What the stage is measured at itself; None for a student of too many steps."""
        steps = min(self.stage.num_steps, self.evaluation.max_steps)
        if not self.stage.knows_all_times and steps < self.stage.num_steps:
            return None
        return Setting("ddim", self.fixed_steps or steps, self.evaluation.num_images)

    def guided(self) -> list[Setting]:
        """The stage at each w of config.eval.guidance that its network knows."""
        own, (low, high) = self.own(), self.guidance or (1.0, 0.0)
        known = [w for w in self.evaluation.guidance if low <= w <= high]
        return [dataclasses.replace(own, guidance=w) for w in known] if own else []

    def baselines(self) -> list[Setting]:
        """The undistilled teacher by other samplers and steps, compared by the first metric."""
        evaluation = self.evaluation
        if self.stage.has_teacher or self.fixed_steps is not None:
            return []
        count = evaluation.baseline_images or evaluation.num_images
        return [
            Setting(name, num_steps, count, evaluation.metrics[0])
            for name in evaluation.baselines
            for num_steps in self.all_steps
            if num_steps <= evaluation.max_steps
        ]

    def work(self) -> dict[str, int]:
        """What `stage_row` measures in order, as progress names it, and the work in each.

        See `Setting.work` for the unit.
        """
        own, work = self.own(), {}
        for setting in [*([own] if own else []), *self.guided(), *self.baselines()]:
            work.setdefault(str(setting), setting.work)
        return work


def stage_row(measurer: Measurer, subject: Subject, sampler_of: SamplerOf, folder: Path) -> dict:
    """What was measured of a stage, for its row of results.jsonl.

    Where a student is not measured, its row says so under "not_measured".

    Args:
        folder: of this stage alone: where blocks of features, and results, are kept until the row
            is written, and where what was stopped goes on from.
    """
    stage, evaluation, own = subject.stage, subject.evaluation, subject.own()
    if own is None:
        limit = f"config.eval.max_steps, {evaluation.max_steps}"
        return {"not_measured": f"{stage.num_steps} steps are more than {limit}"}
    weights = sampler_of(own.sampler, own.num_steps, None).fingerprint()

    def measure(setting: Setting) -> Result:
        made_of = {"weights": weights, "sampler": setting.sampler}
        made_of |= {"ancestral_variance": evaluation.ancestral_variance}
        sampler = sampler_of(setting.sampler, setting.num_steps, setting.guidance)
        request = of_sampler(sampler, setting.count, evaluation.seed, made_of, setting.only)
        return measurer.measure(request, folder / setting.folder, f"{stage.name}: {setting}")

    result = measure(own)
    row = {
        "metric": result.metrics[0],
        **result.row(),
        "measured_steps": own.num_steps,
        **measurer.definition(own.count, evaluation.seed),
    }
    if subject.guided():
        row["guidance"] = {}
    for setting in subject.guided():
        found = measure(setting).values
        row["guidance"][f"{setting.guidance:g}"] = found
        value = value_text(row["metric"], found[row["metric"]])
        say(f"{stage.name}: {setting}: {row['metric']} {value}")
    if not stage.has_teacher:
        row["baselines"] = {}
        if subject.fixed_steps is None:
            row["baselines"] = {name: {} for name in evaluation.baselines}
            row["baseline_metric"] = row["metric"]
        for setting in subject.baselines():
            same = dataclasses.replace(setting, only=None) == own
            found = result if same else measure(setting)
            metric = row["baseline_metric"] = found.metrics[0]
            value = found.values[metric]
            row["baselines"][setting.sampler][str(setting.num_steps)] = value
            say(f"teacher: {setting}: {metric} {value_text(metric, value)}")
        if (judge := measurer.yardstick.judge) is not None:
            row["judge_accuracy"] = judge.held_out_accuracy
    return row


def first_images(
    measurer: Measurer, subject: Subject, sampler_of: SamplerOf, count: int
) -> np.ndarray:
    """uint8 images 0 to count - 1 of a stage, [N, H, W, C].

    Where the stage is measured they are made in batches of the same size, by the same program; one
    that knows all times makes them in as many steps as it is measured in.
    """
    setting = subject.own() or Setting("ddim", subject.stage.num_steps, count)
    sampler = sampler_of(setting.sampler, setting.num_steps, None)
    labels, batches = sampler.image_labels(count), []
    for indices in batches_of(count, sampler.batch_size(setting.count)):
        measurer.check()
        batches.append(fetch(sampler.on_devices(subject.evaluation.seed, indices, labels)))
    return np.concatenate(batches)[:count]
