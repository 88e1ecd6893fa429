"""Stopped at any moment, the same command goes on, and ends with the bits of a run never stopped.

Real processes and real signals.
"""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
import warnings

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from diffusion_distill.storage.files import read_rows
from tests.commands import ROOT, Command
from tests.conftest import TINY
from tests.pseudo_terminal import Terminal

CONFIG = [*TINY, "--config.runtime.log_every_seconds=0"]
SELDOM = "--config.train.checkpoint_every=1000"  # only a stop and the end of a stage save


def start(workdir, *more):
    return Command("main", *CONFIG, f"--workdir={workdir}", *more)


def kill(command, pattern, seconds=0.0):
    """Kills a run so many seconds after it said this."""
    command.wait_for(re.compile(pattern))
    time.sleep(seconds)
    os.kill(command.pid, signal.SIGKILL)
    assert command.wait() == -signal.SIGKILL, command.stdout


def unfinished_saves(workdir):
    steps = [path for path in workdir.glob("*/checkpoints/*") if path.is_dir()]
    return sum(not (path / "sha256.json").exists() for path in steps)


def arrays(checkpoint):
    """What a checkpoint holds, by name: weights, averaged weights and the optimiser's state.

    Files cannot be compared: TensorStore names them at random.
    """
    with warnings.catch_warnings(action="ignore"):  # it says that it restores them as they were
        restore = ocp.PyTreeCheckpointer().restore
        items = {name: restore(checkpoint / name) for name in ("state", "ema_params")}
    leaves = jax.tree_util.tree_leaves_with_path(items)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def assert_same_run(workdir, never_stopped, updates=12):
    for name, last in {"teacher": updates, "student_0002": 6, "student_0001": 6}.items():
        stages = [workdir / name, never_stopped / name]
        found, expected = (arrays(stage / "checkpoints" / str(last)) for stage in stages)
        assert found.keys() == expected.keys()
        assert len(found) > 100
        for key, value in expected.items():
            assert value.tobytes() == found[key].tobytes(), (name, key)
        rows = [read_rows(stage / "metrics.jsonl") for stage in stages]
        assert rows[0] == rows[1]
        grids = [(stage / "samples.png").read_bytes() for stage in stages]
        assert grids[0] == grids[1]
    results = [read_rows(path / "results.jsonl") for path in (workdir, never_stopped)]
    for row in [*results[0], *results[1]]:
        row.pop("seconds")
    assert json.dumps(results[0]) == json.dumps(results[1])


def stopped_on_a_terminal(workdir):
    """A run as a person starts it, on a terminal, compiling anew, that is asked to stop at once.

    Returns:
        (its code, the terminal).
    """
    terminal = Terminal(columns=80, rows=30)
    command = [sys.executable, "-m", "diffusion_distill.main", *CONFIG, SELDOM]
    command.append(f"--workdir={workdir}")
    environment = os.environ | {"TERM": "xterm-256color", "JAX_ENABLE_COMPILATION_CACHE": "0"}
    files = dict.fromkeys(("stdin", "stdout", "stderr"), terminal.theirs)
    process = subprocess.Popen(command, cwd=ROOT, env=environment, **files)
    asked, end = False, time.monotonic() + 300
    while process.poll() is None and time.monotonic() < end:
        lines = terminal.read(0.1)
        if not asked and any("teacher: step 0 of 12, starting" in line for line in lines):
            time.sleep(1)  # what is drawn is ahead of the loop; compiling takes longer than this
            process.send_signal(signal.SIGTERM)
            asked = True
    process.kill()
    terminal.read()
    return process.wait(), terminal


def test_stopped_in_every_way_it_ends_with_the_same_bits(finished, tmp_path):
    """By SIGTERM while it compiles, by a kill while it saves, by Ctrl-C while it measures."""
    workdir = tmp_path / "run"
    code, terminal = stopped_on_a_terminal(workdir)
    lines = terminal.lines()
    terminal.close()
    assert code == 128 + signal.SIGTERM, lines
    error = "error: stopped by signal 15; the same command goes on from here"
    assert lines[-2:] == ["stopping: what is trained is saved first", error]
    assert not any("step 0 of" in line for line in lines)  # of what was drawn nothing is left
    assert (terminal.screen.cursor.x, terminal.screen.cursor.hidden) == (0, False)
    (saved,) = (workdir / "teacher/checkpoints").iterdir()
    assert (saved / "sha256.json").exists()  # only the signal made it save

    command = start(workdir, SELDOM)
    kill(command, r"student_0002: step 6 of")
    said = command.stdout
    assert said.startswith("devices: 1 cpu\n")
    assert f"going on from {saved}\n" in said
    line = r"teacher: step 12 of 12, loss \d\.\d+, [\d,]+ images/s, \d+s left, run ~\d+s left\n"
    assert re.search(line, said)
    assert "\x1b" not in said  # no terminal: lines, and nothing drawn

    command = start(workdir, SELDOM)
    command.wait_for(re.compile("student_0002: measuring"))
    os.kill(command.pid, signal.SIGINT)
    assert command.wait() == 128 + signal.SIGINT, command.stderr
    assert command.stderr == "error: stopped by signal 2; the same command goes on from here\n"
    assert command.stdout.endswith("stopping: what is trained is saved first\n")

    last = start(workdir, SELDOM)
    assert last.wait() == 0, last.stderr
    assert "student_0002: step" not in last.stdout
    assert "| student_0001 |" in last.stdout
    assert_same_run(workdir, finished[0])


# Where each of the ten kills waits for, before a random part of a second more.
KILLS = [
    r"teacher: step \d+ of",
    r"teacher: step \d+ of",
    r"teacher: step \d+ of",
    r"teacher: step 2\d of",
    r"teacher: measuring",
    r"teacher: ancestral, \d",
    r"student_0002: step \d of",
    r"student_0002: step 6 of",
    r"student_0002: measuring",
    r"student_0001: step \d of",
]


@pytest.mark.slow
def test_killed_ten_times_it_ends_with_the_same_bits(tmp_path):
    # Updates take 20 ms here and saves most of a second: a moment at random is mostly in a save.
    workdir, chance, unfinished = tmp_path / "run", random.Random(0), 0
    more = ["--config.teacher.updates=40", "--config.train.checkpoint_every=3"]
    for pattern in KILLS:
        kill(start(workdir, *more), pattern, chance.uniform(0.0, 0.8))
        unfinished += unfinished_saves(workdir)
    assert unfinished, "no kill came in the middle of a save: nothing of that was tested"
    for path in (workdir, tmp_path / "never_stopped"):
        last = start(path, *more)
        assert last.wait() == 0, last.stderr
    assert_same_run(workdir, tmp_path / "never_stopped", 40)
