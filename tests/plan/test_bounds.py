"""Times and verdicts on made-up numbers, against values by hand."""

import dataclasses

import pytest
from ml_collections import ConfigDict

from diffusion_distill.plan.bounds import (
    Bound,
    advice,
    bound,
    extrapolated,
    sizes,
    slowest,
    stage_time,
    verdict,
)
from diffusion_distill.plan.cost import Cost
from diffusion_distill.plan.hardware import Chip
from diffusion_distill.plan.hlo import Collective
from diffusion_distill.stages import plan
from tests.conftest import tiny_config

CHIP = Chip(
    platform="tpu",
    memory=1000,
    flops={"float32": 100.0, "bfloat16": 200.0},
    bandwidth=50.0,
    network=10.0,
    most=64,
    axes=2,
)
COST = Cost(
    name="student",
    images=64,
    devices=4,
    flops=400.0,
    accessed=150.0,
    collectives=[Collective("all-reduce", 4, 1, 8.0), Collective("all-gather", 4, 2, 4.0)],
    arguments=300,
    temporaries=500,
    estimate=6.0,
    fits=True,
    seconds=1.0,
)
RUNTIME = ConfigDict({"accumulation": 1, "remat": False, "fsdp": 1})


def test_the_bound_is_the_largest_of_three():
    limits = bound(COST, CHIP, "float32")
    # 400 / 100; 150 / 50; (2 * 3/4 * 8 + 3/4 * 4) / 10.
    assert limits == Bound(compute=4.0, memory=3.0, network=1.5)
    assert (limits.seconds, limits.by) == (4.0, "compute")
    assert bound(COST, CHIP, "bfloat16").by == "memory"
    assert bound(dataclasses.replace(COST, accessed=None), CHIP, "float32").memory == 0.0


def test_hours_chip_hours_and_images():
    stage = dataclasses.replace(plan(tiny_config())[1], updates=1800)
    got = stage_time(stage, COST, 4.0)
    assert (got.name, got.updates, got.images) == (stage.name, 1800, 1800 * 64)
    assert (got.hours, got.chip_hours, got.estimate) == (2.0, 8.0, 3.0)
    assert stage_time(stage, dataclasses.replace(COST, estimate=None), 4.0).estimate is None


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "fits"),
        ({"temporaries": 620}, "fits"),
        ({"temporaries": 621}, "fits, but only just"),
        ({"temporaries": 700}, "fits, but only just"),
        ({"temporaries": 701}, "does not fit"),
        ({"fits": False}, "does not fit"),
    ],
)
def test_verdicts(changes, expected):
    other = dataclasses.replace(COST, name="sampler", temporaries=1)
    assert verdict([dataclasses.replace(COST, **changes), other], CHIP) == expected


def test_a_batch_that_is_too_large_is_accumulated():
    """2,000 bytes of temporaries, 620 free: a quarter of them fits, and half does not."""
    lines = advice(dataclasses.replace(COST, temporaries=2000), CHIP, RUNTIME)
    assert [line.split(":")[0] for line in lines] == [
        "--config.runtime.accumulation=4",
        "--config.runtime.remat=True",
        "about 16 chips instead of 4",
        "--config.train.batch_size=16",
    ]


def test_advice_goes_on_from_what_was_done_already():
    runtime = ConfigDict({"accumulation": 8, "remat": True, "fsdp": 1})
    lines = advice(dataclasses.replace(COST, temporaries=1000), CHIP, runtime)
    assert lines[0].startswith("--config.runtime.accumulation=16:")  # 16 images a device: the most
    assert not any("remat" in line for line in lines)
    lines = advice(dataclasses.replace(COST, temporaries=2000), CHIP, runtime)
    assert not any("accumulation" in line for line in lines)


@pytest.mark.parametrize(
    ("changes", "fsdp", "expected"),
    [
        ({"arguments": 950, "temporaries": 600}, 1, "fsdp=4:"),  # of 4 devices, 238 each
        ({"arguments": 950, "temporaries": 600, "devices": 64}, 1, "fsdp=8:"),
        ({"arguments": 950, "temporaries": 850, "devices": 64}, 1, "fsdp=64:"),
        ({"arguments": 950, "temporaries": 800, "devices": 64}, 8, "fsdp=64:"),
        ({"arguments": 950, "temporaries": 600}, 4, None),  # over all already
        ({"arguments": 950, "temporaries": 919}, 1, None),  # not enough
        ({"arguments": 400, "temporaries": 600}, 1, "fsdp=4:"),
        ({"arguments": 400, "temporaries": 600, "devices": 1}, 1, None),
    ],
)
def test_weights_are_split_where_that_makes_them_fit(changes, fsdp, expected):
    runtime = ConfigDict({"accumulation": 1, "remat": False, "fsdp": fsdp})
    lines = advice(dataclasses.replace(COST, **changes), CHIP, runtime)
    found = [line.split("fsdp=")[1] for line in lines if "fsdp" in line]
    assert [f"fsdp={line.split()[0]}" for line in found] == [expected] * (expected is not None)
    assert (lines[-1].startswith("a larger chip")) == (changes["arguments"] == 950)


def test_a_sampler_that_is_too_large_makes_fewer_at_once():
    """2,000 bytes of temporaries, 620 free: a quarter of the images."""
    sampler = dataclasses.replace(COST, name="sampler", images=256, temporaries=2000)
    assert advice(sampler, CHIP, RUNTIME) == [
        "--config.runtime.sampler_batch_size=64: the same images"
    ]
    one_each = dataclasses.replace(sampler, images=4)
    assert advice(one_each, CHIP, RUNTIME) == ["a larger chip"]


def test_no_more_chips_than_there_are():
    lines = advice(dataclasses.replace(COST, devices=32, temporaries=2000), CHIP, RUNTIME)
    assert not any("chips" in line for line in lines)


def test_what_it_waits_for():
    assert "network most; more chips will not" in slowest(COST, Bound(1.0, 1.0, 2.0), "float32")
    assert "bfloat16" in slowest(COST, Bound(1.0, 2.0, 1.0), "float32")
    assert "more chips make it faster" in slowest(COST, Bound(1.0, 2.0, 1.0), "bfloat16")


def test_other_numbers_of_chips():
    """Twice the chips: half of what goes with the batch, all of what goes with the weights."""
    cost = dataclasses.replace(COST, accessed=1000.0, arguments=100)
    more = extrapolated(cost, 8)
    assert (more.devices, more.flops, more.temporaries, more.arguments) == (8, 200.0, 250, 100)
    assert more.accessed == 200 + 800 / 2
    assert [c.group for c in more.collectives] == [8, 8]
    assert extrapolated(more, 4).flops == cost.flops


def test_sizes_that_the_batch_and_the_chip_allow():
    """64 images on chips of which there are 64: on 4, compiled, and on 8 to 64."""
    stage = dataclasses.replace(plan(tiny_config())[1], updates=900)
    got = sizes([stage], {"student": COST}, CHIP, "float32", accumulation=1)
    assert [(s.chips, s.compiled) for s in got] == [
        (4, True), (8, False), (16, False), (32, False), (64, False)
    ]  # fmt: skip
    assert (got[0].hours, got[0].chip_hours, got[0].seconds) == (1.0, 4.0, 4.0)
    # From 8 on it reads its weights, 150 bytes of which 600 would be its arguments twice over.
    assert [s.waits_for for s in got] == ["compute", "memory", "memory", "memory", "memory"]
    assert [s.hours for s in got[1:]] == [0.75] * 4
    assert got[-1].chip_hours == 0.75 * 64
    assert [s.chips for s in sizes([stage], {"student": COST}, CHIP, "float32", 4)] == [4, 8, 16]


def test_less_memory_is_no_verdict_where_it_was_not_compiled():
    cost = dataclasses.replace(COST, devices=16, temporaries=400)
    stage = plan(tiny_config())[1]
    got = {s.chips: s.verdict for s in sizes([stage], {"student": cost}, CHIP, "float32", 1)}
    assert got == {8: "may not fit", 16: "fits", 32: "fits", 64: "fits"}
