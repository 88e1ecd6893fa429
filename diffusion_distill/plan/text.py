"""A plan as a person reads it."""

import dataclasses

from diffusion_distill.plan.bounds import Size, StageTime, advice, bound, slowest, verdict
from diffusion_distill.plan.cost import Cost
from diffusion_distill.plan.make import Plan
from diffusion_distill.report.table import markdown

# How far the answer at the least effort is from the full one: CIFAR-10's student, 8 chips of v5e.
_LEAST_EFFORT_NOTE = (
    "Compiled with the least effort. Of CIFAR-10's student on v5e:2x4 the full effort took 15 "
    "times as long, counted the same operations, and 0.95 GB of temporaries where this had 0.87."
)


def text(plan: Plan, config, listed: int = 0) -> str:
    """The plan as a person reads it: tables, then the verdict.

    `listed` is how many operations of each program to list, those that touch most.
    """
    sections = [_programs_table(plan, config), _collectives_table(plan.costs)]
    sections += [_operations_table(cost, listed) for cost in plan.costs if listed]
    if plan.stages:
        rate = _number(plan.images_per_second)
        sampling = f"Sampling: {rate} images a second in one step, at the most; "
        sampling += "in N steps an N-th of that."
        sections += [_stages_table(plan.stages), sampling, _sizes_table(plan.sizes)]
    sections += ["\n".join(_notes(plan, config)), "\n".join(_verdict(plan, config))]
    return "\n\n".join(section for section in sections if section)


def _programs_table(plan: Plan, config) -> str:
    chip = plan.topology.chip
    limit = f" of {_gb(chip.memory)}" if chip else ""
    header = ["program", "images", "GFLOP an image", "GB touched", "GB arguments",
              "GB temporaries", f"GB{limit}"]  # fmt: skip
    if chip:
        header += ["ms compute", "ms memory", "ms network", "ms at least", "ms by XLA"]
    rows = []
    for cost in plan.costs:
        flops = _number(cost.flops * cost.devices / cost.images / 1e9)
        sizes = (cost.accessed, cost.arguments, cost.temporaries, cost.memory)
        rows.append([cost.name, f"{cost.images:,}", flops, *map(_gb, sizes)])
        if chip:
            limits = bound(cost, chip, config.model.dtype)
            seconds = (limits.compute, limits.memory, limits.network, limits.seconds, cost.estimate)
            rows[-1] += [_number(s and s * 1e3) for s in seconds]
    return markdown(header, rows)


def _collectives_table(costs: list[Cost]) -> str:
    header = ["program", "collective", "among", "times", "MB", "MB sent, at least"]
    rows = [
        [cost.name, c.kind, str(c.group),
         *(f"{n:,.3g}" for n in (c.count, c.bytes / 1e6, c.sent / 1e6))]
        for cost in costs
        for c in cost.collectives
    ]  # fmt: skip
    return markdown(header, rows) if rows else ""


def _operations_table(cost: Cost, listed: int) -> str:
    rows = [
        [cost.name, operation.source, *map(_number, (operation.count, operation.bytes / 1e6))]
        for operation in cost.operations[:listed]
    ]
    return markdown(["program", "operation", "times", "MB touched"], rows) if rows else ""


def _stages_table(stages: list[StageTime]) -> str:
    header = ["stage", "updates", "images", "hours, at least", "chip-hours, at least", "hours, XLA"]
    _, *columns = zip(*map(dataclasses.astuple, stages), strict=True)
    total = StageTime("all", *(None if None in column else sum(column) for column in columns))
    rows = [
        [s.name, f"{s.updates:,}", f"{s.images:,}",
         *map(_number, (s.hours, s.chip_hours, s.estimate))]
        for s in [*stages, total]
    ]  # fmt: skip
    return markdown(header, rows)


def _sizes_table(sizes: list[Size]) -> str:
    header = ["chips", "", "verdict", "waits for", "ms an update", "hours, at least",
              "chip-hours, at least"]  # fmt: skip
    rows = [
        [str(s.chips), "compiled" if s.compiled else "extrapolated", s.verdict, s.waits_for,
         *map(_number, (s.seconds * 1e3, s.hours, s.chip_hours))]
        for s in sizes
    ]  # fmt: skip
    return markdown(header, rows) if rows else ""


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
    elif not plan.full_effort:
        lines.append(_LEAST_EFFORT_NOTE)
    return lines


def _verdict(plan: Plan, config) -> list[str]:
    chip, dtype = plan.topology.chip, config.model.dtype
    lines = [f"Verdict: {plan.topology}: {plan.verdict}."]
    least = sum(stage.chip_hours for stage in plan.stages)
    if plan.best and (hours := plan.best.chip_hours) < least:
        lines.append(
            f"With the best setting known, {plan.best.flags}: {_number(hours)} chip-hours at least "
            f"in place of {_number(least)}."
        )
    for program in plan.costs if chip else []:
        if program.accessed is not None:
            lines.append(slowest(program, bound(program, chip, dtype), dtype))
        if verdict([program], chip) == "fits":
            continue
        wanted = f"{_gb(program.memory)} GB" if program.temporaries else "more"
        lines.append(f"{program.name}: takes {wanted} of {_gb(chip.memory)} GB. Change one of:")
        lines += [f"  {line}" for line in advice(program, chip, config.runtime)]
    return lines


def _gb(size: float | None) -> str:
    return "" if size is None else f"{size / 1e9:,.2f}"


def _number(value: float | None) -> str:
    """Three digits that count, as 0.0123, 1.23, 12.3, 1,230."""
    if not value:
        return "" if value is None else "0"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
