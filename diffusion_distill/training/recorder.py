"""What training leaves: checkpoints, metrics, lines of progress; and what must not be saved."""

import contextlib
import math
import time
from pathlib import Path

import jax
from ml_collections import ConfigDict

from diffusion_distill.config import to_dict
from diffusion_distill.devices import distributed
from diffusion_distill.errors import CheckpointError, NonFiniteError
from diffusion_distill.runs import checkpoints
from diffusion_distill.stages import Stage
from diffusion_distill.terminal.console import say
from diffusion_distill.terminal.progress import Progress, RunLeft, no_run
from diffusion_distill.training.logs import MetricsLog
from diffusion_distill.training.state import TrainState

# Metrics that stop the run where they are not finite. The update's norm is among them because
# finite gradients can still make a step that is not, and no such weights may reach a checkpoint.
MUST_BE_FINITE = ("loss", "grad_norm", "update_norm")


def _with_values(row: dict[str, float]) -> dict[str, float]:
    """The metrics but those of no example: a loss over a part of the batch that has none."""
    counts = {name: row[name] for name in row if name.startswith("examples_")}
    empty = {name.replace("examples_", "loss_") for name, count in counts.items() if not count}
    return {name: value for name, value in row.items() if name not in counts.keys() | empty}


class Recorder:
    """Takes down the training of one stage; a `with`, which waits for what is being written."""

    def __init__(
        self,
        stage: Stage,
        config: ConfigDict,
        workdir: Path,
        start: int,
        seconds: float = 0.0,
        run_left: RunLeft = no_run,
    ):
        """Opens the stage's log and its checkpoints; `start` updates took `seconds` already."""
        self._began = time.monotonic() - seconds
        self._stage, self._every = stage, config.runtime.log_every_updates
        self._meta = {"config": to_dict(config), "stage": vars(stage)}
        self._directory = checkpoints.folder(workdir, stage.name)
        every, images = config.runtime.log_every_seconds, config.train.batch_size
        self._progress = Progress(stage.name, stage.updates, "step", every, images, run_left)
        self._progress.skip(start)
        self._writer = checkpoints.Writer(self._directory, config.train.checkpoints_kept)
        is_main = distributed.is_main()
        self._log = MetricsLog(workdir / stage.name, start) if is_main else None

    @property
    def seconds(self) -> float:
        """Spent on the stage by now, earlier starts included."""
        return time.monotonic() - self._began

    def take(self, first: int, metrics: dict[str, jax.Array]) -> None:
        """Takes in the metrics of the call after `first` updates; waits until it is made.

        Raises:
            NonFiniteError: one of MUST_BE_FINITE is not; names the last good checkpoint.
        """
        columns = jax.device_get(metrics)  # [K] each
        for k in range(len(columns["loss"])):
            step, row = first + k + 1, {name: float(x[k]) for name, x in columns.items()}
            if not all(math.isfinite(row[name]) for name in MUST_BE_FINITE):
                raise NonFiniteError(self._not_finite(step, row))
            if self._log and (step % self._every == 0 or step == self._stage.updates):
                self._log.write(step, _with_values(row))
        self._progress.update(step, f"loss {row['loss']:.4f}")

    def save(self, step: int, state: TrainState) -> None:
        """Starts to write a checkpoint; see `checkpoints.Writer.save`."""
        if self._log:
            self._log.flush()  # a run that goes on from here has no row before it to make again
        self._writer.save(step, state.trees(), self._meta | {"seconds": self.seconds})

    def check(self) -> None:
        """Raises CheckpointError where one is known by now not to have been written."""
        self._writer.check()

    def wait(self) -> None:
        """Waits until the last checkpoint is written; raises CheckpointError where it is not."""
        self._writer.wait()

    def __enter__(self) -> "Recorder":
        self._progress.__enter__()
        return self

    def __exit__(self, kind, error, traceback) -> None:
        self._progress.__exit__(kind, error, traceback)
        for resource in (self._writer, self._log):
            try:
                if resource is not None:
                    resource.close()
            except Exception as failure:
                # Where training has failed, that is what counts, and not what fails after it.
                error = error or failure
        if error is not None and kind is None:
            raise error

    def _not_finite(self, step: int, row: dict[str, float]) -> str:
        with contextlib.suppress(CheckpointError):
            self._writer.wait()
        good = checkpoints.newest_whole(self._directory, say)
        kept = "none was saved before it" if good is None else str(good.path)
        found = ", ".join(f"{name} {row[name]}" for name in MUST_BE_FINITE)
        return (
            f"{self._stage.name}: {found} at step {step} of {self._stage.updates}; last good "
            f"checkpoint: {kept}"
        )
