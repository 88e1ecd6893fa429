"""Commands as a person types them, each a process of its own.

Most of the time of a short command goes into importing JAX and the like. So one process imports
them, and each command is a fork of it. What is ours each command imports anew, as flags want it.
The variables that JAX itself reads are those of the first command's time.
"""

import atexit
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
_servers = []  # the one process, once it is needed


class Command:
    """`python -m diffusion_distill.MODULE ARGUMENTS`, started in the root of the checkout.

    Attributes:
        stdout, stderr: what it has written so far.
    """

    def __init__(self, module, *arguments):
        if not _servers:
            server = [sys.executable, "-m", "tests.commands"]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            _servers.append(subprocess.Popen(server, cwd=ROOT, bufsize=0, **pipes))
            atexit.register(_servers[0].stdin.close)  # which ends it
        self.argv = [f"diffusion_distill.{module}", *map(str, arguments)]
        self._files = [tempfile.NamedTemporaryFile() for _ in range(2)]
        paths = [file.name for file in self._files]
        asked = json.dumps([self.argv, paths, dict(os.environ)])
        _servers[0].stdin.write(asked.encode() + b"\n")
        self.pid = int(_servers[0].stdout.readline())

    @property
    def stdout(self):
        return Path(self._files[0].name).read_text()

    @property
    def stderr(self):
        return Path(self._files[1].name).read_text()

    def wait(self, timeout=TIMEOUT):
        """Its code, below 0 for a signal; it is killed where it takes longer."""
        if not select.select([_servers[0].stdout], [], [], timeout)[0]:
            os.kill(self.pid, signal.SIGKILL)
        return int(_servers[0].stdout.readline())

    def wait_for(self, pattern, timeout=TIMEOUT):
        """Until a part of what it wrote matches; it is killed where it takes longer or ends."""
        end = time.monotonic() + timeout
        while not pattern.search(self.stdout):
            ended = select.select([_servers[0].stdout], [], [], 0.01)[0]
            if ended or time.monotonic() > end:
                raise AssertionError(f"{pattern} was not said: {self.stdout} {self.wait(0)}")


def run(module, *arguments):
    """The same to its end, as subprocess.run: returncode, stdout, stderr."""
    command = Command(module, *arguments)
    code = command.wait()
    return subprocess.CompletedProcess(command.argv, code, command.stdout, command.stderr)


def _serve():
    import importlib
    import runpy

    for name in (
        "clu.parameter_overview", "flax.linen", "jax", "matplotlib.figure", "ml_collections",
        "ml_collections.config_flags", "optax", "orbax.checkpoint", "PIL.Image", "rich.progress",
        "sklearn.linear_model", "tensorboardX",
    ):  # fmt: skip
        importlib.import_module(name)
    for line in sys.stdin.buffer:
        argv, paths, environment = json.loads(line)
        pid = os.fork()
        if pid == 0:
            files = [os.open(os.devnull, os.O_RDONLY), *(os.open(p, os.O_WRONLY) for p in paths)]
            for number, file in enumerate(files):
                os.dup2(file, number)
            os.environ.clear()
            os.environ.update(environment)
            sys.argv = argv
            runpy.run_module(argv[0], run_name="__main__", alter_sys=True)
            sys.exit()
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    _serve()
