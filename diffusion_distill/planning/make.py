"""The plan of a config on a topology."""

import dataclasses

import ml_collections

from diffusion_distill import config as configs
from diffusion_distill.console import duration, say
from diffusion_distill.measure import cache_dir
from diffusion_distill.planning import hardware
from diffusion_distill.planning.bounds import StageCost, bound, stage_cost, verdict
from diffusion_distill.planning.programs import (
    LEAST_EFFORT,
    Cost,
    Data,
    cost,
    describe,
    programs,
)
from diffusion_distill.training.sharding import check_divides, make_mesh
from diffusion_distill.training.stages import plan as stages_of

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
        images_per_second: that the sampler makes at one step, at the most; None as above.
        verdict: whether it fits, in words.
    """

    topology: hardware.Topology
    effort: float
    data: Data
    costs: list[Cost]
    stages: list[StageCost]
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
        return Plan(topology, effort, data, costs, [], None, NO_LIMIT)
    by_name = {c.name: c for c in costs}
    bounds = {c.name: bound(c, topology.chip, config.model.dtype) for c in costs}
    kinds = {s.name: "student" if s.teacher else "teacher" for s in stages if s.updates}
    return Plan(
        topology,
        effort,
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
