"""What the page draws: the images of load_sampler, by one compilation, within limits."""

import dataclasses
import logging
import shutil
from collections import OrderedDict

import jax
import numpy as np
import pytest

import diffusion_distill
from diffusion_distill.errors import CheckpointError, UserError
from diffusion_distill.explore import world as worlds
from diffusion_distill.explore.world import BATCH, World, slerp, whole_number
from tests.conftest import Compilations


def drawn(world, *asked):
    return list(world.samples(*asked))[-1]


@pytest.mark.parametrize(("stage", "steps"), [("teacher", 3), ("student_0002", 2)])
def test_the_images_are_those_of_load_sampler(finished, world, stage, steps):
    sampler = diffusion_distill.load_sampler(finished[0], steps, stage, batch_size=BATCH)
    pictures = list(world.samples(stage, steps, 5, None, 19))
    assert [len(picture.images) for picture in pictures] == [8, 16, 19]
    np.testing.assert_array_equal(pictures[-1].images, sampler(5, 19))
    assert pictures[-1].seconds > pictures[0].seconds > 0
    np.testing.assert_array_equal(drawn(world, stage, steps, 5, 3, 4).images, sampler(5, 8, 3)[:4])


def test_one_compilation_serves_all(world):
    drawn(world, "student_0002", 2, 0, None, 8)
    compilations, logger = Compilations(), logging.getLogger("jax")
    logger.addHandler(compilations)
    with jax.log_compiles():
        jax.jit(lambda x: x + 1)(0.0)  # so that it is seen that they are seen
        for stage, steps in [("teacher", 1), ("teacher", 5), ("student_0001", 1)]:
            for count in (1, 8, 20):
                drawn(world, stage, steps, 0, None, count)
        list(world.compare(0, 2))
        world.walk("student_0002", 2, (0, 1), None)
    logger.removeHandler(compilations)
    assert any("lambda" in name for name in compilations.names)
    assert not [name for name in compilations.names if "step" in name]


def test_few_steps_side_by_side(world):
    shown = list(world.compare(4, 7))
    assert [len(columns) for columns in shown] == [1, 2, 3, 4]
    for column, steps, student in zip(
        shown[-1], (1, 2, 4, 8), ("student_0001", "student_0002", None, None), strict=True
    ):
        assert column.num_steps == column.teacher.num_steps == steps
        assert (column.student and column.student.stage) == student
        expected = drawn(world, "teacher", steps, 4, 7, BATCH).images
        np.testing.assert_array_equal(column.teacher.images, expected)
        if student:
            expected = drawn(world, student, steps, 4, 7, BATCH).images
            np.testing.assert_array_equal(column.student.images, expected)


def test_a_teacher_that_is_made_for_its_steps_is_shown_at_those_alone(world, monkeypatch):
    monkeypatch.setattr(world, "run", dataclasses.replace(world.run, teacher_fixed_steps=4))
    columns = list(world.compare(0, None))[-1]
    assert [column.teacher is not None for column in columns] == [False, False, True, False]
    with pytest.raises(UserError, match="for teacher it must be 4, which it is made for"):
        world.sampler("teacher", 2)


def test_a_walk_goes_from_one_image_to_the_other(world):
    for label, first in ((None, 0), (6, 6)):
        picture = world.walk("student_0002", 2, (3, 11), label)
        assert len(picture.images) == worlds.FRAMES
        for end, seed in ((0, 3), (-1, 11)):
            expected = drawn(world, "student_0002", 2, seed, first, 1).images[0]
            assert np.abs(picture.images[end].astype(int) - expected).max() <= 1
    between = picture.images.astype(int)
    moves = np.abs(np.diff(between, axis=0)).mean(axis=(1, 2, 3))
    assert np.all(moves > 0)
    assert moves.max() < 0.5 * np.abs(between[0] - between[-1]).mean()


def test_slerp_keeps_to_the_sphere():
    rng = np.random.default_rng(0)
    start, end = rng.normal(size=(2, 16, 16, 3))
    weights = np.linspace(0, 1, 9)
    z = slerp(start, end, weights)
    assert z.shape == (9, 16, 16, 3)
    np.testing.assert_allclose(z[0], start, atol=1e-6)
    np.testing.assert_allclose(z[-1], end, atol=1e-6)
    np.testing.assert_allclose(z.std(axis=(1, 2, 3)), 1, atol=0.05)  # a line has 0.71 half way
    # Two unit vectors at a right angle: a quarter of a circle.
    quarter = slerp(np.array([1.0, 0.0]), np.array([0.0, 1.0]), weights)
    expected = np.stack([np.cos(weights * np.pi / 2), np.sin(weights * np.pi / 2)], axis=1)
    np.testing.assert_allclose(quarter, expected, atol=1e-6)
    np.testing.assert_allclose(slerp(start, start, weights)[4], start, atol=1e-6)


def test_few_weights_are_kept(world, monkeypatch):
    monkeypatch.setattr(worlds, "KEPT", 1)
    monkeypatch.setattr(world, "_networks", OrderedDict())
    first = drawn(world, "student_0001", 1, 0, None, 4).images
    assert world.announcement(["student_0001"]) == ""
    drawn(world, "student_0002", 2, 0, None, 4)
    assert world.announcement(["student_0001"]) == "loading the weights of student_0001"
    assert world.announcement(["student_0002"]) == ""
    np.testing.assert_array_equal(drawn(world, "student_0001", 1, 0, None, 4).images, first)


def test_what_would_take_too_long_is_refused(finished, world, monkeypatch):
    assert "compiling the sampler" in World(finished[0]).announcement(["teacher"])
    list(world.compare(0, None))
    assert world.announcement(["teacher"]) == ""
    monkeypatch.setattr(world, "_seconds", 1.0)
    with pytest.raises(UserError, match="64 images in 8 steps would take about 64 s .* is 60 s"):
        drawn(world, "teacher", 8, 0, None, 64)
    monkeypatch.setattr(world, "_seconds", 10.0)
    with pytest.raises(UserError, match="6 pictures side by side would take about 180 s"):
        list(world.compare(0, None))
    with pytest.raises(UserError, match="16 images in 4 steps would take about 80 s"):
        world.walk("teacher", 4, (0, 1), None)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("student_0002", 3, 0, None, 1), "steps is 3; for student_0002 it must be 2, which it is"),
        (("teacher", 0, 0, None, 1), "steps is 0; for teacher it must be at least 1"),
        (("student_0064", 64, 0, None, 1), "no stage named student_0064; finished stages: teacher"),
        (("../teacher", 1, 0, None, 1), "no stage named ../teacher"),
        (("teacher", 1, -1, None, 1), "seed is -1"),
        (("teacher", 1, 0, 10, 1), "label 10 is out of range 0 to 9"),
        (("teacher", 1, 0, None, 65), "images is 65; it must be from 1 to 64"),
        (("teacher", 1, 0, None, 0), "images is 0"),
    ],
)
def test_what_is_refused(world, asked, message):
    with pytest.raises(UserError, match=message):
        drawn(world, *asked)


def test_what_is_typed(world, monkeypatch):
    assert whole_number("seed", " 12 ", 0, 20) == 12
    for text in ("", "x", "1.5", "-1", "21", "nan", "9" * 5000):
        with pytest.raises(UserError, match="must be a whole number from 0 to 20") as error:
            whole_number("seed", text, 0, 20)
        assert len(str(error.value)) < 120
    assert world.label("") is None
    assert world.label("7") == 7
    with pytest.raises(UserError, match="label is '10'; it must be a whole number from 0 to 9"):
        world.label("10")
    monkeypatch.setattr(world, "num_classes", 0)
    assert world.label(" ") is None
    with pytest.raises(UserError, match="trained without"):
        world.label("0")


def test_workdirs_with_nothing_to_show(workdir, tmp_path):
    with pytest.raises(UserError, match="there is no workdir"):
        World(tmp_path / "nowhere")
    shutil.rmtree(workdir / "student_0001")
    world = World(workdir)
    assert [stage.name for stage in world.stages()] == ["teacher", "student_0002"]
    damaged = workdir / "student_0002/checkpoints/6/ema_params/_METADATA"
    damaged.write_bytes(damaged.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="does not match its SHA-256"):
        world.sampler("student_0002", 2)
    for stage in ("teacher", "student_0002"):
        shutil.rmtree(workdir / stage)
    with pytest.raises(UserError, match="has no finished stage yet"):
        World(workdir)
