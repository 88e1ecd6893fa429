"""Launch scripts, and those within sky.yaml, as shellcheck sees them."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch.conftest import LAUNCH, TASK

SCRIPTS = sorted(path for path in LAUNCH.iterdir() if path.suffix != ".yaml")
TEXTS = {path.name: path.read_text() for path in SCRIPTS} | {
    f"{part} of sky.yaml": TASK[part] for part in ("setup", "run")
}


def test_all_scripts_are_here():
    names = {path.name for path in SCRIPTS}
    assert names == {"tpu_vm.sh", "worker.sh", "gpu.sh", "slurm.sbatch"}


@pytest.mark.parametrize("name", TEXTS)
def test_shellcheck_finds_nothing(name):
    environment = Path(sys.executable).parent
    shellcheck = shutil.which("shellcheck", path=environment) or shutil.which("shellcheck")
    assert shellcheck, "shellcheck is not installed: pip install -e '.[test]'"
    command = [shellcheck, "--shell=bash", "-"]
    done = subprocess.run(command, input=TEXTS[name], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_can_be_run_as_it_is(script):
    assert script.stat().st_mode & 0o111
    assert script.read_text().startswith("#!/usr/bin/env bash\n")
