"""A chain of students that are told how strongly to be guided, from its config to its images."""

import json

import numpy as np
import pytest

from configs import digits_distill
from diffusion_distill.devices.sharding import make_mesh
from diffusion_distill.errors import UserError
from diffusion_distill.evaluate import Chosen, evaluate_stage
from diffusion_distill.interop import export
from diffusion_distill.interop.load import load_sampler
from diffusion_distill.metrics.stage_row import Subject
from diffusion_distill.report.page import refresh
from diffusion_distill.run import Programs, check, run_chain
from diffusion_distill.runs.network import from_stage
from diffusion_distill.runs.workdir import Workdir
from diffusion_distill.stages import plan
from diffusion_distill.storage.files import read_rows
from diffusion_distill.terminal.stop import StopSignal
from tests.conftest import tiny_config


def guided_config():
    config = tiny_config()
    config.teacher.label_dropout = 0.25
    config.teacher.learning_rate, config.teacher.warmup = 1e-2, 0  # labels must count for something
    config.match.updates, config.match.warmup = 6, 0
    config.match.learning_rate, config.match.ema_decay = 5e-2, 0.5
    config.match.guidance = (0.0, 4.0)
    config.eval.guidance = (1.0, 9.0)
    config.eval.baselines = ()
    return config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("guided") / "run"
    setup = check(guided_config(), workdir)
    programs = Programs(setup)
    run_chain(setup, programs, StopSignal())
    assert list(programs._updates) == ["teacher", "match", "student"]  # one step more, no other
    return workdir


def test_each_stage_is_measured_at_the_w_that_it_knows(run):
    rows = read_rows(run / "results.jsonl")
    assert [row["stage"] for row in rows] == ["teacher", "match", "student_0002", "student_0001"]
    assert [list(row["guidance"]) for row in rows] == [["1", "9"], ["1"], ["1"], ["1"]]
    for row in rows:
        values = row["guidance"]["1"]
        assert set(values) == {row["metric"], "label_agreement"}
        assert values[row["metric"]] != row[row["metric"]]


def test_guidance_changes_images_and_is_kept_by_an_export(run, tmp_path):
    student = load_sampler(run)
    assert student.guidance == 0.0
    plain, guided = student(0, 4), load_sampler(run, guidance=2.5)(0, 4)
    assert np.any(plain != guided)
    stage = Workdir.open(run).finished_stage()
    export.write(from_stage(Workdir.open(run), stage, make_mesh()), tmp_path / "export")
    again = load_sampler(tmp_path / "export", guidance=2.5)(0, 4)
    np.testing.assert_array_equal(again, guided)


def test_an_undistilled_teacher_is_guided_by_two_evaluations(run, tmp_path):
    teacher, guided = (load_sampler(run, 3, "teacher", guidance=w) for w in (None, 1.5))
    assert np.any(teacher(0, 4) != guided(0, 4))
    stage = plan(Workdir.open(run).config)[0]
    export.write(from_stage(Workdir.open(run), stage, make_mesh()), tmp_path / "export")
    again = load_sampler(tmp_path / "export", 3, guidance=1.5)(0, 4)
    np.testing.assert_array_equal(again, guided(0, 4))


@pytest.mark.parametrize("w", [-0.5, 4.5, float("nan")])
def test_guidance_out_of_range_is_refused(run, w):
    with pytest.raises(UserError, match=rf"guidance is {w}; .* must be from 0.0 to 4.0"):
        load_sampler(run, guidance=w)


def test_a_network_that_has_no_guidance_says_so(workdir):
    assert load_sampler(workdir, guidance=0.0).guidance == 0.0
    with pytest.raises(UserError, match="guidance is 1.5; this network has none"):
        load_sampler(workdir, guidance=1.5)


def test_a_chain_goes_on_from_a_guided_student_without_guiding_it_again(run, tmp_path):
    config = guided_config()
    config.match.updates, config.match.guidance = 0, ()
    config.distill.teacher, config.distill.start_steps = str(run / "student_0002"), 2
    with pytest.raises(UserError, match="w_emb/bias: ours none"):
        check(config, tmp_path / "a")
    config.model.guidance = (0.0, 4.0)
    setup = check(config, tmp_path / "b")
    assert setup.network.guidance == setup.teacher_network.guidance == (0.0, 4.0)
    config.distill.teacher = ""
    with pytest.raises(UserError, match=r"config.model.guidance is \(0.0, 4.0\); it must be \(\)"):
        check(config, tmp_path / "c")


def test_evaluations_at_w_are_rows_of_their_own(run):
    config = Workdir.open(run).config
    (row,) = evaluate_stage(config, Chosen(str(run), 1, guidance=2.0))
    assert row["guidance"] == 2.0
    assert read_rows(run / "evaluations.jsonl")[-1] == json.loads(json.dumps(row))
    refresh(run)
    page = (run / "report.html").read_text()
    assert "Against guidance. fd_pixels100_train of teacher, 4 steps at w 1: " in page
    assert "of student, 1 steps at w 2: " in page


def test_the_variant_for_guidance_measures_every_stage_at_every_w():
    config = digits_distill.get_config("guided")
    for stage in plan(config):
        known = (0.0, np.inf) if stage.name == "teacher" else config.match.guidance
        guided = Subject(stage, config.eval, (32,), None, known).guided()
        assert tuple(s.guidance for s in guided) == config.eval.guidance
