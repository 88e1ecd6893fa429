"""Chains that start from weights that were trained elsewhere."""

import json
import shutil

import jax
import numpy as np
import pytest

import diffusion_distill
from diffusion_distill.devices.sharding import make_mesh
from diffusion_distill.errors import CheckpointError, UserError
from diffusion_distill.interop import export
from diffusion_distill.run import Programs, check, finish_stage, run_config
from diffusion_distill.runs import checkpoints
from diffusion_distill.runs.network import flatten, from_stage
from diffusion_distill.runs.workdir import Workdir
from diffusion_distill.stages import plan, started_from
from diffusion_distill.storage.files import read_rows
from diffusion_distill.terminal.stop import StopSignal
from tests.conftest import tiny_config
from tests.interop.conftest import published_config
from tests.interop.reference import write_published

load = diffusion_distill.load_sampler


def params(workdir, stage):
    return flatten(jax.device_get(load(workdir, stage=stage)._params))


def assert_same_bits(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])


def distilled_from(teacher, start_steps=4, base=tiny_config):
    config = base()
    config.distill.teacher = str(teacher)
    config.distill.start_steps = start_steps
    return config


def test_plan_believes_the_teacher():
    config = started_from(distilled_from("", 8192), "x/student_0008", 8)
    assert [(s.name, s.num_steps, s.updates) for s in plan(config)] == [
        ("teacher", 8, 0), ("student_0004", 4, 6), ("student_0002", 2, 6), ("student_0001", 1, 6),
    ]  # fmt: skip
    assert config.distill.teacher == "x/student_0008"
    continuous = started_from(distilled_from("", 16), "x", None)
    assert [s.num_steps for s in plan(continuous)] == [16, 8, 4, 2, 1]
    assert [s.num_steps for s in plan(started_from(tiny_config(), "x", 1))] == [1]
    with pytest.raises(UserError, match="x is made for 6 steps; .* a power of 2"):
        started_from(tiny_config(), "x", 6)
    config.distill.end_steps = 4
    with pytest.raises(UserError, match="end_steps is 4; x is made for 2 steps"):
        started_from(config, "x", 2)
    config = distilled_from("", 8)
    config.distill.first_round_solver = "heun"
    assert plan(started_from(config, "x", None))[1].solver == "heun"
    assert plan(started_from(config, "x", 8))[1].solver == "ddim"  # it knows no other times


def copied(config, workdir):
    """Begins a run, which has its teacher then, and trains nothing."""
    setup = check(config, workdir)
    setup.workdir.begin()
    finish_stage(setup, Programs(setup), setup.stages["teacher"], StopSignal())
    return setup


@pytest.fixture(scope="module")
def from_student(finished, go_on, tmp_path_factory):
    """(workdir of a chain from the finished run's student of 2 steps, its config, its teacher).

    The run was stopped once it had the teacher, whose own folder is gone since.
    """
    folder = tmp_path_factory.mktemp("from_student")
    teacher = shutil.copytree(finished[0], folder / "first") / "student_0002"
    config = distilled_from(teacher, start_steps=8192)
    copied(config, folder / "run")
    shutil.rmtree(folder / "first")
    go_on(folder / "run", config)
    return folder / "run", config, teacher


def test_a_students_student_is_the_one_it_would_have_had(finished, from_student):
    """The same seed, data and rounds: the chain that was cut in two ends with the same bits."""
    workdir, _, _ = from_student
    assert_same_bits(params(workdir, "teacher"), params(finished[0], "student_0002"))
    assert_same_bits(params(workdir, "student_0001"), params(finished[0], "student_0001"))
    rows, first = (read_rows(w / "results.jsonl") for w in (workdir, finished[0]))
    assert [(r["stage"], r["num_steps"], r["updates"]) for r in rows] == [
        ("teacher", 2, 0), ("student_0001", 1, 6)
    ]  # fmt: skip
    assert rows[0]["fd_pixels100_train"] == first[1]["fd_pixels100_train"]
    assert rows[0]["baselines"] == {}  # it is a student itself, and knows its own steps alone
    assert (workdir / "teacher/samples.png").exists()


def test_a_workdir_keeps_its_teacher_and_says_where_it_starts(from_student, capsys):
    workdir, config, teacher = from_student
    assert not teacher.exists()
    config = config.copy_and_resolve_references()
    config.distill.first_round_solver = "heun"  # which changes nothing
    run_config(config, workdir)
    said = capsys.readouterr().out
    assert "student_0002 is made for 2 steps: distillation starts there, not at" in said
    assert "student_0002 is made for steps of DDIM: its first student follows those" in said
    setup = check(distilled_from(""), workdir)
    assert setup.config.distill.teacher == str(teacher)
    assert list(setup.stages) == ["teacher", "student_0001"]


def test_another_teacher_for_a_workdir_is_refused(from_student, finished):
    workdir, _, _ = from_student
    with pytest.raises(UserError, match="of another config: config.distill.teacher: '.*' -> 'els"):
        check(distilled_from("elsewhere", 2), workdir)
    with pytest.raises(UserError, match="of another config: config.distill.teacher: '' -> 'else"):
        check(distilled_from("elsewhere"), finished[0])


def test_a_damaged_copy_is_made_again_or_said(from_student, finished, tmp_path, capsys):
    workdir, config, teacher = from_student
    again = shutil.copytree(workdir, tmp_path / "run")
    before = params(workdir, "teacher")
    next((again / "teacher/checkpoints/0/ema_params/d").iterdir()).write_bytes(b"\0")
    with pytest.raises(CheckpointError, match="does not match its SHA-256"):
        load(again, stage="teacher")
    with pytest.raises(UserError, match="config.distill.teacher is '.*'; there is no such"):
        run_config(config, again)
    try:
        shutil.copytree(finished[0], teacher.parent)
        run_config(config, again)
    finally:
        shutil.rmtree(teacher.parent)
    assert "teacher: copying" in capsys.readouterr().out
    assert_same_bits(params(again, "teacher"), before)


def test_a_teacher_of_known_steps_takes_no_others(from_student):
    workdir, _, _ = from_student
    assert load(workdir, 2).num_steps == load(workdir, stage="teacher").num_steps == 2
    with pytest.raises(UserError, match="no stage named teacher of 3 steps; finished stages: teac"):
        load(workdir, 3, stage="teacher")


def test_a_teacher_in_continuous_time_starts_where_the_config_says(finished, tmp_path):
    setup = copied(distilled_from(finished[0] / "teacher", 16), tmp_path / "run")
    assert setup.given_teacher.fixed_steps is setup.workdir.teacher_fixed_steps is None
    assert [s.num_steps for s in setup.stages.values()] == [16, 8, 4, 2, 1]
    assert load(tmp_path / "run", 3, stage="teacher").num_steps == 3
    meta = checkpoints.verify(checkpoints.folder(tmp_path / "run", "teacher"), 0).meta()
    assert meta["config"]["distill"]["teacher"] == str(finished[0] / "teacher")


def test_a_workdir_stands_for_its_last_finished_stage(workdir, tmp_path):
    assert check(distilled_from(workdir), tmp_path / "a").given_teacher.fixed_steps == 1
    shutil.rmtree(workdir / "student_0001")
    assert check(distilled_from(workdir), tmp_path / "b").given_teacher.fixed_steps == 2


def test_published_file_to_student_to_export(published_file, weights, go_on, tmp_path):
    """The whole way: what the authors published, distilled on, and handed out."""
    workdir, out = tmp_path / "run", tmp_path / "out"
    config = distilled_from(published_file, base=published_config)
    config.eval.baselines = ()
    go_on(workdir, config)
    assert_same_bits(params(workdir, "teacher"), flatten(weights))
    z = np.random.default_rng(0).normal(size=(5, 8, 8, 1))
    direct = load(published_file, config=published_config())
    np.testing.assert_array_equal(load(workdir, 2).from_noise(z), direct.from_noise(z))
    student = load(workdir, 1)
    assert np.abs(student.from_noise(z) - direct.from_noise(z)).max() > 0.01
    run = Workdir.open(workdir)
    export.write(from_stage(run, run.finished_stage(1), make_mesh()), out)
    np.testing.assert_array_equal(load(out)(7, 20), student(7, 20))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("model.emb_channels", 32, r"class_emb/bias: ours \[32\], theirs \[16\]; .*; and \d+ more"),
        ("model.num_blocks", 2, r"down_0.block_1/conv1/bias: ours \[8\], theirs none"),
        ("model.num_groups", 4, "config.model.num_groups: ours 4, theirs 8"),
        ("model.time_input", "linear", "config.model.time_input: ours 'linear', theirs 'arctan'"),
        ("diffusion.parameterization", "eps", "parameterization: ours 'eps', theirs 'v'"),
        ("diffusion.logsnr_max", 15.0, "config.diffusion.logsnr_max: ours 15.0, theirs 20.0"),
    ],
)
def test_another_network_is_refused_before_anything_is_written(
    finished, tmp_path, field, value, message
):
    config = distilled_from(finished[0])
    section, name = field.split(".")
    config[section][name] = value
    with pytest.raises(UserError, match=message) as error:
        check(config, tmp_path / "new")
    assert str(finished[0]) in str(error.value)
    assert not (tmp_path / "new").exists()


def test_what_is_no_teacher_is_refused_before_anything_is_written(finished, workdir, tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    shutil.rmtree(workdir / "student_0001/checkpoints")
    damaged = workdir / "student_0002/checkpoints/6/ema_params/_METADATA"
    damaged.write_bytes(damaged.read_bytes()[:-10])
    for path, kind, message in [
        (tmp_path / "nowhere", UserError, "config.distill.teacher is '.*nowhere'; there is"),
        (tmp_path / "notes", UserError, "notes is not the workdir of a run"),
        (tmp_path / "notes.txt", UserError, "notes.txt is not a published checkpoint"),
        (workdir / "student_0001", UserError, "student_0001 in .* is not finished"),
        (workdir / "student_0002", CheckpointError, "_METADATA does not match its SHA-256"),
        (workdir / "notes", UserError, "no stage named notes"),
    ]:  # fmt: skip
        if path.name == "notes" and path.parent == workdir:
            path.mkdir()
        with pytest.raises(kind, match=message):
            check(distilled_from(path), tmp_path / "new")
        assert not (tmp_path / "new").exists()


def test_steps_that_no_chain_starts_from_are_refused(weights, tmp_path):
    path = write_published(tmp_path / "six", weights, 6)
    with pytest.raises(UserError, match="six is made for 6 steps; .* must be a power of 2"):
        check(distilled_from(path), tmp_path / "new")
    assert not (tmp_path / "new").exists()
    unknown = write_published(tmp_path / "unknown", weights, 0)
    setup = check(distilled_from(unknown, 8), tmp_path / "new")
    assert [s.num_steps for s in setup.stages.values()] == [8, 4, 2, 1]
    setup.workdir.begin()
    assert json.loads((tmp_path / "new/config.json").read_text())["teacher_num_steps"] == 0
