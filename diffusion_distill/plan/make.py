"""The plan of a config on a topology."""

import dataclasses
import math
from operator import attrgetter

from ml_collections import ConfigDict

from diffusion_distill import stages
from diffusion_distill.devices.sharding import check_divides, make_mesh
from diffusion_distill.paper import pairs_pay
from diffusion_distill.plan import hardware
from diffusion_distill.plan.bounds import Size, StageTime, bound, sizes, stage_time, verdict
from diffusion_distill.plan.cost import Cost, cost
from diffusion_distill.plan.programs import Data, describe, programs
from diffusion_distill.storage.files import cache_folder
from diffusion_distill.terminal.console import say
from diffusion_distill.validate import validate

NO_LIMIT = "simulated devices have no times and no limit"


# What makes a step cheapest on TPUs, of what changes no more than rounding (RESULTS.md), by field.
BEST = {"model.dtype": "bfloat16", "runtime.fsdp": 8}


@dataclasses.dataclass(frozen=True)
class Best:
    """The same run with the best setting that is known."""

    flags: str  # that give it
    chip_hours: float  # at the least


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a config takes on a topology.

    On simulated devices, which have no times, stages and sizes are [].
    """

    topology: hardware.Topology
    full_effort: bool  # the compiler's, as for a run
    data: Data
    costs: list[Cost]  # of each program, the sampler's last
    stages: list[StageTime]  # of those that are trained
    sizes: list[Size]  # the same run on other numbers of chips
    images_per_second: float | None  # that the sampler makes in one step, at the most
    verdict: str  # whether it fits, in words
    best: Best | None = None  # None where this is it, where none is known, or it was not asked for


def make_plan(
    config: ConfigDict,
    topology: hardware.Topology,
    full_effort: bool = False,
    compare: bool = False,
) -> Plan:
    """The plan of a config; compiles what the cache does not have.

    `compare` plans it with the best setting known, too, where that is another.

    Raises:
        UserError: the config, the network, or the number of devices does not go with the rest.
    """
    validate(config)
    mesh = make_mesh(config.runtime.fsdp, hardware.devices(topology))
    accumulation = config.runtime.accumulation
    check_divides(mesh, "train.batch_size", config.train.batch_size, accumulation)
    data, chain = describe(config), stages.plan(config)
    folder = cache_folder(config.runtime.cache_dir) / "plans"
    costs = []
    for program in programs(config, chain, data, mesh):
        say(f"{program.name}: compiling for {topology}, unless the cache has it")
        costs.append(cost(program, topology, mesh, folder, full_effort))
    chip, dtype = topology.chip, config.model.dtype
    if chip is None:
        return Plan(topology, full_effort, data, costs, [], [], None, NO_LIMIT)
    *updates, sampler = costs
    updates = {c.name: c for c in updates}
    seconds = {name: bound(c, chip, dtype).seconds for name, c in updates.items()}
    trained = [stage for stage in chain if stage.updates]
    times = [stage_time(s, updates[s.kind], seconds[s.kind]) for s in trained]
    others = sizes(trained, updates, chip, dtype, accumulation) if updates else []
    rate = sampler.images / bound(sampler, chip, dtype).seconds
    comparable = trained and all(c.accessed is not None for c in updates.values())
    best = _best(config, topology, full_effort) if compare and comparable else None
    return Plan(topology, full_effort, data, costs, times, others, rate, verdict(costs, chip), best)


def better(config: ConfigDict, topology: hardware.Topology) -> dict:
    """What is best in place of a config's own, by field; {} for GPUs, where nothing was tried."""
    if not topology.is_tpu:
        return {}
    size = topology.size
    best = BEST | {"runtime.fsdp": math.gcd(BEST["runtime.fsdp"], size)}  # of so many devices
    best["runtime.pixel_pairs"] = pairs_pay(config)
    own = {name: attrgetter(name)(config) for name in best}
    own["runtime.fsdp"] = min(own["runtime.fsdp"], size)  # which is what it means there
    return {name: best[name] for name in best if own[name] != best[name]}


def _best(config: ConfigDict, topology: hardware.Topology, full_effort: bool) -> Best | None:
    fields = better(config, topology)
    if not fields:
        return None
    flags = " ".join(f"--config.{field}={value}" for field, value in fields.items())
    say(f"the best setting known, {flags}:")
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict(fields)
    plan = make_plan(config, topology, full_effort)
    return Best(flags, sum(stage.chip_hours for stage in plan.stages))
