"""sky.yaml: what its hosts run, with stand-ins for the machines; and what SkyPilot makes of it."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from uv import find_uv_bin

from tests.launch.conftest import LAUNCH, TASK, UNTIL_STOPPED, printed
from tests.launch.test_gpu import PYTHON, SMI
from tests.launch.test_guide import EXPORTED, GUIDE, LINES, ROOT

BUCKET = {"BUCKET": "my-bucket"}
COMMAND = [
    *["python", "-m", "diffusion_distill.main", "--config=configs/imagenet64_distill.py"],
    "--workdir=gs://my-bucket/runs/imagenet64",
    "--config.data.path=gs://my-bucket/data/imagenet64",
]
# What SkyPilot says to each of two hosts.
HOSTS = [
    {
        "SKYPILOT_NODE_IPS": "127.0.0.1\n127.0.0.1",
        "SKYPILOT_NUM_NODES": "2",
        "SKYPILOT_NODE_RANK": str(rank),
    }
    for rank in range(2)
]
ALONE = {"SKYPILOT_NODE_IPS": "10.0.0.1", "SKYPILOT_NUM_NODES": "1", "SKYPILOT_NODE_RANK": "0"}
SAYS_PLATFORMS = 'print(os.environ["JAX_PLATFORMS"], flush=True)\n'
GUIDED = [shlex.split(line)[1:] for line in re.findall("^sky .*", GUIDE, re.MULTILINE)]


@pytest.fixture
def host(bench):
    """A host as SkyPilot hands it over, with .venv there: buckets keep no modes of files."""
    folder = bench.path / "home/sky_workdir"
    (folder / "launch").mkdir(parents=True)
    for script in ("worker.sh", "gpu.sh"):
        shutil.copyfile(LAUNCH / script, folder / "launch" / script)
    (folder / ".venv").symlink_to(bench.path)
    bench.stand_in("uv")
    return bench


def start(host, script: str, **environment: str) -> subprocess.Popen:
    """Runs a script as SkyPilot does, from a file, on a host."""
    file = host.path / "script"
    file.write_text(script)
    return subprocess.Popen(
        ["bash", "-i", file],
        cwd=host.path / "home/sky_workdir",
        env=host.environment | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def ran(host, part: str, **environment: str) -> str:
    """What a part of the task prints, with its `envs` and these variables."""
    given = {name: value for name, value in TASK["envs"].items() if value is not None}
    process = start(host, TASK[part], **given | BUCKET | environment)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    return output


def test_it_is_the_run_of_the_guide_on_the_slice_of_the_guide(bench):
    resources = TASK["resources"]
    assert resources["accelerators"] == f"tpu-{EXPORTED['ACCELERATOR_TYPE']}"
    assert EXPORTED["ZONE"].startswith(resources["infra"].removeprefix("gcp/"))
    created = printed(bench.run("tpu_vm.sh", "--dry-run", "create", **EXPORTED))
    version = resources["accelerator_args"]["runtime_version"]
    assert f"--runtime-version={version}" in created[0]
    (line,) = [x for x in LINES if x.startswith("launch/tpu_vm.sh run ")]
    assert shlex.split(line.replace("$BUCKET", "gs://my-bucket"))[2:] == COMMAND


@pytest.mark.parametrize("accelerator", ["tpu", "cuda"])
def test_setup_installs_for_what_the_host_has(host, accelerator):
    if accelerator == "cuda":
        host.stand_in("nvidia-smi", SMI)
    host.stand_in("python")  # of .venv, which is there
    ran(host, "setup")
    (call,) = host.calls()
    target = f".[{accelerator},gcs]"
    assert call == [
        *"uv pip install --python .venv/bin/python -c constraints.txt -e".split(),
        target,
    ]


@pytest.mark.parametrize("variables", HOSTS)
def test_the_hosts_of_a_slice_run_the_same_command_and_find_each_other(host, variables):
    host.stand_in("python", SAYS_PLATFORMS)
    assert ran(host, "run", **variables) == "tpu,cpu\n"
    assert host.calls() == [COMMAND]


def test_every_field_is_taken(host):
    host.stand_in("python", SAYS_PLATFORMS)
    given = {"CONFIG": "a.py:tiny", "RUN": "mine", "DATA": "set", "FLAGS": "--a=1 --b=(1,)"}
    ran(host, "run", **given, **HOSTS[0])
    (call,) = host.calls()
    assert call[3:] == [
        *["--config=a.py:tiny", "--workdir=gs://my-bucket/runs/mine"],
        *["--config.data.path=gs://my-bucket/data/set", "--a=1", "--b=(1,)"],
    ]
    assert set(TASK["envs"]) == {*given, *BUCKET}


@pytest.mark.parametrize("variables", HOSTS)
def test_hosts_with_gpus_are_told_of_each_other(host, variables):
    host.stand_in("nvidia-smi", SMI)
    host.stand_in("python", PYTHON.replace("sys.exit(7)", ""))
    assert ran(host, "run", **variables).endswith("None cuda,cpu\n")
    joined = ["--coordinator=127.0.0.1:8476", "--num_processes=2"]
    rank = variables["SKYPILOT_NODE_RANK"]
    assert host.calls()[-1] == [*COMMAND, *joined, f"--process_id={rank}"]


def test_one_host_with_gpus_is_alone_and_all_its_gpus_are_looked_for(host):
    host.stand_in("nvidia-smi", SMI)
    host.stand_in("python", PYTHON.replace("sys.exit(7)", ""))
    ran(host, "run", **ALONE)
    assert host.calls()[-1] == COMMAND
    with pytest.raises(AssertionError, match="JAX sees 0 of 4 GPU"):
        ran(host, "run", SEEN="0", **ALONE)


@pytest.mark.parametrize("gpus", [False, True])
def test_a_signal_reaches_the_command_and_its_code_skypilot(host, gpus):
    if gpus:
        host.stand_in("nvidia-smi", SMI)
    host.stand_in(
        "python", f"if sys.argv[1] == '-c':\n    print(4)\n    sys.exit()\n{UNTIL_STOPPED}"
    )
    process = start(host, TASK["run"], **TASK["envs"] | BUCKET | HOSTS[0])
    assert process.stdout.readline().startswith("running ")
    process.terminate()
    assert process.communicate(timeout=20)[0] == "saved\n"
    assert process.returncode in TASK["resources"]["job_recovery"]["recover_on_exit_codes"]


@pytest.fixture
def read_by_skypilot():
    """What SkyPilot makes of commands; see tests/launch/skypilot.py."""

    def read(**asked) -> list:
        script = Path(__file__).with_name("skypilot.py")
        done = subprocess.run(
            [
                find_uv_bin(),
                "run",
                "--python",
                sys.executable,
                "--script",
                script,
                json.dumps(asked),
            ],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return read


@pytest.mark.slow
def test_skypilot_reads_the_task_and_the_commands_of_the_guide(read_by_skypilot, host):
    """One test, as making the environment takes most of its time."""
    assert sum("launch" in words for words in GUIDED) == 2
    commands = [*GUIDED, ["jobs", "launch", "launch/sky.yaml"]]
    codes = [143, 1, 143, 2, 143, 134, 143, 1]  # 143 always, all others three times in all
    *known, unset = read_by_skypilot(commands=commands, variables=HOSTS[1], codes=codes)
    assert "'BUCKET' is None" in unset["refused"]
    launches = [answer for answer in known if answer is not None]
    assert not [answer for answer in launches if "refused" in answer]
    assert [answer["started again"] for answer in launches] == 2 * [[True] * 7 + [False]]
    slice_, gpus = (answer["task"] for answer in launches)
    assert [answer["several hosts"] for answer in launches] == [True, False]
    assert slice_["resources"]["accelerators"] == {"tpu-v4-128": 1}
    assert slice_["num_nodes"] == 1
    assert gpus["resources"]["accelerators"] == {"H100": 8}
    assert gpus["num_nodes"] == 2
    for task in (slice_, gpus):
        assert task["workdir"] == "."
        assert task["envs"] == TASK["envs"] | {"BUCKET": "MY-BUCKET"}
        assert task["resources"]["use_spot"] is True

    # The scripts of a host, as SkyPilot writes them around ours.
    host.stand_in("python", SAYS_PLATFORMS)
    for part in ("setup", "run"):
        process = start(host, launches[0][part])
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    assert [call[:2] for call in host.calls()] == [["uv", "pip"], ["python", "-m"]]
    assert "--workdir=gs://MY-BUCKET/runs/imagenet64" in host.calls()[1]


# A run of some seconds, but for the time that its programs take to compile.
TINY = {
    "BUCKET": "bucket",
    "CONFIG": "configs/digits_distill.py:tiny",
    "RUN": "run",
    "FLAGS": "--config.data.path= --config.runtime.log_every_seconds=0 "
    "--config.teacher.updates=1000 --config.train.checkpoint_every=1000 "
    "--config.model.attention_resolutions=() --config.model.channel_multipliers=(1,)",
}


@pytest.mark.slow
def test_the_same_script_on_another_host_goes_on_where_the_first_saved(host, bucket_server):
    """The run itself, in a bucket, on hosts whose GPU is a CPU that says it is one."""
    host.stand_in("nvidia-smi", 'print("GPU 0: none")')
    python = host.path / "bin/python"
    lines = ["#!/bin/sh", '[ "$1" != -c ] || exec echo 1']  # the check of JAX, and the command
    python.write_text("\n".join([*lines, f'JAX_PLATFORMS=cpu exec {sys.executable} "$@"\n']))
    python.chmod(0o755)
    (host.path / "home/sky_workdir/configs").symlink_to(ROOT / "configs")
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | TASK["envs"] | TINY | ALONE
    host.environment.update(environment | host.environment)
    saved = "going on from gs://bucket/runs/run/teacher/checkpoints/"
    for said_before_the_notice in ("teacher: step", saved):
        process = start(host, TASK["run"])
        said = until(process, said_before_the_notice)
        process.terminate()
        rest, errors = process.communicate(timeout=120)
        assert process.returncode == 143, (said, rest, errors)


def until(process: subprocess.Popen, words: str) -> str:
    """What a process says, up to the line with these words."""
    said = ""
    for line in process.stdout:
        said += line
        if words in line:
            return said
    raise AssertionError(said + process.stderr.read())
