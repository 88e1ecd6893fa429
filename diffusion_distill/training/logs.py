"""What a stage leaves of its training: metrics.jsonl, TensorBoard."""

import json
import time
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2, summary_pb2
from tensorboardX.record_writer import register_writer_factory

from diffusion_distill.errors import UserError
from diffusion_distill.storage.buckets import Growing, is_bucket
from diffusion_distill.storage.files import read_rows, write_rows
from diffusion_distill.terminal.console import say


class _InBucket:
    """How tensorboardX opens event files in a bucket: its own way asks for other credentials."""

    open = staticmethod(Growing)


register_writer_factory("gs", _InBucket)


class MetricsLog:
    """metrics.jsonl and TensorBoard events of one stage, written at once and in this thread.

    In a bucket both are kept in memory and written whole, each minute and before each checkpoint:
    what a kill costs is made again from the checkpoint on.

    Rows that an earlier start wrote past the step that training goes on from are dropped, so that
    the file reads like that of a run that was never stopped.
    """

    def __init__(self, directory: Path, start: int):
        path = directory / "metrics.jsonl"
        try:
            rows = read_rows(path)
        except UserError as error:
            path.replace(path.with_suffix(".damaged"))
            say(f"warning: {error}; it is set aside, and a new one begins")
            rows = []
        write_rows(path, [row for row in rows if row["step"] <= start])
        self._in_bucket = is_bucket(path)
        self._file = Growing(path, path.read_text()) if self._in_bucket else open(path, "a")
        self._flush_every = 60.0 if self._in_bucket else 10.0
        (directory / "tensorboard").mkdir(exist_ok=True)
        # Not SummaryWriter: its thread dies of a full disk, and then the next write waits forever.
        self._events = EventsWriter(str(directory / "tensorboard" / "events"), f".{start}")
        purge = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._event(start + 1, session_log=purge)
        self._flushed = time.monotonic() if self._in_bucket else 0.0

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """One row."""
        self._file.write(json.dumps({"step": step, **metrics}) + "\n")
        if not self._in_bucket:
            self._file.flush()
        values = [summary_pb2.Summary.Value(tag=n, simple_value=v) for n, v in metrics.items()]
        self._event(step, summary=summary_pb2.Summary(value=values))
        if time.monotonic() - self._flushed > self._flush_every:
            self.flush()

    def _event(self, step: int, **content) -> None:
        self._events.write_event(event_pb2.Event(wall_time=time.time(), step=step, **content))

    def flush(self) -> None:
        """Writes out what is buffered."""
        self._file.flush()
        self._events.flush()
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Writes out what is buffered, and lets go of the files."""
        self._file.close()
        self._events.close()
