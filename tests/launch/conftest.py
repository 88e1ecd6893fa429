"""Stand-ins for the programs that launch scripts call, and a way to run a script among them."""

import ast
import contextlib
import dataclasses
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

LAUNCH = Path(__file__).resolve().parents[2] / "launch"

# Records its own call, before whatever else it does.
RECORDER = """#!{python} -S
import os, sys
with open({calls!r}, "a") as file:
    file.write(repr([{name!r}, *sys.argv[1:]]) + "\\n")
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
