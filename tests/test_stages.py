"""The plan of a run is a function of its config."""

import dataclasses

import pytest

from configs.digits_distill import get_config
from diffusion_distill.config import base
from diffusion_distill.stages import plan


def test_digits_halve_from_32_to_1():
    stages = plan(get_config())
    assert [s.name for s in stages] == [
        "teacher", "student_0016", "student_0008", "student_0004", "student_0002", "student_0001",
    ]  # fmt: skip
    assert [s.num_steps for s in stages] == [32, 16, 8, 4, 2, 1]
    assert [s.teacher for s in stages] == [None, *(s.name for s in stages[:-1])]


def test_defaults_are_the_papers_cifar10_schedule():
    stages = plan(base())
    students = stages[1:]
    assert len(students) == 13
    assert (students[0].name, students[0].num_steps) == ("student_4096", 4096)
    assert [s.updates for s in students] == 11 * [50_000] + 2 * [100_000]
    assert {(s.learning_rate, s.lr_schedule, s.dropout, s.weight_decay) for s in students} == {
        (5e-5, "linear", 0.0, 0.0)
    }
    teacher = stages[0]
    assert (teacher.updates, teacher.learning_rate, teacher.warmup) == (800_000, 2e-4, 1000)
    assert (teacher.lr_schedule, teacher.weight_decay, teacher.ema_decay, teacher.dropout) == (
        "constant", 0.001, 0.9999, 0.2,
    )  # fmt: skip


def test_the_first_round_alone_may_have_another_solver():
    config = base()
    assert {stage.solver for stage in plan(config)} == {"ddim"}
    config.distill.first_round_solver = "heun"
    teacher, first, *others = plan(config)
    assert (teacher.solver, first.solver) == ("ddim", "heun")
    assert {stage.solver for stage in others} == {"ddim"}
    config.distill.start_steps = 2  # one step, the last, in which Heun's method is DDIM
    assert plan(config)[1].solver == "ddim"


@pytest.mark.parametrize(
    ("start", "divide_by", "steps"),
    [(64, 8, [8, 1]), (32, 8, [4, 1]), (1024, 32, [32, 1]), (4, 2, [2, 1]), (1, 8, [])],
)
def test_rounds_divide_by_what_they_are_told_and_the_last_by_what_is_left(start, divide_by, steps):
    config = base()
    config.distill.start_steps, config.distill.divide_by = start, divide_by
    teacher, *students = plan(config)
    assert [s.num_steps for s in students] == steps
    for before, student in zip([teacher, *students], students, strict=False):
        assert student.teacher == before.name
        assert student.num_steps * student.divides_by == before.num_steps
    assert {s.solver for s in students} <= {"ddim" if divide_by == 2 else "tract"}


@pytest.mark.parametrize("end", [1, 4, 8192])
def test_stops_at_end_steps(end):
    config = base()
    config.distill.end_steps = end
    assert plan(config)[-1].num_steps == end


def test_every_stage_has_its_own_randomness():
    ids = [s.rng_id for s in plan(base())]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize(
    ("updates", "decay", "warning"),
    [
        (50_000, 0.9999, ""),
        (10_000, 0.9999, "; its average, of ema_decay 0.9999, ends with 37% of its start"),
        (0, 0.9999, ""),  # a teacher that was given
    ],
)
def test_a_stage_says_what_its_average_keeps_of_its_start(updates, decay, warning):
    stage = dataclasses.replace(plan(base())[1], updates=updates, ema_decay=decay)
    assert stage.heading(2, 14) == f"student_4096: stage 2 of 14, {updates} updates{warning}"
