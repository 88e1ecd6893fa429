"""The loop of one stage: from where it stands to its last update."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from diffusion_distill.devices.distributed import fetch
from diffusion_distill.devices.sharding import place, replicated
from diffusion_distill.diffusion.samplers import seed_key
from diffusion_distill.errors import Stopped
from diffusion_distill.stages import Stage
from diffusion_distill.terminal.stop import StopSignal
from diffusion_distill.training.feed import Feed
from diffusion_distill.training.recorder import Recorder
from diffusion_distill.training.state import TrainState
from diffusion_distill.training.step import Round


def call_spans(
    start: int, end: int, updates_per_call: int, every: int
) -> Iterator[tuple[int, int]]:
    """(first step, number of updates) of each compiled call from start to end.

    No call crosses a multiple of `every` (where a checkpoint is due), of `updates_per_call` or the
    end: wherever a run was stopped, the calls after it are those it would have made.
    """
    while start < end:
        border = min(end, (start // every + 1) * every)
        count = min(updates_per_call - start % updates_per_call, border - start)
        yield start, count
        start += count


def updates_per_call(config: ConfigDict, platform: str) -> int:
    """The updates in one compiled call, by config.runtime and the devices' platform."""
    return config.runtime.updates_per_call or (1 if platform == "cpu" else 10)


@dataclasses.dataclass(frozen=True)
class Job:
    """What training a stage takes beside its state."""

    stage: Stage
    config: ConfigDict  # the run's
    mesh: Mesh
    update: Callable  # the compiled step, of `make_update`
    # averaged weights of the stage that it learns from; None for the teacher
    teacher_params: dict | None
    feed: Feed  # of the data set's batches

    def batches(self, start: int) -> Iterator[tuple]:
        """What each compiled call from update `start` on reads; see `Feed.batches`."""
        config, stage = self.config, self.stage
        per_call = updates_per_call(config, jax.default_backend())
        spans = call_spans(start, stage.updates, per_call, config.train.checkpoint_every)
        return self.feed.batches(config.seed, stage.rng_id, config.train.batch_size, spans)

    def constants(self) -> tuple[jax.Array, Round]:
        """The key of the stage's randomness, and its round, on every device."""
        key = jax.random.fold_in(seed_key(self.config.seed), self.stage.rng_id)
        return place((key, Round.of(self.stage)), replicated(self.mesh))


def train(job: Job, state: TrainState, recorder: Recorder, stop: StopSignal) -> TrainState:
    """Makes the updates that are left of a stage, saving as the config says and at the end.

    The device is never waited for inside the loop but for metrics, one call late.

    Args:
        state: where the stage stands; donated.
        recorder: closed at the end.

    Raises:
        Stopped: `stop` was set; the state was saved first.
        NonFiniteError: a loss or gradient is not finite. Nothing later than it was saved.
        CheckpointError: a checkpoint could not be written.
    """
    key, this_round = job.constants()
    every, end = job.config.train.checkpoint_every, job.stage.updates
    start = int(fetch(state.step))
    with recorder, contextlib.closing(job.batches(start)) as batches:
        stop.raise_if_asked()
        late, guard = None, _transfer_guard()
        for first, count, picks in batches:
            with jax.transfer_guard(guard):
                given = job.teacher_params, job.feed.data, picks, key, this_round
                state, metrics = job.update(state, *given)
            if late is not None:
                recorder.take(*late)
            late = first, metrics
            recorder.check()
            step = first + count
            stopping = stop.asked() is not None  # looked at once: it may change at any time
            if step % every == 0 or step == end or stopping:
                recorder.take(*late)  # nothing that is not finite is ever saved
                late = None
                recorder.save(step, state)
            if stopping:
                recorder.wait()  # only what is written is saved
                raise Stopped(stop.signum)
    return state


def _transfer_guard() -> str:
    """What a step may move between host and device: nothing, or it is slow without a word.

    But with JAX_DEBUG_NANS each result is looked at, and with JAX_DISABLE_JIT nothing is compiled.
    """
    looked_into = ("jax_debug_nans", "jax_debug_infs", "jax_disable_jit")
    return "allow" if any(getattr(jax.config, name) for name in looked_into) else "disallow"
