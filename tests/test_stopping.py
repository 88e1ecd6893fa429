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
import threading
import time
from pathlib import Path

import pytest

from diffusion_distill.storage.files import read_rows

ROOT = Path(__file__).parents[1]
STAGES = {"teacher": 40, "student_0002": 6, "student_0001": 6}
# Updates take 20 ms here and saves most of a second: a signal at random is mostly one in a save.
COMMAND = [
    sys.executable,
    "-m",
    "diffusion_distill.main",
    "--config=configs/digits_distill.py:tiny",
    "--config.model.attention_resolutions=()",
    "--config.teacher.updates=40",
    "--config.runtime.log_every_seconds=0",
]


def start(workdir, every=10, environment=()):
    """The run, with a checkpoint every so many updates: results do not depend on how many."""
    return subprocess.Popen(
        [*COMMAND, f"--workdir={workdir}", f"--config.train.checkpoint_every={every}"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | dict(environment),
    )


def wait_for(process, pattern):
    """Reads the process's output until a line matches; a process that hangs is ended."""
    watchdog = threading.Timer(120, process.kill)
    watchdog.start()
    try:
        for line in process.stdout:
            if re.search(pattern, line):
                return
    finally:
        watchdog.cancel()
    raise AssertionError(f"ended, or was ended, without saying {pattern!r}")


def finish(workdir, **how):
    process = start(workdir, **how)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def last_checksums(workdir):
    """Of every stage's last checkpoint, the checksums of what holds weights and optimiser.

    Tensorstore names data files at random, so the arrays themselves are hashed.
    """
    script = f"""
import hashlib, jax
from pathlib import Path
from diffusion_distill.run import check
from diffusion_distill.runs import checkpoints
from diffusion_distill.runs.workdir import Workdir
run = check(Workdir.open({str(workdir)!r}).config, {str(workdir)!r})
for name, updates in {STAGES!r}.items():
    whole = checkpoints.verify(checkpoints.folder(run.workdir.path, name), updates)
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(whole.trees(run.abstract(run.stages[name]).trees())):
        digest.update(bytes(jax.device_get(leaf)))
    print(name, digest.hexdigest())
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def assert_same_run(workdir, never_stopped):
    assert last_checksums(workdir) == last_checksums(never_stopped)
    for name in STAGES:
        paths = [run / name / "metrics.jsonl" for run in (workdir, never_stopped)]
        assert read_rows(paths[0]) == read_rows(paths[1])
        grids = [(run / name / "samples.png").read_bytes() for run in (workdir, never_stopped)]
        assert grids[0] == grids[1]
    results = [read_rows(run / "results.jsonl") for run in (workdir, never_stopped)]
    for row in [*results[0], *results[1]]:
        row.pop("seconds")
    assert json.dumps(results[0]) == json.dumps(results[1])


@pytest.fixture(scope="module")
def never_stopped(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("never_stopped") / "run"
    output = finish(workdir)
    assert "step 40 of 40" in output
    assert "images/s" in output
    assert re.search(r"s left, run ~\d", output)
    assert "\x1b" not in output  # on a pipe: lines, and no display
    assert "| student_0001 |" in output
    return workdir


# The second compiles anew in each process, as a person's runs do, where other tests share a cache.
@pytest.mark.parametrize(
    ("signum", "code", "environment"),
    [(signal.SIGTERM, 143, {}), (signal.SIGINT, 130, {"JAX_ENABLE_COMPILATION_CACHE": "0"})],
)
def test_asked_to_stop_it_saves_and_says_so(never_stopped, tmp_path, signum, code, environment):
    workdir = tmp_path / "run"
    how = {"every": 1000, "environment": environment}  # so that only the signal makes it save
    process = start(workdir, **how)
    wait_for(process, "teacher: step 2 of 40")
    process.send_signal(signum)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == code, output
    assert "goes on from here" in output
    assert "Traceback" not in output
    (saved,) = [int(p.name) for p in (workdir / "teacher/checkpoints").iterdir()]
    assert 2 <= saved < 40
    assert (workdir / f"teacher/checkpoints/{saved}/sha256.json").exists()
    assert f"going on from {workdir}/teacher/checkpoints/{saved}" in finish(workdir, **how)
    assert_same_run(workdir, never_stopped)


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
def test_killed_ten_times_it_ends_with_the_same_bits(never_stopped, tmp_path):
    workdir, chance, unfinished = tmp_path / "run", random.Random(0), 0
    for pattern in KILLS:
        process = start(workdir, every=3)
        wait_for(process, pattern)
        time.sleep(chance.uniform(0.0, 0.8))
        process.kill()
        output, _ = process.communicate()
        assert process.returncode == -signal.SIGKILL, output
        steps = [p for p in workdir.glob("*/checkpoints/*") if p.is_dir()]
        unfinished += any(not (p / "sha256.json").exists() for p in steps)
    assert unfinished, "no kill came in the middle of a save: nothing of that was tested"
    finish(workdir, every=3)
    assert_same_run(workdir, never_stopped)
