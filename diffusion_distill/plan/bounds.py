"""What a program's cost means on a chip: the least time it takes, hours, and whether it fits."""

import dataclasses
import math

from diffusion_distill.plan.cost import Cost
from diffusion_distill.plan.hardware import Chip
from diffusion_distill.stages import Stage

TIGHT = 0.92  # of a chip's memory: above it a run may fail where a plan fits
NO = "does not fit"


@dataclasses.dataclass(frozen=True)
class Bound:
    """The least seconds that one unit of a program takes, by each of three limits."""

    compute: float  # to multiply and convolve, at the chip's peak
    memory: float  # to read and write, at the memory's peak; 0 where the bytes are not known
    network: float  # to send, over all links of a chip at once

    @property
    def seconds(self) -> float:
        """What a unit takes at the least: as long as the slowest of the three."""
        return max(dataclasses.astuple(self))

    @property
    def by(self) -> str:
        """What it waits for most: "compute", "memory" or "network"."""
        limits = dataclasses.asdict(self)
        return max(limits, key=limits.get)


def bound(cost: Cost, chip: Chip, dtype: str) -> Bound:
    """The least time of one unit of a program; dtype is config.model.dtype."""
    return Bound(
        compute=cost.flops / chip.flops[dtype],
        memory=(cost.accessed or 0) / chip.bandwidth,
        network=sum(c.sent for c in cost.collectives) / chip.network,
    )


@dataclasses.dataclass(frozen=True)
class StageTime:
    """How long a stage takes."""

    name: str
    updates: int
    images: int  # that it sees
    hours: float  # at the least
    chip_hours: float  # the same, times the number of chips
    estimate: float | None  # hours, by the compiler's own model; None where it has none


def stage_time(stage: Stage, cost: Cost, seconds: float) -> StageTime:
    """The time of a stage whose updates take `seconds` each, and have this cost."""
    hours = stage.updates * seconds / 3600
    estimate = None if cost.estimate is None else stage.updates * cost.estimate / 3600
    images = stage.updates * cost.images
    return StageTime(stage.name, stage.updates, images, hours, hours * cost.devices, estimate)


def extrapolated(cost: Cost, devices: int) -> Cost:
    """The cost of an update on another number of devices, reckoned from that on some.

    What grows with the batch is divided among the devices. What grows with the weights is not: the
    arguments, and reading and writing them once. Collectives keep their bytes, among more devices.
    """
    share = cost.devices / devices
    accessed = cost.accessed
    if accessed is not None:
        weights = min(2 * cost.arguments, accessed)
        accessed = weights + (accessed - weights) * share
    groups = [devices if c.group == cost.devices else c.group for c in cost.collectives]
    sent = [dataclasses.replace(c, group=n) for c, n in zip(cost.collectives, groups, strict=True)]
    return dataclasses.replace(
        cost, devices=devices, flops=cost.flops * share, accessed=accessed, collectives=sent,
        temporaries=round(cost.temporaries * share), estimate=None, fits=True,
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Size:
    """What all stages take on some number of chips."""

    chips: int
    compiled: bool  # whether the programs were compiled for it; extrapolated otherwise
    verdict: str  # as `verdict` has it, but "may not fit" where it is extrapolated
    waits_for: str  # by the student's update, or without students by the teacher's, most
    seconds: float  # of that update, at the least
    hours: float  # of all stages, at the least
    chip_hours: float


def sizes(
    stages: list[Stage], updates: dict[str, Cost], chip: Chip, dtype: str, accumulation: int
) -> list[Size]:
    """A run on the chips that there are and on 8, 16, ... 1,024, where the batch splits over them.

    Stages are those that are trained; updates have the cost of each by the name of its program, the
    student's last.
    """
    last, found = list(updates.values())[-1], []
    for chips in sorted({last.devices, *(2**n for n in range(3, 11))}):
        if chips > chip.most or last.images % (chips * accumulation):
            continue
        compiled = chips == last.devices
        there = {n: c if compiled else extrapolated(c, chips) for n, c in updates.items()}
        limits = {name: bound(cost, chip, dtype) for name, cost in there.items()}
        hours = sum(s.updates * limits[s.kind].seconds / 3600 for s in stages)
        slow = limits[last.name]
        fits = verdict(list(there.values()), chip)
        if not compiled and fits == NO:
            fits = "may not fit"  # where there is less memory the compiler makes do with less
        found.append(Size(chips, compiled, fits, slow.by, slow.seconds, hours, hours * chips))
    return found


def verdict(costs: list[Cost], chip: Chip) -> str:
    """ "fits", "fits, but only just", or "does not fit"."""
    if not all(cost.fits and cost.memory <= chip.memory for cost in costs):
        return NO
    return "fits" if max(c.memory for c in costs) <= TIGHT * chip.memory else "fits, but only just"


def slowest(cost: Cost, limits: Bound, dtype: str) -> str:
    """What a program waits for, and what would help, in words."""
    more_chips = "more chips make it faster"
    less_to_move = "computing in bfloat16 (config.model.dtype) moves less"
    helps = {
        "compute": more_chips,
        "memory": more_chips if dtype == "bfloat16" else less_to_move,
        "network": "more chips will not make it faster, a larger batch on each would",
    }
    return f"{cost.name}: waits for {limits.by} most; {helps[limits.by]}."


def advice(cost: Cost, chip: Chip, runtime) -> list[str]:
    """What to change so that a program that is too large for a chip fits, the cheapest first.

    Each line is enough by itself, as far as can be told without compiling it: temporaries go with
    the images that a device has at once, and arguments with the devices that share them. Where the
    arguments alone are too large, only fsdp or a larger chip helps. `runtime` is config.runtime.
    """
    free, share = TIGHT * chip.memory - cost.arguments, cost.images // cost.devices
    fsdp = _fsdp_advice(cost, chip, runtime)
    if free <= 0:
        return [*fsdp, "a larger chip: weights and what goes with them fill this one"]
    parts = 2 ** math.ceil(math.log2(max(cost.temporaries / free, 2)))
    if cost.name == "sampler":
        if share > 1:
            size = max(cost.images // parts, cost.devices)
            fsdp.append(f"--config.runtime.sampler_batch_size={size}: the same images")
        return fsdp or ["a larger chip"]
    lines, wanted, batch = [], runtime.accumulation * parts, cost.images // parts
    if share % wanted == 0:
        lines.append(f"--config.runtime.accumulation={wanted}: the same result, a little slower")
    if not runtime.remat:
        more = "a third more computation; plan it to see what it saves"
        lines.append(f"--config.runtime.remat=True: {more}")
    lines += fsdp
    if share > 1 and cost.devices * parts <= chip.most:
        lines.append(f"about {cost.devices * parts} chips instead of {cost.devices}")
    if share >= parts:
        lines.append(f"--config.train.batch_size={batch}: another result, and more updates to it")
    return lines or ["a larger chip"]


def _fsdp_advice(cost: Cost, chip: Chip, runtime) -> list[str]:
    """Weights over 8 devices, or over all where 8 are not enough, where that makes it fit."""
    before = min(runtime.fsdp, cost.devices)
    for parts in sorted({math.gcd(8, cost.devices), cost.devices}):
        arguments = cost.arguments * before / parts
        if parts > before and arguments + cost.temporaries <= TIGHT * chip.memory:
            return [f"--config.runtime.fsdp={parts}: weights are split, not copied"]
    return []
