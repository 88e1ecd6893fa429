"""What a person reads of a plan."""

import dataclasses

from diffusion_distill.plan.bounds import stage_time
from diffusion_distill.plan.cost import Cost
from diffusion_distill.plan.hardware import parse_topology
from diffusion_distill.plan.hlo import Collective
from diffusion_distill.plan.make import NO_LIMIT, Best, Plan
from diffusion_distill.plan.operations import Operation
from diffusion_distill.plan.programs import Data
from diffusion_distill.plan.text import text
from diffusion_distill.stages import plan as stages_of
from tests.conftest import tiny_config

STUDENT = Cost(
    name="student",
    images=2048,
    devices=64,
    flops=32 * 1e12,
    accessed=819e9 / 4,
    collectives=[Collective("all-reduce", 64, 1.0, 1.2e9)],
    arguments=int(5e9),
    temporaries=int(10e9),
    estimate=0.5,
    fits=True,
    seconds=100.0,
)


def plan_of(cost, verdict, topology="v5e:8x8"):
    stage = dataclasses.replace(stages_of(tiny_config())[1], updates=36_000)
    seconds = max(cost.flops / 197e12, (cost.accessed or 0) / 819e9)
    return Plan(
        topology=parse_topology(topology),
        full_effort=False,
        data=Data((64, 64, 3), 0, 0, "there is no data: 64x64x3, read ahead"),
        costs=[cost],
        stages=[stage_time(stage, cost, seconds)],
        sizes=[],
        images_per_second=10.0,
        verdict=verdict,
    )


def cells(lines, first):
    line = next(line for line in lines if line.startswith(f"| {first} "))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_run_that_fits():
    lines = text(plan_of(STUDENT, "fits"), tiny_config()).splitlines()
    assert cells(lines, "student")[:7] == [
        "student", "2,048", "1,000", "204.75", "5.00", "10.00", "15.00"
    ]  # fmt: skip
    # 32 / 197; 1 / 4; 2 * 63 / 64 * 1.2 / 200; the largest; XLA's.
    assert cells(lines, "student")[7:] == ["162", "250", "11.8", "250", "500"]
    assert cells(lines, "student_0002")[1:] == ["36,000", "73,728,000", "2.5", "160", "5"]
    assert cells(lines, "all")[3] == "2.5"
    assert "Assumed of the data: there is no data: 64x64x3, read ahead." in lines
    assert "Verdict: v5e:8x8: fits." in lines
    assert "least effort" in "\n".join(lines)


def test_a_run_that_does_not_fit_says_what_to_change():
    too_large = dataclasses.replace(
        STUDENT, accessed=None, estimate=None, fits=False, temporaries=int(20e9)
    )
    lines = text(plan_of(too_large, "does not fit"), tiny_config()).splitlines()
    assert "Verdict: v5e:8x8: does not fit." in lines
    assert "student: takes 25.00 GB of 16.91 GB. Change one of:" in lines
    advice = lines[lines.index("student: takes 25.00 GB of 16.91 GB. Change one of:") + 1 :]
    for field in ("accumulation=2: the same result", "remat=True: "):
        assert any(line.startswith(f"  --config.runtime.{field}") for line in advice)
    assert not any("fsdp" in line for line in advice)  # 20 GB of temporaries stay too much


def test_operations_are_listed_where_asked_for():
    touching = [Operation("UNet/conv1/add", 20, 3.5e9), Operation("copy", 1, 2e6)]
    plan = plan_of(dataclasses.replace(STUDENT, operations=touching), "fits")
    assert "conv1" not in text(plan, tiny_config())
    shown = text(plan, tiny_config(), listed=1)
    assert cells(shown.splitlines(), "student | UNet/conv1/add")[2:] == ["20", "3,500"]
    assert "copy" not in shown


def test_the_best_setting_known_is_beside_the_verdict():
    plan = dataclasses.replace(plan_of(STUDENT, "fits"), best=Best("--config.x=1", 80.0))
    line = "With the best setting known, --config.x=1: 80 chip-hours at least in place of 160."
    assert line in text(plan, tiny_config()).splitlines()


def test_a_setting_that_costs_no_less_is_not_said_to_be_best():
    plan = dataclasses.replace(plan_of(STUDENT, "fits"), best=Best("--config.x=1", 160.0))
    assert "best setting" not in text(plan, tiny_config())


def test_simulated_devices_have_no_times():
    plan = dataclasses.replace(
        plan_of(STUDENT, NO_LIMIT, "cpu:8"), stages=[], images_per_second=None
    )
    shown = text(plan, tiny_config())
    assert "ms at least" not in shown
    assert "hours" not in shown
    assert shown.endswith("Verdict: cpu:8: simulated devices have no times and no limit.")
