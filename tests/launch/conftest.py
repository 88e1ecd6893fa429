"""Stand-ins for the programs that launch scripts call, and a way to run a script among them."""

import ast
import contextlib
import dataclasses
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

LAUNCH = Path(__file__).resolve().parents[2] / "launch"
TASK = yaml.safe_load((LAUNCH / "sky.yaml").read_text())

GCLOUD = Path(__file__).with_name("gcloud.py")
QUEUED = ["gcloud", "compute", "tpus", "queued-resources"]

# Records its own call, before whatever else it does.
RECORDER = """#!{python} -S
import os, sys
with open({calls!r}, "a") as file:
    file.write(repr([{name!r}, *sys.argv[1:]]) + "\\n")
"""

# A worker's `uv venv` makes what the script looks for; what it installs is only recorded.
UV = """
if sys.argv[1] == "venv":
    os.makedirs(sys.argv[-1] + "/bin")
    os.symlink(sys.executable, sys.argv[-1] + "/bin/python")
"""

# A command of a person, as a Python program: runs until it is asked to stop, and saves.
UNTIL_STOPPED = """
import os, signal, sys
signal.signal(signal.SIGTERM, lambda *_: (os.write(1, b"saved\\n"), sys.exit(143)))
print("running", sys.argv[1:], flush=True)
signal.pause()
"""


@dataclasses.dataclass(frozen=True)
class Bench:
    """A folder of stand-ins, first on PATH, and what they were called with."""

    path: Path
    environment: dict[str, str]

    def stand_in(self, name: str, body: str = "") -> None:
        """A program of this name that records its arguments, then runs the Python in body."""
        program = self.path / "bin" / name
        head = RECORDER.format(python=sys.executable, calls=str(self.path / "calls"), name=name)
        program.write_text(head + body)
        program.chmod(0o755)

    def calls(self) -> list[list[str]]:
        """Each call of a stand-in so far: its name and arguments."""
        file = self.path / "calls"
        return [ast.literal_eval(x) for x in file.read_text().splitlines()] if file.exists() else []

    def start(self, script: str, *args: str, **environment: str) -> subprocess.Popen:
        return subprocess.Popen(
            [LAUNCH / script, *args],
            cwd=self.path,
            env=self.environment | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, script: str, *args: str, **environment: str) -> subprocess.CompletedProcess:
        """Runs a launch script to its end."""
        process = self.start(script, *args, **environment)
        output, errors = process.communicate(timeout=120)
        return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


@pytest.fixture
def bench(tmp_path):
    (tmp_path / "bin").mkdir()
    environment = {
        "PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin",
        "HOME": str(tmp_path / "home"),
        "TMPDIR": str(tmp_path),
    }
    yield Bench(tmp_path, environment)
    for process in _processes_in(tmp_path):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def _processes_in(folder: Path) -> list[int]:
    """What a test left running: processes that work in its folder."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and (entry / "cwd").readlink().is_relative_to(folder):
                found.append(int(entry.name))
    return found


def one_line(done: subprocess.CompletedProcess) -> str:
    """The one line that a mistake ends in, at a command that ended so."""
    assert done.returncode == 2, (done.stdout, done.stderr)
    assert done.stderr.count("\n") == 1, done.stderr
    assert ": error: " in done.stderr
    return done.stderr


def printed(done: subprocess.CompletedProcess) -> list[list[str]]:
    """The commands that --dry-run printed, as a shell would read them; comments left out."""
    assert done.returncode == 0, done.stderr
    return [words for line in done.stdout.splitlines() if (words := shlex.split(line, True))]


@pytest.fixture
def cloud(bench):
    """The folder of the stand-in cloud."""
    folder = bench.path / "cloud"
    folder.mkdir()
    bench.environment.update(
        CLOUD=str(folder),
        PROJECT="my-project",
        LOGS=str(bench.path / "logs"),
        POLL_SECONDS="0.2",
        STOP_SECONDS="10",
    )
    bench.stand_in("gcloud", GCLOUD.read_text())
    bench.stand_in("uv", UV)
    hostname = bench.path / "bin/hostname"
    hostname.write_text('#!/bin/sh\necho "$WORKER"\n')
    hostname.chmod(0o755)
    return folder


@pytest.fixture
def ready(bench, cloud):
    """A slice that is up, with as much of what `setup` puts on its workers as the tests need."""
    (cloud / "resource").write_text("diffusion-distill")
    (cloud / "states").write_text("ACTIVE")
    for number in range(2):
        code = cloud / f"worker-{number}/diffusion_distill"
        (code / ".venv/bin").mkdir(parents=True)
        (code / ".venv/bin/python").symlink_to(sys.executable)
        (code / "launch").mkdir()
        shutil.copy(LAUNCH / "worker.sh", code / "launch")
    return cloud


def wait_for(condition) -> None:
    deadline = time.monotonic() + 60  # seldom a second; the machine may be busy
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def log(cloud, number: int) -> list[str]:
    """What the command printed on a worker, over all of its starts there."""
    file = cloud / f"worker-{number}/diffusion_distill/.run/log"
    return file.read_text().splitlines() if file.exists() else []
