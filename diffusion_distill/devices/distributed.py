"""Several processes that work as one: how they find each other, agree, and end together.

All run the same program in step. Process 0 talks and writes files; what it reads or decides
reaches the others by `on_main`. With one process everything here does nothing, at no cost.
"""

import contextlib
import functools
import itertools
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator

import jax
import numpy as np

# JAX's own knowledge, which it has no public name for: whom Slurm and Open MPI have started, and
# whether libtpu and TPU chips are there.
from jax._src import cloud_tpu_init, clusters
from jax.experimental import multihost_utils

from diffusion_distill import errors
from diffusion_distill.errors import UserError

INITIALIZATION_TIMEOUT = 300  # seconds within which all processes must have come
# Seconds more that process 0 has, so that no other loses it while it waits; JAX, which ends a
# process with a stack of C++, has twice as many.
GRACE = 30
SHUTDOWN_TIMEOUT = 60  # seconds that a process that is done waits for the others
PATIENCE = 6 * 3600  # seconds to wait for process 0: it may read checkpoints; a dead one ends it

# Launchers: environment variable of the number of processes -> what JAX knows of the launcher.
_LAUNCHERS = {
    "SLURM_STEP_NUM_TASKS": clusters.SlurmCluster,
    "OMPI_COMM_WORLD_SIZE": clusters.OmpiCluster,
}
_OPEN_MPI_4 = "OMPI_MCA_orte_hnp_uri"  # where JAX looks for the address; Open MPI 5 has it no more

_ERRORS = {kind.__name__: kind for kind in (UserError, errors.CheckpointError, OSError)}
_LONGEST = 1000  # characters of a message that is handed on
_ROOM = 16 * _LONGEST  # bytes that an error then takes at most: JSON writes some as 12

_waits = itertools.count()  # a number for each, the same in all processes
_looks = itertools.count(1)  # as many calls of `reached_preemption`
_alone = False  # whether this process is inside `on_main`


def initialize(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    heartbeat_timeout: int = 60,
    preemption: bool = True,
) -> None:
    """Joins the other processes of this start, if there are any. Before anything else of JAX.

    Without arguments they are found by themselves on a Cloud TPU and under Slurm or Open MPI;
    elsewhere the process is alone. `coordinator` is "host:port" of process 0, on a free port; a
    process that is silent for `heartbeat_timeout` seconds counts as dead, and ends the others; with
    `preemption` SIGTERM is a notice that `reached_preemption` tells all processes of. Raises
    UserError where the arguments are not complete, or the others could not be reached.
    """
    found = {"coordinator_address": coordinator, "num_processes": num_processes}
    found |= {"process_id": process_id}
    given = [value for value in found.values() if value is not None]
    if not given and (found := _launcher()) is None:
        return
    if given and len(given) < len(found):
        raise UserError("--coordinator, --num_processes and --process_id must be given together")
    if given and not 0 <= process_id < num_processes:
        must = f"it must be from 0 to --num_processes less 1, {num_processes - 1}"
        raise UserError(f"--process_id is {process_id}; {must}")
    jax.config.update("jax_enable_preemption_service", preemption)
    try:
        with _in_time(**found):
            jax.distributed.initialize(
                **found,
                initialization_timeout=INITIALIZATION_TIMEOUT + 2 * GRACE,
                heartbeat_timeout_seconds=heartbeat_timeout,
                shutdown_timeout_seconds=SHUTDOWN_TIMEOUT,
            )
    except (RuntimeError, ValueError) as error:
        raise UserError(f"the processes of this run did not find each other: {error}") from error


@contextlib.contextmanager
def _in_time(coordinator_address="", num_processes=0, process_id=None, **rest) -> Iterator[None]:
    """Ends the process, in one line, where the others have not come before the `with` is over."""
    of = f"{num_processes} processes at {coordinator_address}" if num_processes else "all processes"
    if process_id == 0:
        print(f"waiting for {of}", flush=True)
    seconds = INITIALIZATION_TIMEOUT + (GRACE if process_id == 0 else 0)

    def end() -> None:
        started = [name for name in _LAUNCHERS if name in os.environ and rest]
        alone = f"; unset {started[0]} to run one alone" if started else ""
        why = f"waited {seconds} s for {of}, which must all be started{alone}"
        print(f"error: {why}", file=sys.stderr, flush=True)
        os._exit(2)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _launcher() -> dict | None:
    """What to tell JAX where something has started several processes; None where nothing has."""
    for variable, launcher in _LAUNCHERS.items():
        count = os.environ.get(variable) or "1"
        try:
            if int(count) > 1:
                return _told(launcher)
        except (KeyError, ValueError, RuntimeError) as error:
            what = f"there is no {error.args[0]}" if isinstance(error, KeyError) else str(error)
            alone = f"unset {variable} to run one process alone"
            raise UserError(f"{variable} is {count}, but {what}; {alone}") from error
    on_tpu = cloud_tpu_init.running_in_cloud_tpu_vm and os.environ.get("JAX_PLATFORMS") != "cpu"
    return {} if on_tpu else None


def _told(launcher: type[clusters.ClusterEnv]) -> dict:
    """What a launcher says in the environment, as JAX reads it.

    Raises KeyError, ValueError or RuntimeError where that is not complete, or not what it may be.
    """
    if launcher is clusters.OmpiCluster and _OPEN_MPI_4 not in os.environ:
        raise RuntimeError(
            "this Open MPI does not say where process 0 is: give --coordinator=HOST:PORT "
            "--num_processes=$OMPI_COMM_WORLD_SIZE --process_id=$OMPI_COMM_WORLD_RANK"
        )
    launcher.get_local_process_id()  # JAX will ask for it
    port = os.environ.get("JAX_COORDINATOR_PORT")
    address = os.environ.get("JAX_COORDINATOR_ADDRESS")
    return {
        "coordinator_address": address or launcher.get_coordinator_address(None, port),
        "num_processes": launcher.get_process_count(),
        "process_id": launcher.get_process_id(),
        "cluster_detection_method": launcher.name,
    }


def process_id() -> int:
    """The number of this process; 0 for one that is alone. Starts no backend where it is."""
    return jax.process_index() if jax.distributed.is_initialized() else 0


def is_main() -> bool:
    """Whether this is the process that talks and writes files."""
    return process_id() == 0


def several() -> bool:
    """Whether there are other processes."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def on_main(work: Callable):
    """What work() returns in process 0, in every process; it is called in process 0 alone.

    It returns bytes, or a value that JSON can hold; inside it, `on_main` is a plain call. What it
    raises is raised in every process, its `said_by` 0: UserError, CheckpointError and OSError as
    they are, anything else as RuntimeError in the others.
    """
    global _alone
    if _alone or not several():
        return work()
    outcome = b""
    if is_main():
        _alone = True
        try:
            value = work()
            is_bytes = isinstance(value, bytes)
            outcome = b"b" + value if is_bytes else b"j" + json.dumps(value).encode()
        except Exception as error:
            _hand_out(b"e" + _described(error))
            error.said_by = 0
            raise
        finally:
            _alone = False
    outcome = _hand_out(outcome)
    if outcome[:1] == b"e":
        _raise_again(outcome[1:], 0)
    return outcome[1:] if outcome[:1] == b"b" else json.loads(outcome[1:])


def from_main(function: Callable):
    """A decorator: a call gives, in every process, what it gives in process 0; see `on_main`."""
    return functools.wraps(function)(lambda *args: on_main(lambda: function(*args)))


def everywhere(work: Callable):
    """What work() returns here, once it has come to its end in every process.

    Nothing in it may wait for another process. What it raises, here or elsewhere, is raised in all;
    its `said_by` is the number of the first process in which it was.
    """
    if not several():
        return work()
    result, failure, outcome = None, None, b""
    try:
        result = work()
    except Exception as error:
        failure, outcome = error, _described(error)
    padded = np.zeros(_ROOM, np.uint8)
    padded[: len(outcome)] = np.frombuffer(outcome, np.uint8)
    _wait()
    outcomes = np.asarray(multihost_utils.process_allgather(padded)).reshape(-1, _ROOM)
    failed = [n for n, row in enumerate(outcomes) if row.any()]
    if failure is not None:
        # Of several that fail in the same way, the first speaks for all.
        failure.said_by = next(n for n, row in enumerate(outcomes) if (row == padded).all())
        raise failure
    if failed:
        _raise_again(outcomes[failed[0]].tobytes().rstrip(b"\0"), failed[0])
    return result


def fetch(array) -> np.ndarray:
    """An array on the devices of any process, whole, on the host of every process."""
    if getattr(array, "is_fully_addressable", True) or array.is_fully_replicated:
        return np.asarray(array)
    return multihost_utils.process_allgather(array, tiled=True)


def reached_preemption() -> bool:
    """Whether to stop now because some process had a notice, SIGTERM.

    All processes call it equally often, and it is true in all of them at the same call: the first
    that none of them had made when the notice came.
    """
    return several() and multihost_utils.reached_preemption_sync_point(next(_looks))


def leave() -> None:
    """Waits until all processes are about to leave, so that none sees another as dead."""
    if several():
        jax.distributed.shutdown()


def _wait() -> None:
    """Until all processes are here: on the hosts, as devices give up before PATIENCE is over."""
    from orbax.checkpoint import multihost  # slow to import, and seldom needed

    barrier = multihost.get_barrier_sync_fn()
    barrier(key=f"diffusion_distill_{next(_waits)}", timeout_ms=PATIENCE * 1000)


def _hand_out(outcome: bytes) -> bytes:
    """Process 0's bytes, in every process."""
    _wait()
    size = multihost_utils.broadcast_one_to_all(np.int32(len(outcome)))
    # Rounded up to a power of 2, so that few programs are compiled.
    padded = np.zeros(max(1024, 1 << (int(size) - 1).bit_length()), np.uint8)
    padded[: len(outcome)] = np.frombuffer(outcome, np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(padded))[: int(size)].tobytes()


def _described(error: Exception) -> bytes:
    kind = next((name for name, k in _ERRORS.items() if isinstance(error, k)), "")
    if kind == "OSError":
        filename = None if error.filename is None else str(error.filename)[:_LONGEST]
        arguments = [error.errno, (error.strerror or str(error))[: _LONGEST // 4], filename]
    else:
        arguments = [(str(error) if kind else f"process {process_id()}: {error!r}")[:_LONGEST]]
    return json.dumps([kind, arguments]).encode()


def _raise_again(described: bytes, said_by: int) -> None:
    kind, arguments = json.loads(described)
    error = _ERRORS.get(kind, RuntimeError)(*arguments)
    error.said_by = said_by
    raise error
