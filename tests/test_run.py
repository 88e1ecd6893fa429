"""One whole tiny run, looked at from all sides."""

import dataclasses
import errno
import json
import re
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from diffusion_distill.data import sources
from diffusion_distill.errors import CheckpointError, NonFiniteError, Stopped, UserError
from diffusion_distill.generate import Sampler
from diffusion_distill.run import Programs, check, run_chain, run_config
from diffusion_distill.runs import checkpoints
from diffusion_distill.storage.files import read_npz, read_rows, write_rows
from diffusion_distill.terminal.stop import StopSignal
from diffusion_distill.training.optimizer import make_optimizer
from diffusion_distill.training.state import TrainState, init_student
from tests.conftest import tiny_config

STAGES = ["teacher", "student_0002", "student_0001"]
EACH_START = ("config.json", "stages.jsonl")  # written anew whenever a run is started


def ema_params(workdir, name):
    config = tiny_config()
    updates = config.teacher.updates if name == "teacher" else config.distill.updates
    setup = check(config, workdir)
    abstract = setup.abstract(setup.stages[name]).ema_params
    return checkpoints.load_ema_params(checkpoints.folder(workdir, name), updates, abstract)


def state_of(setup, name, step):
    whole = checkpoints.verify(checkpoints.folder(setup.workdir.path, name), step)
    return TrainState.of_trees(whole.trees(setup.abstract(setup.stages[name]).trees()))


def assert_same_bits(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_one_compilation_for_the_teacher_and_one_for_all_rounds(finished):
    assert finished[1].count("jit(update)") == 2


def test_one_compilation_for_each_sampler_at_all_steps_of_all_stages(finished):
    assert finished[1].count("jit(one_step)") == 2  # DDIM and ancestral


def test_every_stage_leaves_what_the_next_and_a_person_need(finished):
    workdir, _ = finished
    for name in STAGES:
        assert Image.open(workdir / name / "samples.png").size[0] > 100
        assert any((workdir / name / "tensorboard").iterdir())
        samples = read_npz(workdir / name / "samples.npz")
        assert (samples["images"].shape, samples["compared"]) == ((10, 8, 8, 1), 1797)
        rows = read_rows(workdir / name / "metrics.jsonl")
        assert {"step", "loss", "grad_norm", "learning_rate"} <= rows[-1].keys()
        assert rows[-1]["step"] == (12 if name == "teacher" else 6)
    rows = read_rows(workdir / "results.jsonl")
    assert [row["stage"] for row in rows] == STAGES
    assert [row["images_seen"] for row in rows] == [12 * 16, 6 * 16, 6 * 16]
    teacher = rows[0]
    assert {n: list(v) for n, v in teacher["baselines"].items()} == {
        "ddim": ["4", "2", "1"], "ancestral": ["4", "2", "1"],
    }  # fmt: skip
    assert teacher["baselines"]["ddim"]["4"] == teacher["fd_pixels100_train"]
    assert all(0 < row["fd_pixels100_train"] < 100 for row in rows)
    assert "student_0001" in (workdir / "results.txt").read_text()
    assert [row["name"] for row in read_rows(workdir / "stages.jsonl")] == STAGES
    page = (workdir / "report.html").read_text()
    assert "3 of 3 stages are trained and measured." in page
    assert "Missing or damaged" not in page
    assert any((workdir / "report").glob("*.png"))


def test_a_finished_run_is_left_as_it_is(finished, capsys):
    workdir, _ = finished
    before = {p: p.stat().st_mtime_ns for p in workdir.rglob("*") if p.name not in EACH_START}
    run_config(tiny_config(), workdir)
    after = {p: p.stat().st_mtime_ns for p in workdir.rglob("*") if p.name not in EACH_START}
    before.pop(workdir, None), after.pop(workdir, None)
    assert after == before


def test_what_a_stop_kept_from_the_results_is_made_at_the_next_start(workdir):
    names = ("results.txt", "report.html")
    before = (workdir / "results.txt").read_text()
    for name in names:
        (workdir / name).unlink()
    run_config(tiny_config(), workdir)
    assert (workdir / "results.txt").read_text() == before
    assert "student_0001" in (workdir / "report.html").read_text()


def test_students_start_from_the_averaged_weights_with_a_fresh_optimiser(finished):
    workdir, _ = finished
    teacher = ema_params(workdir, "teacher")
    setup = check(tiny_config(), workdir)
    optimizer = make_optimizer(setup.config, setup.stages["student_0002"])
    state = init_student(teacher, optimizer, setup.mesh)
    assert_same_bits(state.params, teacher)
    assert_same_bits(state.ema_params, teacher)
    assert_same_bits(state.opt_state, optimizer.init(teacher))
    assert state.step == 0


def test_in_a_run_a_student_is_given_its_teachers_averaged_weights(tmp_path):
    """With a learning rate of 0 it keeps what it was given, to the bit."""
    config = tiny_config()
    config.distill.learning_rate = 0.0
    config.distill.end_steps = 2
    setup = run_config(config, tmp_path / "run")
    teacher, student = state_of(setup, "teacher", 12), state_of(setup, "student_0002", 6)
    assert_same_bits(student.params, teacher.ema_params)
    assert any(
        np.any(np.asarray(a) != b)
        for a, b in zip(
            jax.tree.leaves(teacher.params), jax.tree.leaves(teacher.ema_params), strict=True
        )
    )


def test_learning_rate_of_a_student_falls_to_its_last_update(finished):
    workdir, _ = finished
    (row,) = [r for r in read_rows(workdir / "student_0002/metrics.jsonl") if r["step"] == 6]
    assert row["learning_rate"] == pytest.approx(tiny_config().distill.learning_rate / 6)


def test_a_damaged_last_checkpoint_is_made_again_to_the_bit(workdir, capsys):
    before = ema_params(workdir, "teacher")
    student = ema_params(workdir, "student_0002")
    next((workdir / "teacher/checkpoints/12/ema_params/d").iterdir()).write_bytes(b"\0")
    results = (workdir / "results.jsonl").read_text()
    run_config(tiny_config(), workdir)
    assert (workdir / "results.jsonl").read_text() == results
    said = capsys.readouterr().out
    assert "teacher/checkpoints/12 cannot be used" in said
    assert "going on from" in said
    assert_same_bits(ema_params(workdir, "teacher"), before)
    assert_same_bits(ema_params(workdir, "student_0002"), student)
    steps = [row["step"] for row in read_rows(workdir / "teacher/metrics.jsonl")]
    assert steps == sorted(set(steps))


def test_a_student_needs_no_more_of_its_teacher_than_the_averaged_weights(workdir):
    """The rest of a finished stage may be removed to save space."""
    before = ema_params(workdir, "student_0001")
    shutil.rmtree(workdir / "student_0002/checkpoints/6/state")
    shutil.rmtree(workdir / "student_0001")
    rows = read_rows(workdir / "results.jsonl")[:2]
    (workdir / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run_config(tiny_config(), workdir)
    assert_same_bits(ema_params(workdir, "student_0001"), before)


def test_a_last_checkpoint_that_somebody_removed_stays_removed(workdir, capsys):
    shutil.rmtree(workdir / "teacher/checkpoints")
    run_config(tiny_config(), workdir)
    assert "teacher: measured; its last checkpoint is gone" in capsys.readouterr().out
    assert not (workdir / "teacher/checkpoints").exists()


def test_two_processes_do_not_share_a_workdir(workdir):
    setup = check(tiny_config(), workdir)
    with setup.workdir.lock(), pytest.raises(UserError, match="in use by another process"):
        run_config(tiny_config(), workdir)


def test_asked_to_stop_while_measuring_it_stops_within_a_batch_and_goes_on(workdir, monkeypatch):
    rows = read_rows(workdir / "results.jsonl")
    write_rows(workdir / "results.jsonl", rows[:2])
    grid = (workdir / "student_0001/samples.png").read_bytes()
    setup, stop = check(tiny_config(), workdir), StopSignal()
    made, on_devices = [], Sampler.on_devices

    def stopping(sampler, *arguments):
        made.append(arguments)
        if len(made) == 2:  # the first batch is of samples.png
            stop.signum = 15
        return on_devices(sampler, *arguments)

    monkeypatch.setattr(Sampler, "on_devices", stopping)
    with pytest.raises(Stopped, match="signal 15"):
        run_chain(setup, Programs(setup), stop)
    assert len(made) == 2
    assert read_rows(workdir / "results.jsonl") == rows[:2]
    run_config(tiny_config(), workdir)
    again = read_rows(workdir / "results.jsonl")
    again[2]["seconds"] = rows[2]["seconds"]  # of training, from the checkpoint: not quite its end
    assert again == rows
    assert (workdir / "student_0001/samples.png").read_bytes() == grid
    assert not (workdir / "student_0001/measuring").exists()


def test_a_damaged_log_is_set_aside_and_not_in_the_way(workdir, capsys):
    shutil.rmtree(workdir / "student_0001/checkpoints")
    rows = read_rows(workdir / "results.jsonl")[:2]
    (workdir / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    log = workdir / "student_0001/metrics.jsonl"
    log.write_text("\0\0\n" + log.read_text())
    run_config(tiny_config(), workdir)
    assert "metrics.jsonl is damaged in line 1" in capsys.readouterr().out
    assert [row["step"] for row in read_rows(log)] == [6]
    assert (workdir / "student_0001/metrics.damaged").exists()


def test_another_config_is_refused_with_what_differs(finished):
    config = tiny_config()
    config.train.batch_size = 8
    config.model.emb_channels = 32
    with pytest.raises(UserError) as error:
        check(config, finished[0])
    differing = "config.model.emb_channels: 16 -> 32; config.train.batch_size: 16 -> 8"
    assert f"of another config: {differing}." in str(error.value)


def test_how_to_run_may_differ_between_two_starts(finished):
    config = tiny_config()
    config.runtime.sampler_batch_size = 10
    run_config(config, finished[0])


def test_a_folder_of_other_things_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="no config.json: it is not the workdir of a run"):
        check(tiny_config(), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_network_that_does_not_fit_the_data_is_refused_before_anything_is_written(tmp_path):
    config = tiny_config()
    config.model.channel_multipliers = (1, 1, 1, 1, 1)
    with pytest.raises(UserError, match="8x8 pixels do not halve 4 times"):
        check(config, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_labels_are_refused_where_the_data_has_none(tmp_path, monkeypatch):
    plain = dataclasses.replace(sources.digits(), num_classes=0)
    monkeypatch.setitem(sources.SOURCES, "digits", lambda config: plain)
    with pytest.raises(UserError, match="class_conditional is True, but digits has no labels"):
        check(tiny_config(), tmp_path / "run")


def test_what_is_not_finite_stops_the_run_and_is_never_saved(tmp_path):
    config = tiny_config()
    config.train.checkpoint_every = 1
    config.teacher.learning_rate = 1e38
    with pytest.raises(NonFiniteError) as error:
        run_config(config, tmp_path / "run")
    kept = re.search(
        r"teacher: loss .* at step (\d+) of 12; last good checkpoint: (.*)", str(error.value)
    )
    step = int(kept[1])
    last = (
        "none was saved before it"
        if step == 1
        else f"{tmp_path}/run/teacher/checkpoints/{step - 1}"
    )
    assert kept[2] == last
    directory = checkpoints.folder(tmp_path / "run", "teacher")
    setup = check(config, tmp_path / "run")
    for step in checkpoints.steps(directory):
        state = state_of(setup, "teacher", step)
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(state))


def test_asked_to_stop_on_a_full_disk_it_does_not_say_that_it_saved(tmp_path, monkeypatch):
    def full(path, below):
        stop.signum = 15
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    config, stop = tiny_config(), StopSignal()
    config.train.checkpoint_every = 1
    setup = check(config, tmp_path / "run")
    monkeypatch.setattr(checkpoints, "_checksums", full)
    with pytest.raises(CheckpointError, match="could not be written: .*No space left"):
        run_chain(setup, Programs(setup), stop)


def test_a_full_disk_is_foreseen(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, 1000))
    with pytest.raises(UserError, match="has 0 MB free; the checkpoints of teacher need"):
        run_config(tiny_config(), tmp_path / "run")
