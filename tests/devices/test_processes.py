"""Two processes that are one run: told to stop, or killed, they end together and go on together.

Real processes over loopback, and real signals.
"""

import json
import os
import re
import signal
import subprocess
import sys

import pytest

from diffusion_distill.devices import distributed
from diffusion_distill.errors import UserError
from diffusion_distill.storage.files import read_rows
from tests.commands import ROOT, Command
from tests.conftest import TINY, free_port

HEARTBEAT = 10  # seconds
BOUND = 60  # seconds within which the death of one ends the other, with what a busy machine adds
UPDATES = 100  # of the teacher: some seconds, and a notice needs one to be heard
EVERY = 25  # updates from checkpoint to checkpoint
FLAGS = [
    *TINY,
    f"--config.teacher.updates={UPDATES}",
    f"--config.train.checkpoint_every={EVERY}",
    "--config.distill.start_steps=2",
    "--config.eval.baselines=()",
    "--config.runtime.log_every_seconds=0",
    "--config.eval.label_agreement=False",
    "--config.eval.num_images=70",
    f"--heartbeat_timeout={HEARTBEAT}",
    "--num_processes=2",
]


class Pair:
    """Two processes of one run, of one device each, and what they say."""

    def __init__(self, workdir):
        flags = [*FLAGS, f"--workdir={workdir}", f"--coordinator=127.0.0.1:{free_port()}"]
        self.processes = [Command("main", *flags, f"--process_id={n}") for n in range(2)]

    @property
    def said(self):
        return [process.stdout + process.stderr for process in self.processes]

    def wait_for(self, pattern):
        """Until process 0 has said it."""
        self.processes[0].wait_for(re.compile(pattern))

    def codes(self):
        """What both exit with; what does not end is killed."""
        return [process.wait() for process in self.processes]


def checkpoints(workdir):
    """The teacher's whole checkpoints, by their updates."""
    return sorted(int(p.parent.name) for p in workdir.glob("teacher/checkpoints/*/sha256.json"))


def outcome(workdir):
    """All numbers and images that a run leaves, but for how long it took."""
    results = read_rows(workdir / "results.jsonl")
    for row in results:
        row.pop("seconds")
    stages = [row["stage"] for row in results]
    metrics = [read_rows(workdir / stage / "metrics.jsonl") for stage in stages]
    grids = [(workdir / stage / "samples.png").read_bytes() for stage in stages]
    return stages, json.dumps([results, metrics]), grids


def assert_both_were_stopped(pair, workdir):
    """By a notice, and at the same update, which is saved; returns the update."""
    assert pair.codes() == [143, 143], pair.said
    assert "goes on from here" in pair.said[0]
    assert "Traceback" not in pair.said[0] + pair.said[1]
    saved = checkpoints(workdir)[-1]
    assert saved % EVERY, pair.said  # where neither would have saved by itself
    return saved


def assert_the_end_of_one_ends_the_other(pair, killed):
    """Without a word; the other ends of itself, and in time."""
    pair.processes[killed].send_signal(signal.SIGKILL)
    code = pair.processes[1 - killed].wait(BOUND)
    assert code not in (0, 143, -signal.SIGKILL), pair.said
    assert pair.codes()[killed] == -signal.SIGKILL


def test_a_notice_to_one_stops_both_and_the_end_of_one_ends_the_other(tmp_path):
    """A notice to the one that does not talk; then, as they go on, its end without a word."""
    workdir = tmp_path / "run"
    pair = Pair(workdir)
    pair.wait_for(r"teacher: step \d of")
    pair.processes[1].send_signal(signal.SIGTERM)
    saved = assert_both_were_stopped(pair, workdir)
    pair = Pair(workdir)
    pair.wait_for(rf"going on from .*/{saved}\n(.*\n)*teacher: step \d+ of")
    assert_the_end_of_one_ends_the_other(pair, 1)
    assert checkpoints(workdir)[-1] >= saved


@pytest.mark.slow
def test_stopped_and_killed_they_end_with_the_numbers_of_a_run_never_stopped(tmp_path):
    never_stopped, workdir = tmp_path / "never_stopped", tmp_path / "run"
    pair = Pair(never_stopped)
    assert pair.codes() == [0, 0], pair.said

    # A notice to one of them, and not to the one that talks.
    pair = Pair(workdir)
    pair.wait_for(r"teacher: step \d of")
    pair.processes[1].send_signal(signal.SIGTERM)
    saved = assert_both_were_stopped(pair, workdir)

    # The end, without a word, of the one that talks, and that the other hears from.
    pair = Pair(workdir)
    pair.wait_for(rf"going on from .*/{saved}\n(.*\n)*teacher: step \d+ of")
    assert_the_end_of_one_ends_the_other(pair, 0)
    assert checkpoints(workdir)[-1] >= saved

    pair = Pair(workdir)
    assert pair.codes() == [0, 0], pair.said
    assert f"going on from {workdir}/teacher/checkpoints/" in pair.said[0]
    assert outcome(workdir) == outcome(never_stopped)
    assert outcome(workdir)[0] == ["teacher", "student_0001"]
    quiet = [line for line in pair.said[1].splitlines() if not line.startswith("[Gloo]")]
    assert quiet == []


def test_a_mistake_is_said_once_and_ends_both(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("not a run")
    pair = Pair(tmp_path / "run")
    assert pair.codes() == [2, 2], pair.said
    assert "error: " + str(tmp_path / "run") + " has files but no config.json" in pair.said[0]
    assert "error" not in pair.said[1]
    assert "Traceback" not in pair.said[0] + pair.said[1]


def test_what_one_process_is_told_must_be_whole():
    with pytest.raises(UserError, match="--coordinator, --num_processes and --process_id must be"):
        distributed.initialize("127.0.0.1:1", 2)
    with pytest.raises(UserError, match="--process_id is 2; it must be from 0 to .* 1$"):
        distributed.initialize("127.0.0.1:1", 2, 2)


SLURM = {
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_NTASKS": "4",
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "gpu[12-15],gpu20",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_MCA_orte_hnp_uri": "4096.0;tcp://10.0.0.1:1",
}


def launched(monkeypatch, environment):
    """What is found where a launcher has left these variables and no others."""
    for name in (*SLURM, *OPEN_MPI):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    found = distributed._launcher()
    return found and tuple(found.values())


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        (SLURM | {"SLURM_STEP_NUM_TASKS": ""}, None),  # no srun
        ({"SLURM_STEP_NUM_TASKS": "1"}, None),
        (SLURM, ("gpu12:61447", 4, 1, "slurm")),
        (OPEN_MPI, ("10.0.0.1:61441", 2, 1, "ompi")),
    ],
)
def test_a_launcher_is_seen_where_it_started_several(monkeypatch, environment, expected):
    assert launched(monkeypatch, environment) == expected


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"SLURM_STEP_NUM_TASKS": "4"}, "SLURM_STEP_NUM_TASKS is 4, but there is no SLURM_LOCALID"),
        (SLURM | {"SLURM_STEP_NUM_TASKS": "4(x2)"}, "SLURM_STEP_NUM_TASKS is 4(x2), but invalid"),
        (SLURM | {"SLURM_NTASKS": "4(x2)"}, "SLURM_STEP_NUM_TASKS is 4, but invalid"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "give --coordinator=HOST:PORT"),  # of Open MPI 5
        (OPEN_MPI | {"OMPI_MCA_orte_hnp_uri": "1.0;"}, "Could not parse coordinator IP"),
    ],
)
def test_what_a_launcher_left_incomplete_is_told(monkeypatch, environment, message):
    alone = f"; unset {next(iter(environment))} to run one process alone"
    with pytest.raises(UserError, match=f"{re.escape(message)}.*{alone}$"):
        launched(monkeypatch, environment)


@pytest.mark.parametrize("number", [0, 1])
def test_one_process_where_slurm_started_four_waits_and_ends_in_one_line(number):
    script = (
        "from diffusion_distill.devices import distributed as d;"
        "d.INITIALIZATION_TIMEOUT, d.GRACE = 1, 1; d.initialize()"
    )
    environment = os.environ | SLURM | {"JAX_COORDINATOR_ADDRESS": f"localhost:{free_port()}"}
    environment |= {"SLURM_PROCID": str(number)}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    of = f"4 processes at {environment['JAX_COORDINATOR_ADDRESS']}"
    assert done.stdout == (f"waiting for {of}\n" if number == 0 else "")
    unset = "unset SLURM_STEP_NUM_TASKS to run one alone"
    line = f"error: waited {2 - number} s for {of}, which must all be started; {unset}"
    assert [x for x in done.stderr.splitlines() if x.startswith("error")] == [line]
    assert done.returncode == 2
    assert "***" not in done.stderr  # no stack of C++


def test_alone_a_process_decides_for_itself():
    assert distributed.is_main()
    assert not distributed.several()
    assert distributed.on_main(lambda: [1, None]) == [1, None]
    assert distributed.everywhere(lambda: "done") == "done"
    assert not distributed.reached_preemption()
    with pytest.raises(FileNotFoundError):
        distributed.on_main(lambda: open("/nowhere/at/all"))
