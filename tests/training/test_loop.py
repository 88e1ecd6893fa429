"""The loop's parts: compiled calls, and the logs."""

import errno

import pytest
from tensorboardX.record_writer import RecordWriter

from diffusion_distill.storage.files import read_rows
from diffusion_distill.training.logs import MetricsLog
from diffusion_distill.training.loop import call_spans


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


def test_rows_past_the_step_that_training_goes_on_from_are_dropped(tmp_path):
    log = MetricsLog(tmp_path, 0)
    for step in (1, 2, 3):
        log.write(step, {"loss": step / 4, "loss_q1": float("nan")})
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
