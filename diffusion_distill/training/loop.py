"""The loop of one stage: from its newest whole checkpoint to its last update."""

import contextlib
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh

from diffusion_distill import config as configs
from diffusion_distill.devices import distributed
from diffusion_distill.devices.distributed import fetch, several
from diffusion_distill.devices.sharding import place, replicated
from diffusion_distill.errors import CheckpointError, NonFiniteError, Stopped
from diffusion_distill.runs import checkpoints
from diffusion_distill.stages import Stage
from diffusion_distill.terminal.console import say, say_in_handler
from diffusion_distill.terminal.progress import Progress, RunLeft, no_run
from diffusion_distill.training.feed import Feed
from diffusion_distill.training.logs import MetricsLog
from diffusion_distill.training.state import TrainState
from diffusion_distill.training.step import Round

# Metrics that stop the run where they are not finite. The update's norm is among them because
# finite gradients can still make a step that is not, and no such weights may reach a checkpoint.
MUST_BE_FINITE = ("loss", "grad_norm", "update_norm")


class StopSignal:
    """Turns SIGTERM and Ctrl-C into a flag for the time of a `with`: training saves, then stops.

    A second signal acts as it would have without this. Of several processes any may be the one
    that gets it; there SIGTERM is JAX's own, which tells the others.
    """

    signum: int | None = None

    def __enter__(self) -> "StopSignal":
        handled = [signal.SIGINT] if several() else [signal.SIGTERM, signal.SIGINT]
        self._before = {s: signal.signal(s, self._note) for s in handled}
        return self

    def asked(self) -> int | None:
        """The signal that asks to stop now; None to go on.

        The same answer in all of several processes, which call it equally often.
        """
        if distributed.reached_preemption():
            self.signum = signal.SIGTERM
            say("stopping: what is trained is saved first")
        return self.signum

    def _note(self, signum, frame):
        self._reset()
        if several():
            os.kill(os.getpid(), signal.SIGTERM)
            return
        self.signum = signum
        say_in_handler("stopping: what is trained is saved first")

    def _reset(self):
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def __exit__(self, *exception):
        self._reset()


def calls(start: int, end: int, updates_per_call: int, every: int) -> Iterator[tuple[int, int]]:
    """(first step, number of updates) of each compiled call from start to end.

    No call crosses a multiple of `every` (where a checkpoint is due), of `updates_per_call` or the
    end: wherever a run was stopped, the calls after it are those it would have made.
    """
    while start < end:
        border = min(end, (start // every + 1) * every)
        count = min(updates_per_call - start % updates_per_call, border - start)
        yield start, count
        start += count


def updates_per_call(config: ml_collections.ConfigDict, platform: str) -> int:
    """The updates in one compiled call, by config.runtime and the devices' platform."""
    return config.runtime.updates_per_call or (1 if platform == "cpu" else 10)


def train(
    stage: Stage,
    config: ml_collections.ConfigDict,
    workdir: Path,
    state: TrainState,
    teacher_params: dict | None,
    feed: Feed,
    update: Callable,
    mesh: Mesh,
    seconds: float,
    stop: StopSignal,
    run_left: RunLeft = no_run,
) -> tuple[TrainState, float]:
    """Makes the updates that are left of a stage, saving as the config says and at the end.

    The device is never waited for inside the loop but for metrics, one call late.

    Args:
        stage: which.
        config: the run's config.
        workdir: of the run.
        state: where the stage stands; donated.
        teacher_params: averaged weights of the stage it learns from; None for the teacher.
        feed: of the data set's batches.
        update: the compiled step, of `make_update`.
        mesh: the devices.
        seconds: spent on the stage before.
        stop: looked at after each call.
        run_left: see `Progress`.

    Returns:
        The state at the end, which is saved, and the seconds spent on the stage in all.

    Raises:
        Stopped: `stop` was set; the state was saved first.
        NonFiniteError: a loss or gradient is not finite. Nothing later than it was saved.
    """
    start = int(fetch(state.step))
    began = time.monotonic() - seconds
    directory = checkpoints.folder(workdir, stage.name)
    batch_size = config.train.batch_size
    per_call = updates_per_call(config, jax.default_backend())

    key = jax.random.fold_in(jax.random.key(config.seed), stage.rng_id)
    round = Round(np.int32(stage.num_steps), np.int32(stage.updates))
    key, round = place((key, round), replicated(mesh))
    fields = {"config": configs.to_dict(config), "stage": vars(stage)}

    every_seconds = config.runtime.log_every_seconds
    progress = Progress(stage.name, stage.updates, "step", every_seconds, batch_size, run_left)
    progress.skip(start)
    writer = checkpoints.Writer(directory, config.train.checkpoints_kept)
    log = MetricsLog(workdir / stage.name, start) if distributed.is_main() else None

    def settle(first: int, metrics: dict[str, jax.Array]) -> None:
        """Takes in the metrics of one call; waits until the device has made it."""
        for offset, row in enumerate(_rows(jax.device_get(metrics))):
            step = first + offset + 1
            if not all(math.isfinite(row[name]) for name in MUST_BE_FINITE):
                with contextlib.suppress(CheckpointError):
                    writer.wait()
                raise NonFiniteError(_not_finite(stage, step, row, directory))
            if log and (step % config.runtime.log_every_updates == 0 or step == stage.updates):
                log.write(step, row)
        progress.update(step, f"loss {row['loss']:.4f}")

    def save(step: int) -> None:
        if log:
            log.flush()  # a run that goes on from here has no row before it to make again
        writer.save(state, step, fields | {"seconds": time.monotonic() - began})

    with contextlib.ExitStack() as stack:
        if log:
            stack.push(_close(log))
        stack.push(_close(writer))
        if stop.asked() is not None:
            raise Stopped(stop.signum)
        stack.enter_context(progress)
        late = None
        every = config.train.checkpoint_every
        left = calls(start, stage.updates, per_call, every)
        batches = feed.calls(config.seed, stage.rng_id, batch_size, left)
        stack.push(_close(batches))
        for first, count, rows in batches:
            with jax.transfer_guard("disallow"):
                state, metrics = update(state, teacher_params, feed.data, rows, key, round)
            if late is not None:
                settle(*late)
            late = first, metrics
            writer.check()
            step = first + count
            stopping = stop.asked() is not None  # looked at once: it may change at any time
            if step % every == 0 or step == stage.updates or stopping:
                settle(*late)  # nothing that is not finite is ever saved
                late = None
                save(step)
            if stopping:
                writer.wait()  # only what is written is saved
                raise Stopped(stop.signum)
    return state, time.monotonic() - began


def _close(resource) -> Callable:
    """An exit that closes; where the loop has failed, that failure is what counts, not another."""

    def leave(kind, error, traceback) -> None:
        try:
            resource.close()
        except Exception:  # of any kind: raised where nothing else failed, dropped where it did
            if error is None:
                raise

    return leave


def _rows(metrics: dict[str, np.ndarray]) -> list[dict[str, float]]:
    """Metrics of shape [K] each -> K rows of floats."""
    count = len(metrics["loss"])
    return [{name: float(values[k]) for name, values in metrics.items()} for k in range(count)]


def _not_finite(stage: Stage, step: int, row: dict[str, float], directory: Path) -> str:
    good = checkpoints.newest_whole(directory, say)
    kept = "none was saved before it" if good is None else str(good.path)
    return (
        f"{stage.name}: {', '.join(f'{name} {row[name]}' for name in MUST_BE_FINITE)} at step "
        f"{step} of {stage.updates}; last good checkpoint: {kept}"
    )
