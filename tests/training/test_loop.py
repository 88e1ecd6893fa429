"""The loop's parts: compiled calls, and the logs."""

import errno

import jax
import numpy as np
import pytest
from tensorboardX.record_writer import RecordWriter

from diffusion_distill.data.sources import digits
from diffusion_distill.devices.sharding import make_mesh
from diffusion_distill.stages import plan
from diffusion_distill.storage.files import read_rows
from diffusion_distill.terminal.stop import StopSignal
from diffusion_distill.training.feed import Feed
from diffusion_distill.training.logs import MetricsLog
from diffusion_distill.training.loop import Job, call_spans, train
from diffusion_distill.training.optimizer import make_optimizer
from diffusion_distill.training.recorder import Recorder
from diffusion_distill.training.state import init_teacher
from diffusion_distill.training.step import Recipe
from diffusion_distill.training.update import make_update
from tests.conftest import tiny_config
from tests.training.networks import Toy


@pytest.mark.parametrize("start", [0, 1, 13, 20, 39])
@pytest.mark.parametrize(("per_call", "every"), [(1, 7), (10, 10), (10, 25), (7, 3), (50, 20)])
def test_calls_make_every_update_once_and_end_where_a_checkpoint_is_due(start, per_call, every):
    spans = list(call_spans(start, 40, per_call, every))
    made = [first + n for first, count in spans for n in range(count)]
    assert made == list(range(start, 40))
    ends = {first + count for first, count in spans}
    assert {step for step in range(start + 1, 40) if step % every == 0} <= ends
    assert all(count <= per_call for _, count in spans)


def test_calls_after_a_stop_are_those_of_a_run_never_stopped():
    whole, resumed = list(call_spans(0, 100, 10, 25)), list(call_spans(13, 100, 10, 25))
    assert resumed[1:] == [call for call in whole if call[0] >= 20]


@pytest.mark.parametrize("setting", ["jax_debug_nans", "jax_disable_jit"])
def test_a_healthy_stage_trains_under_what_looks_for_nans(setting, tmp_path):
    """In a batch of 2, some quarter of [0, 1] has no example: its loss is left out of the log."""
    config, mesh, source = tiny_config(), make_mesh(), digits()
    config.teacher.updates, config.train.batch_size, config.runtime.log_every_updates = 2, 2, 1
    stage = plan(config)[0]
    model, optimizer = Toy(source.num_classes), make_optimizer(config, stage)
    jax.config.update(setting, True)
    try:
        update = make_update(Recipe(model, config, stage, mesh))
        state = init_teacher(model, optimizer, jax.random.key(0), source.image_shape, mesh)
        job = Job(stage, config, mesh, update, None, Feed(source, mesh))
        train(job, state, Recorder(stage, config, tmp_path, 0), StopSignal())
    finally:
        jax.config.update(setting, False)
    rows = read_rows(tmp_path / "teacher/metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2]
    for row in rows:
        quarters = [row[name] for name in row if name.startswith("loss_q")]
        assert 1 <= len(quarters) <= 2
        assert np.mean(quarters) == pytest.approx(row["loss"])
        assert not any(name.startswith("examples") for name in row)


def test_rows_past_the_step_that_training_goes_on_from_are_dropped(tmp_path):
    log = MetricsLog(tmp_path, 0)
    for step in (1, 2, 3):
        log.write(step, {"loss": step / 4})
    log.close()
    log = MetricsLog(tmp_path, 2)
    log.write(3, {"loss": 9.0})
    log.close()
    assert read_rows(tmp_path / "metrics.jsonl") == [
        {"step": 1, "loss": 0.25}, {"step": 2, "loss": 0.5}, {"step": 3, "loss": 9.0},
    ]  # fmt: skip
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2


def test_a_full_disk_is_an_error_and_not_a_silence(tmp_path, monkeypatch):
    def full(self, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    log = MetricsLog(tmp_path, 0)
    monkeypatch.setattr(RecordWriter, "write", full)
    for step in (1, 2, 3):
        with pytest.raises(OSError, match="No space left"):
            log.write(step, {"loss": 1.0})
