"""What a run takes on hardware that is not at hand: memory, time, chip-hours.

    python -m diffusion_distill.plan --config=configs/imagenet64_distill.py --topology=v5e:8x8

The programs of the run, the teacher's update, the student's and the sampler, are compiled ahead of
time for the topology, without running anything. --topology is a TPU slice (v4:2x2x2, v5e:8x8,
v5p:4x4x4, v6e:4x4; this takes `pip install 'diffusion_distill[tpu]'`, and no TPU), GPUs of one host
(h100:8, a100:8, h200:1, l4:1; memory is then an estimate by the compiler for CPUs), or cpu:8
(simulated devices: memory and operations, no time). Neither the data nor a workdir is needed.

Times are lower bounds: each program computes at the chip's peak, or moves the bytes that it touches
at the memory's peak, or sends at the links' peak, and does nothing but the slowest of these. A run
takes longer.
"""

import dataclasses
import json
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from diffusion_distill import cli
from diffusion_distill import config as configs
from diffusion_distill.console import duration, say
from diffusion_distill.errors import UserError
from diffusion_distill.files import write_atomically
from diffusion_distill.measure import cache_dir
from diffusion_distill.planning import hardware
from diffusion_distill.planning.bounds import StageCost, advice, bound, stage_cost, verdict
from diffusion_distill.planning.programs import (
    LEAST_EFFORT,
    Cost,
    Data,
    cost,
    describe,
    programs,
)
from diffusion_distill.report.table import markdown
from diffusion_distill.training.sharding import check_divides, make_mesh
from diffusion_distill.training.stages import plan as stages_of

_CONFIG = config_flags.DEFINE_config_file("config", None, "A file in configs/; FILE:VARIANT works.")
_TOPOLOGY = flags.DEFINE_string("topology", None, f"What to plan for: {hardware.ACCEPTED}.")
_JSON = flags.DEFINE_string("json", None, "A file for the same numbers as JSON.")
_EFFORT = flags.DEFINE_float(
    "effort", LEAST_EFFORT, "Of the TPU compiler: -1 takes minutes; 0, a run's own, may take hours."
)

# How far the answer at the least effort is from the full one: CIFAR-10's student, 8 chips of v5e.
_LEAST_EFFORT_NOTE = (
    "Compiled with the least effort. Of CIFAR-10's student on v5e:2x4 the full effort took 15 "
    "times as long, counted the same operations, and 0.95 GB of temporaries where this had 0.87."
)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a config takes on a topology.

    Attributes:
        topology: what was planned for.
        data: of the config.
        costs: of its programs.
        stages: what each takes; [] where the topology has no times.
        images_per_second: that the sampler makes at one step, at the most; None as above.
        verdict: whether it fits, in words.
    """

    topology: hardware.Topology
    data: Data
    costs: list[Cost]
    stages: list[StageCost]
    images_per_second: float | None
    verdict: str


def make_plan(config, topology: hardware.Topology, effort: float = LEAST_EFFORT) -> Plan:
    """The plan of a config; compiles what the cache does not have.

    Raises:
        UserError: the config, or the network, or the number of devices does not go with the rest.
    """
    configs.validate(config)
    mesh = make_mesh(hardware.devices(topology))
    parts = config.runtime.accumulation
    check_divides(mesh, "train.batch_size", config.train.batch_size, parts)
    data, stages = describe(config), stages_of(config)
    costs = []
    for program in programs(config, stages, data, mesh):
        say(f"{program.name}: compiling for {topology}, unless the cache has it")
        costs.append(cost(program, topology, mesh, cache_dir(config) / "plans", effort))
        say(f"{program.name}: compiled in {duration(costs[-1].seconds)}")
    if topology.chip is None:
        return Plan(topology, data, costs, [], None, "no time and no limit for simulated devices")
    by_name = {c.name: c for c in costs}
    bounds = {c.name: bound(c, topology.chip, config.model.dtype) for c in costs}
    kinds = {s.name: "student" if s.teacher else "teacher" for s in stages if s.updates}
    return Plan(
        topology,
        data,
        costs,
        [
            stage_cost(s, by_name[kinds[s.name]], bounds[kinds[s.name]].seconds)
            for s in stages
            if s.name in kinds
        ],
        by_name["sampler"].images / bounds["sampler"].seconds,
        verdict(costs, topology.chip),
    )


def text(plan: Plan, config) -> str:
    """The plan as a person reads it: tables, then the verdict."""
    sections = [_programs_table(plan, config), _collectives_table(plan.costs)]
    if plan.stages:
        sections += [_stages_table(plan.stages), _sampling(plan)]
    sections += ["\n".join(_notes(plan, config)), "\n".join(_verdict(plan, config))]
    return "\n\n".join(section for section in sections if section)


def _programs_table(plan: Plan, config) -> str:
    chip = plan.topology.chip
    limit = f" of {_gb(chip.memory)}" if chip else ""
    header = ["program", "images", "GFLOP an image", "GB touched", "GB arguments",
              "GB temporaries", f"GB{limit}"]  # fmt: skip
    if chip:
        header += ["ms compute", "ms memory", "ms network", "ms at least", "ms by XLA"]
    return markdown(header, [_program_row(c, chip, config) for c in plan.costs])


def _program_row(cost: Cost, chip: hardware.Chip | None, config) -> list[str]:
    row = [
        cost.name,
        f"{cost.images:,}",
        f"{cost.flops * cost.devices / cost.images / 1e9:,.3g}",
        _gb(cost.accessed),
        _gb(cost.arguments),
        _gb(cost.temporaries),
        _gb(cost.memory),
    ]
    if chip:
        limits = bound(cost, chip, config.model.dtype)
        seconds = [limits.compute, limits.memory, limits.network, limits.seconds, cost.estimate]
        row += [_number(s and s * 1e3) for s in seconds]
    return row


def _collectives_table(costs: list[Cost]) -> str:
    rows = [
        [program.name, c.kind, str(c.group), f"{c.count:,.3g}", f"{c.bytes / 1e6:,.3g}",
         f"{c.sent / 1e6:,.3g}"]
        for program in costs
        for c in program.collectives
    ]  # fmt: skip
    if not rows:
        return ""
    return markdown(["program", "collective", "among", "times", "MB", "MB sent, at least"], rows)


def _stages_table(stages: list[StageCost]) -> str:
    total = StageCost(
        "all",
        sum(s.updates for s in stages),
        sum(s.images for s in stages),
        sum(s.hours for s in stages),
        sum(s.chip_hours for s in stages),
        None if any(s.estimate is None for s in stages) else sum(s.estimate for s in stages),
    )
    header = ["stage", "updates", "images", "hours, at least", "chip-hours, at least", "hours, XLA"]
    return markdown(
        header,
        [
            [s.name, f"{s.updates:,}", f"{s.images:,}", _number(s.hours), _number(s.chip_hours),
             _number(s.estimate)]
            for s in [*stages, total]
        ],
    )  # fmt: skip


def _sampling(plan: Plan) -> str:
    return (
        f"Sampling: {_number(plan.images_per_second)} images a second in one step, at the most; "
        "in N steps an N-th of that."
    )


def _notes(plan: Plan, config) -> list[str]:
    lines = [
        "Amounts and times are of one update, of the sampler of one step, and on one device; "
        "`touched` counts what each operation reads and writes, `at least` is the largest of the "
        "three times, and `by XLA` the compiler's own model."
    ]
    if plan.data.assumed:
        lines.append(f"Assumed of the data: {plan.data.assumed}.")
    if config.runtime.accumulation > 1:
        lines.append("`touched` takes all of an update to be in the parts of the batch: too much.")
    if not plan.topology.is_tpu:
        lines.append("Memory and bytes touched are the CPU compiler's: an estimate, and too much.")
    elif _EFFORT.value == LEAST_EFFORT:
        lines.append(_LEAST_EFFORT_NOTE)
    return lines


def _verdict(plan: Plan, config) -> list[str]:
    chip = plan.topology.chip
    lines = [f"Verdict: {plan.topology}: {plan.verdict}."]
    for program in plan.costs if chip else []:
        if verdict([program], chip) == "fits":
            continue
        wanted = _gb(program.memory) if program.accessed or program.temporaries else "more"
        lines.append(f"{program.name} takes {wanted} GB of {_gb(chip.memory)}. Change one of:")
        lines += [f"  {line}" for line in advice(program, chip, config.runtime)]
    return lines


def _gb(size: float | None) -> str:
    return "" if size is None else f"{size / 1e9:,.2f}"


def _number(value: float | None) -> str:
    """Three digits that count, as 0.0123, 1.23, 12.3, 1,230."""
    if not value:
        return "" if value is None else "0"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def main(argv: list[str]) -> None:
    cli.no_arguments(argv)
    cli.required("config", _CONFIG.value)
    topology = hardware.parse_topology(cli.required("topology", _TOPOLOGY.value))
    if not -1 <= _EFFORT.value <= 1:
        raise UserError(f"--effort is {_EFFORT.value}; it must be from -1 to 1")
    getattr(_CONFIG.value, "seed", None)  # a config that could not be read raises why when touched
    plan = make_plan(_CONFIG.value, topology, _EFFORT.value)
    if _JSON.value:
        fields = dataclasses.asdict(plan) | {"topology": str(topology)}
        write_atomically(Path(_JSON.value), json.dumps(fields, indent=1) + "\n")
    say("\n" + text(plan, _CONFIG.value))


if __name__ == "__main__":
    cli.run(main)
