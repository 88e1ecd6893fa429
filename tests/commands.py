"""Commands as a person types them, each a process of its own.

Most of the time of a short command goes into importing JAX and the like. So one process imports
them, and each command is a fork of it. What is ours each command imports anew, as flags want it.
The variables that JAX itself reads are those of the first command's time, but for the one that the
fixture `optimized` sets.
"""

import atexit
import gc
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
TIMEOUT = 300  # seconds


def collect_seldom():
    """What tracing makes, very many small objects, is not searched for cycles again and again."""
    gc.set_threshold(200_000, 50, 100)


class Server:
    """The process that commands are forks of."""

    def __init__(self):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        command = [sys.executable, "-m", "tests.commands"]
        self._process = subprocess.Popen(command, cwd=ROOT, bufsize=0, **pipes)
        atexit.register(self._process.stdin.close)  # which ends it
        self._codes = {}  # by process: what those that ended returned
        self._started = None

    def start(self, argv, paths):
        """Starts a command that writes into two files; returns the process."""
        self._started = None
        self._process.stdin.write(json.dumps([argv, paths, dict(os.environ)]).encode() + b"\n")
        while self._started is None:
            self._read()
        return self._started

    def code(self, pid, timeout):
        """What a process returned, below 0 for a signal; None where it takes longer to end."""
        end = time.monotonic() + timeout
        while pid not in self._codes:
            left = max(end - time.monotonic(), 0)
            if not select.select([self._process.stdout], [], [], left)[0]:
                return None
            self._read()
        return self._codes[pid]

    def _read(self):
        pid, code = json.loads(self._process.stdout.readline())
        if code is None:
            self._started = pid
            self._codes.pop(pid, None)  # of an earlier process of this number
        else:
            self._codes[pid] = code


_servers = []  # the one process, once it is needed


class Command:
    """`python -m PACKAGE.MODULE ARGUMENTS`, started in the root of the checkout.

    Attributes:
        stdout, stderr: what it has written so far.
    """

    def __init__(self, module, *arguments, package="diffusion_distill"):
        if not _servers:
            _servers.append(Server())
        self.argv = [f"{package}.{module}", *map(str, arguments)]
        self._files = [tempfile.NamedTemporaryFile() for _ in range(2)]
        self.pid = _servers[0].start(self.argv, [file.name for file in self._files])

    @property
    def stdout(self):
        return Path(self._files[0].name).read_text()

    @property
    def stderr(self):
        return Path(self._files[1].name).read_text()

    def poll(self):
        """Its code, or None as long as it runs."""
        return _servers[0].code(self.pid, 0)

    def send_signal(self, signum):
        if self.poll() is None:
            os.kill(self.pid, signum)

    def wait(self, timeout=TIMEOUT):
        """Its code, below 0 for a signal; it is killed where it takes longer."""
        if _servers[0].code(self.pid, timeout) is None:
            self.send_signal(signal.SIGKILL)
        return _servers[0].code(self.pid, TIMEOUT)

    def wait_for(self, pattern, timeout=TIMEOUT):
        """Until a part of what it wrote matches; it is killed where it takes longer or ends."""
        end = time.monotonic() + timeout
        while not pattern.search(self.stdout):
            if self.poll() is not None or time.monotonic() > end:
                said = self.stdout + self.stderr
                raise AssertionError(f"{pattern} was not said: {said} {self.wait(0)}")
            time.sleep(0.01)


def run(module, *arguments, package="diffusion_distill"):
    """The same to its end, as subprocess.run: returncode, stdout, stderr."""
    command = Command(module, *arguments, package=package)
    code = command.wait()
    return subprocess.CompletedProcess(command.argv, code, command.stdout, command.stderr)


def _serve():
    import importlib

    for name in (
        "clu.parameter_overview", "flax.linen", "jax", "matplotlib.figure", "ml_collections",
        "ml_collections.config_flags", "optax", "orbax.checkpoint", "PIL.Image", "rich.progress",
        "sklearn.linear_model", "tensorboardX",
    ):  # fmt: skip
        importlib.import_module(name)
    collect_seldom()
    asked, running, buffer = sys.stdin.fileno(), 0, b""
    while True:
        if select.select([asked], [], [], 0.01 if running else None)[0]:
            if not (read := os.read(asked, 1 << 20)):
                return
            buffer += read
        while b"\n" in buffer:
            line, _, buffer = buffer.partition(b"\n")
            print(json.dumps([_fork(*json.loads(line)), None]), flush=True)
            running += 1
        while running and (ended := os.waitpid(-1, os.WNOHANG))[0]:
            print(json.dumps([ended[0], os.waitstatus_to_exitcode(ended[1])]), flush=True)
            running -= 1


def _fork(argv, paths, environment):
    """Starts a command that writes into two files; returns its process."""
    import runpy

    import jax

    pid = os.fork()
    if pid == 0:
        files = [os.open(os.devnull, os.O_RDONLY), *(os.open(p, os.O_WRONLY) for p in paths)]
        for number, file in enumerate(files):
            os.dup2(file, number)
        os.environ.clear()
        os.environ.update(environment)
        quickly = environment.get("JAX_DISABLE_MOST_OPTIMIZATIONS") == "1"
        jax.config.update("jax_disable_most_optimizations", quickly)
        sys.argv = argv
        runpy.run_module(argv[0], run_name="__main__", alter_sys=True)
        sys.exit()
    return pid


if __name__ == "__main__":
    _serve()
