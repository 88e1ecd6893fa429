"""The plan of a config on a topology."""

import dataclasses

import ml_collections

from diffusion_distill.devices.sharding import check_divides, make_mesh
from diffusion_distill.metrics.measure import cache_dir
from diffusion_distill.plan import hardware
from diffusion_distill.plan.bounds import (
    Size,
    StageCost,
    bound,
    program_of,
    sizes,
    stage_cost,
    verdict,
)
from diffusion_distill.plan.programs import LEAST_EFFORT, Cost, Data, cost, describe, programs
from diffusion_distill.stages import plan as stages_of
from diffusion_distill.terminal.console import say
from diffusion_distill.validate import validate

NO_LIMIT = "simulated devices have no times and no limit"


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a config takes on a topology.

    Attributes:
        topology: what was planned for.
        effort: of the compiler.
        data: of the config.
        costs: of its programs.
        stages: what each takes; [] where the topology has no times.
        sizes: the same run on other numbers of chips; [] as above.
        images_per_second: that the sampler makes at one step, at the most; None as above.
        verdict: whether it fits, in words.
    """

    topology: hardware.Topology
    effort: float
    data: Data
    costs: list[Cost]
    stages: list[StageCost]
    sizes: list[Size]
    images_per_second: float | None
    verdict: str


def make_plan(
    config: ml_collections.ConfigDict,
    topology: hardware.Topology,
    effort: float = LEAST_EFFORT,
) -> Plan:
    """The plan of a config; compiles what the cache does not have.

    Raises:
        UserError: the config, or the network, or the number of devices does not go with the rest.
    """
    validate(config)
    mesh = make_mesh(config.runtime.fsdp, hardware.devices(topology))
    parts = config.runtime.accumulation
    check_divides(mesh, "train.batch_size", config.train.batch_size, parts)
    data, stages = describe(config), stages_of(config)
    costs = {}
    for program in programs(config, stages, data, mesh):
        say(f"{program.name}: compiling for {topology}, unless the cache has it")
        folder = cache_dir(config) / "plans"
        costs[program.name] = cost(program, topology, mesh, folder, effort)
    chip, dtype = topology.chip, config.model.dtype
    if chip is None:
        return Plan(topology, effort, data, list(costs.values()), [], [], None, NO_LIMIT)
    trained = [stage for stage in stages if stage.updates]
    updates = {name: c for name, c in costs.items() if name != "sampler"}
    limits = {name: bound(c, chip, dtype) for name, c in costs.items()}
    return Plan(
        topology,
        effort,
        data,
        list(costs.values()),
        [stage_cost(s, costs[program_of(s)], limits[program_of(s)].seconds) for s in trained],
        sizes(trained, updates, chip, dtype, parts) if updates else [],
        costs["sampler"].images / limits["sampler"].seconds,
        verdict(list(costs.values()), chip),
    )
