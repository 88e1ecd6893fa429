"""How long a run is said to take."""

import pytest

from configs.digits_distill import get_config
from diffusion_distill.metrics.stage_row import Subject
from diffusion_distill.stages import plan
from diffusion_distill.training.outlook import outlook


def run(rows=()):
    """32 -> 16 -> 8 -> 4 -> 2 -> 1, a teacher of 1200 updates, and the parts of measuring it."""
    config = get_config()
    config.eval.baselines = ("ddim", "ancestral")
    stages = plan(config)
    steps = [stage.num_steps for stage in stages]
    parts = {stage.name: Subject(stage, config.eval, steps).work() for stage in stages}
    return outlook(stages, parts, rows), parts


STUDENTS = 3 * 200 + 2 * 300  # updates of all


def test_a_students_update_counts_as_five_thirds_of_a_teachers():
    left = run()[0].seconds_left
    assert left("teacher", 0.0, 0.0) is None
    rate = 1 / (0.3 * 1200)  # 0.3 s an update
    assert left("teacher", 1 / 6, rate) == pytest.approx(1000 * 0.3 + STUDENTS * 0.5)
    assert left("student_0016", 0.0, 0.0) == pytest.approx(STUDENTS * 0.5)
    # Measured is better than reckoned.
    assert left("student_0016", 0.5, 1 / (0.2 * 200)) == pytest.approx((STUDENTS - 100) * 0.2)


def test_measuring_counts_once_some_of_it_was_timed():
    outlook, parts = run()
    assert parts["student_0016"] == {"ddim, 16 steps": 17 * 1000}
    # DDIM at the teacher's own steps is measured once, ancestral sampling at all six.
    assert len(parts["teacher"]) == 12
    training = outlook.seconds_left("teacher", 1.0, 1 / (0.3 * 1200))
    assert training == pytest.approx(STUDENTS * 0.5)
    assert outlook.seconds_left("reference", 0.5, 1.0) == training
    assert outlook.seconds_left("teacher: ddim, 32 steps", 0.0, 0.0) == training
    # 1 ms for each step of one image, and for its features
    left = outlook.seconds_left("teacher: ddim, 32 steps", 0.7, 1 / 33)
    teachers, students = 2 * (33 + 17 + 9 + 5 + 3 + 2), 17 + 9 + 5 + 3 + 2
    assert left == pytest.approx(training + teachers - 0.7 * 33 + students)
    left = outlook.seconds_left("student_0001: ddim, 1 steps", 0.0, 0.0)
    assert left == pytest.approx(2)


def test_a_run_that_goes_on_knows_what_its_earlier_starts_took():
    rows = [{"stage": "teacher", "seconds": 120.0}, {"stage": "student_0016", "seconds": 40.0}]
    left = run(rows)[0].seconds_left("student_0008", 0.0, 0.0)
    assert left == pytest.approx((2 * 200 + 2 * 300) * 0.2)
