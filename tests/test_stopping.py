"""Stopped at any moment, the same command goes on, and ends with the bits of a run never stopped.

Real processes and real signals.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from diffusion_distill.files import read_rows

ROOT = Path(__file__).parents[1]
STAGES = {"teacher": 12, "student_0002": 6, "student_0001": 6}
# Updates take 20 ms here and saves most of a second: a signal at random is mostly one in a save.
COMMAND = [
    sys.executable,
    "-m",
    "diffusion_distill.main",
    "--config=configs/digits_distill.py:tiny",
    "--config.model.attention_resolutions=()",
    "--config.train.checkpoint_every=2",
    "--config.runtime.log_every_seconds=0",
]


def start(workdir):
    return subprocess.Popen(
        [*COMMAND, f"--workdir={workdir}"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )


def wait_for(process, words):
    """Reads the process's output until a line has these words."""
    for line in process.stdout:
        if words in line:
            return line
    raise AssertionError(f"ended without saying {words!r}")


def finish(workdir):
    process = start(workdir)
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
from diffusion_distill.main import Run
from diffusion_distill import config as configs
from diffusion_distill.training import checkpoints
from diffusion_distill.workdir import Workdir
run = Run(Workdir.open({str(workdir)!r}).config, {str(workdir)!r})
for name, updates in {STAGES!r}.items():
    whole = checkpoints.verify(checkpoints.folder(run.workdir.path, name), updates)
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(whole.state(run.abstract[name])):
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
    assert "step 12 of 12" in output
    assert "images/s" in output
    assert "left" in output
    assert "| student_0001 |" in output
    return workdir


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_asked_to_stop_it_saves_and_says_so(never_stopped, tmp_path, signum, code):
    workdir = tmp_path / "run"
    process = start(workdir)
    wait_for(process, "teacher: step 3 of 12")
    process.send_signal(signum)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == code, output
    assert "goes on from here" in output
    assert "Traceback" not in output
    saved = [int(p.name) for p in (workdir / "teacher/checkpoints").iterdir()]
    assert 3 <= max(saved) < 12
    assert (workdir / f"teacher/checkpoints/{max(saved)}/sha256.json").exists()
    assert f"going on from {workdir}/teacher/checkpoints/{max(saved)}" in finish(workdir)
    assert_same_run(workdir, never_stopped)


@pytest.mark.slow
def test_killed_ten_times_it_ends_with_the_same_bits(never_stopped, tmp_path):
    workdir, chance = tmp_path / "run", random.Random(0)
    kills = 0
    while kills < 10:
        process = start(workdir)
        # Early kills hit training and saves; later ones, measuring and the change of stages.
        wait_for(process, chance.choice(["step", "step", "measuring"]))
        time.sleep(chance.uniform(0.0, 0.15))
        process.send_signal(signal.SIGKILL)
        output, _ = process.communicate()
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, output
        kills += 1
    finish(workdir)
    assert_same_run(workdir, never_stopped)
    assert kills >= 5
