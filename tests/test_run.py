"""One whole tiny run, looked at from all sides."""

import errno
import json
import shutil

import flax
import jax
import numpy as np
import pytest
from PIL import Image

from diffusion_distill.errors import CheckpointError, NonFiniteError, Stopped, UserError
from diffusion_distill.generate import Sampler
from diffusion_distill.interop.load import load_sampler
from diffusion_distill.run import check, run_chain, run_config
from diffusion_distill.runs import checkpoints
from diffusion_distill.storage.files import read_npz, read_rows, write_rows
from diffusion_distill.terminal.stop import StopSignal
from diffusion_distill.training.optimizer import make_optimizer
from diffusion_distill.training.state import TrainState
from tests.conftest import set_otherwise, tiny_config

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


def test_a_finished_run_is_left_as_it_is(workdir):
    before = {p: p.stat().st_mtime_ns for p in workdir.rglob("*") if p.name not in EACH_START}
    run_config(tiny_config(), workdir)
    after = {p: p.stat().st_mtime_ns for p in workdir.rglob("*") if p.name not in EACH_START}
    before.pop(workdir, None), after.pop(workdir, None)
    assert after == before


def test_training_does_not_depend_on_how_jax_is_set(finished, go_on, tmp_path):
    """First weights, batches, noise, and what is measured."""
    config = tiny_config()
    config.distill.end_steps = config.distill.start_steps  # the teacher alone
    with set_otherwise(), flax.config.temp_flip_flag("fix_rng_separator", True):
        go_on(tmp_path / "run", config)
    both = tmp_path / "run", finished[0]
    found, expected = (load_sampler(path, stage="teacher").fingerprint() for path in both)
    assert found == expected
    found, expected = (read_rows(path / "results.jsonl")[0] for path in both)
    assert found["fd_pixels100_train"] == expected["fd_pixels100_train"]


def test_what_a_stop_kept_from_the_results_is_made_at_the_next_start(workdir, go_on):
    names = ("results.txt", "report.html")
    before = (workdir / "results.txt").read_text()
    for name in names:
        (workdir / name).unlink()
    go_on(workdir)
    assert (workdir / "results.txt").read_text() == before
    assert "student_0001" in (workdir / "report.html").read_text()


def test_a_student_starts_from_its_teachers_averaged_weights_with_a_fresh_optimiser(
    workdir, programs, monkeypatch
):
    """In a run that has its teacher, just before the first update."""

    class Seen(Exception):
        pass

    def train(job, state, *rest):
        raise Seen(job, state)

    shutil.rmtree(workdir / "student_0002")
    write_rows(workdir / "results.jsonl", read_rows(workdir / "results.jsonl")[:1])
    monkeypatch.setattr("diffusion_distill.run.train", train)
    setup = check(tiny_config(), workdir)
    with pytest.raises(Seen) as seen:
        run_chain(setup, programs, StopSignal())
    job, state = seen.value.args
    teacher = state_of(setup, "teacher", 12)
    optimizer = make_optimizer(setup.config, setup.stages["student_0002"])
    assert job.stage.name == "student_0002"
    assert_same_bits(job.teacher_params, teacher.ema_params)
    assert_same_bits(state.params, teacher.ema_params)
    assert_same_bits(state.ema_params, teacher.ema_params)
    assert_same_bits(state.opt_state, optimizer.init(teacher.ema_params))
    assert state.step == 0
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


def test_a_damaged_last_checkpoint_is_made_again_to_the_bit(workdir, go_on, capsys):
    before = ema_params(workdir, "teacher")
    student = ema_params(workdir, "student_0002")
    next((workdir / "teacher/checkpoints/12/ema_params/d").iterdir()).write_bytes(b"\0")
    results = (workdir / "results.jsonl").read_text()
    go_on(workdir)
    assert (workdir / "results.jsonl").read_text() == results
    said = capsys.readouterr().out
    assert "teacher/checkpoints/12 cannot be used" in said
    assert "going on from" in said
    assert_same_bits(ema_params(workdir, "teacher"), before)
    assert_same_bits(ema_params(workdir, "student_0002"), student)
    steps = [row["step"] for row in read_rows(workdir / "teacher/metrics.jsonl")]
    assert steps == sorted(set(steps))


def test_a_student_needs_no_more_of_its_teacher_than_the_averaged_weights(workdir, go_on):
    """The rest of a finished stage may be removed to save space."""
    before = ema_params(workdir, "student_0001")
    shutil.rmtree(workdir / "student_0002/checkpoints/6/state")
    shutil.rmtree(workdir / "student_0001")
    rows = read_rows(workdir / "results.jsonl")[:2]
    (workdir / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    go_on(workdir)
    assert_same_bits(ema_params(workdir, "student_0001"), before)


def test_a_last_checkpoint_that_somebody_removed_stays_removed(workdir, go_on, capsys):
    shutil.rmtree(workdir / "teacher/checkpoints")
    go_on(workdir)
    assert "teacher: measured; its last checkpoint is gone" in capsys.readouterr().out
    assert not (workdir / "teacher/checkpoints").exists()


def test_asked_to_stop_while_measuring_it_stops_within_a_batch_and_goes_on(
    workdir, go_on, monkeypatch
):
    rows = read_rows(workdir / "results.jsonl")
    write_rows(workdir / "results.jsonl", rows[:2])
    grid = (workdir / "student_0001/samples.png").read_bytes()
    stop = StopSignal()
    made, on_devices = [], Sampler.on_devices

    def stopping(sampler, *arguments, **named):
        made.append(arguments)
        if len(made) == 2:  # the first batch is of samples.png
            stop.signum = 15
        return on_devices(sampler, *arguments, **named)

    monkeypatch.setattr(Sampler, "on_devices", stopping)
    with pytest.raises(Stopped, match="signal 15"):
        go_on(workdir, stop=stop)
    assert len(made) == 2
    assert read_rows(workdir / "results.jsonl") == rows[:2]
    go_on(workdir)
    again = read_rows(workdir / "results.jsonl")
    again[2]["seconds"] = rows[2]["seconds"]  # of training, from the checkpoint: not quite its end
    assert again == rows
    assert (workdir / "student_0001/samples.png").read_bytes() == grid
    assert not (workdir / "student_0001/measuring").exists()


def test_a_damaged_log_is_set_aside_and_not_in_the_way(workdir, go_on, capsys):
    shutil.rmtree(workdir / "student_0001/checkpoints")
    rows = read_rows(workdir / "results.jsonl")[:2]
    (workdir / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    log = workdir / "student_0001/metrics.jsonl"
    log.write_text("\0\0\n" + log.read_text())
    go_on(workdir)
    assert "metrics.jsonl is damaged in line 1" in capsys.readouterr().out
    assert [row["step"] for row in read_rows(log)] == [6]
    assert (workdir / "student_0001/metrics.damaged").exists()


def test_a_measured_teacher_that_is_gone_is_not_trained_again_for_its_student(workdir, programs):
    """A copy of a run without its checkpoints: training them again would take days, unasked."""
    for stage in ("teacher", "student_0002"):
        shutil.rmtree(workdir / stage / "checkpoints")
    shutil.rmtree(workdir / "student_0001")
    rows = read_rows(workdir / "results.jsonl")
    write_rows(workdir / "results.jsonl", rows[:-1])
    with pytest.raises(UserError, match="student_0002/checkpoints has no checkpoint any more"):
        run_chain(check(tiny_config(), workdir), programs, StopSignal())
    assert not any((workdir / "teacher").glob("checkpoints/*"))


@pytest.mark.parametrize("step", [4, 6])
def test_what_is_not_finite_stops_the_run_and_is_never_saved(tmp_path, programs, monkeypatch, step):
    """Weights overflow before an update, which finds out; a checkpoint is due at step 4."""
    setup, made = check(tiny_config(), tmp_path / "run"), []
    update = programs.update(setup.stages["teacher"])

    def overflowing(state, *given):
        made.append(1)
        if len(made) == step:
            with jax.transfer_guard("allow"):
                state = state.replace(params=jax.tree.map(lambda p: p * 1e38, state.params))
        return update(state, *given)

    monkeypatch.setitem(programs._updates, "teacher", overflowing)
    with pytest.raises(NonFiniteError) as error:
        run_chain(setup, programs, StopSignal())
    directory = checkpoints.folder(tmp_path / "run", "teacher")
    saved = checkpoints.steps(directory)
    assert saved == ([4] if step == 6 else [])
    kept = f"{directory}/4" if saved else "none was saved before it"
    assert f"at step {step} of 12; last good checkpoint: {kept}" in str(error.value)
    assert str(error.value).startswith("teacher: loss ")
    for kept_step in saved:
        state = state_of(setup, "teacher", kept_step)
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(state))


def test_asked_to_stop_on_a_full_disk_it_does_not_say_that_it_saved(
    tmp_path, programs, monkeypatch
):
    def full(path, *given):
        stop.signum = 15
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    stop = StopSignal()
    setup = check(tiny_config(), tmp_path / "run")
    monkeypatch.setattr(checkpoints, "_checksums", full)
    with pytest.raises(CheckpointError, match="could not be written: .*No space left"):
        run_chain(setup, programs, stop)
