"""What compiling a program tells, and the cache of it."""

import pytest

from diffusion_distill.plan import cost as cost_module
from diffusion_distill.plan.cost import cost, temporaries_wanted
from diffusion_distill.plan.hardware import parse_topology
from tests.plan.conftest import mesh


def test_a_plan_is_made_once_for_each_program(program, flops, tmp_path, monkeypatch):
    topology, sampler = parse_topology("cpu:1"), program("sampler")
    first = cost(sampler, topology, mesh(), tmp_path)
    keys = 8 * sampler.images  # DDIM draws no noise, and jit drops what is not used
    assert first.arguments == sampler.argument_bytes() - keys
    assert first.temporaries > 0
    assert first.flops == flops("sampler") * sampler.images

    def never(*arguments):
        raise AssertionError("compiled again")

    monkeypatch.setattr(cost_module, "_compiled", never)
    same = program("sampler", **{"train.batch_size": 32})  # nothing to the sampler
    assert cost(same, topology, mesh(), tmp_path) == first
    wider = program("sampler", **{"model.channels": 16})
    for other in (
        lambda: cost(sampler, parse_topology("gpu"), mesh(), tmp_path),
        lambda: cost(sampler, topology, mesh(), tmp_path, full_effort=True),
        lambda: cost(wider, topology, mesh(), tmp_path),
    ):
        with pytest.raises(AssertionError, match="compiled again"):
            other()


def test_what_the_compiler_says_of_too_little_memory():
    said = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (155.50G) exceeds available HBM (30.75G)."
    )
    assert temporaries_wanted(said, 100) == int(155.5 * 2**30)
    said = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 2.00K of 1.00K hbm."
    assert temporaries_wanted(said, 100) == 2048 - 100
    assert temporaries_wanted("RESOURCE_EXHAUSTED: for another reason", 100) == 0
