"""slurm.sbatch against stand-ins for srun, squeue and scontrol."""

import os
import sys

import pytest

from tests.launch.conftest import LAUNCH, one_line

COMMAND = ["python", "-m", "diffusion_distill.main", "--workdir=a b"]
SRUN = ["srun", "--ntasks-per-node=1", "--kill-on-bad-exit=0", "--label"]

# Ends with the codes in CODES, one for each call, then 0.
ENDS = """
codes = os.environ.get("CODES", "").split()
before = sum(line.startswith("['srun'") for line in open(os.environ["CALLS"])) - 1
sys.exit(int(codes[before]) if before < len(codes) else 0)
"""

# Starts the command once for each of two hosts, as srun does, in an allocation of this machine.
TWO_HOSTS = """
import subprocess
command = [word for word in sys.argv[1:] if not word.startswith("--")]
step = {"SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2", "SLURM_LOCALID": "0"}
tasks = [
    subprocess.Popen(command, env=os.environ | step | {"SLURM_PROCID": str(host)})
    for host in range(2)
]
sys.exit(max(task.wait() for task in tasks))
"""

# Says, besides what it prints, which GPUs it would use.
JOINS = """
import logging, sys
import jax
logging.basicConfig(level="INFO", stream=sys.stdout)
jax.config.update("jax_num_cpu_devices", 4)
jax.distributed.initialize()
print("process", jax.process_index(), "of", jax.process_count(), jax.device_count(), flush=True)
"""


@pytest.fixture
def job(bench):
    """A job that runs, with a virtual environment where it was submitted."""
    environment = bench.path / ".venv/bin"
    environment.mkdir(parents=True)
    (environment / "python").symlink_to(sys.executable)
    bench.environment.update(
        SLURM_JOB_ID="123",
        SLURM_GPUS_ON_NODE="8",
        SLURM_CPUS_PER_TASK="32",
        CALLS=str(bench.path / "calls"),
    )
    bench.stand_in("srun", ENDS)
    bench.stand_in("squeue", 'print(os.environ.get("STATE", "RUNNING"))')
    bench.stand_in("scontrol")
    return bench


def names(bench) -> list[str]:
    return [call[0] for call in bench.calls()]


def test_one_task_a_host_with_all_its_gpus(job):
    job.stand_in(
        "srun",
        'print(os.environ["JAX_LOCAL_DEVICE_IDS"], os.environ["JAX_PLATFORMS"], '
        'os.environ["SRUN_CPUS_PER_TASK"], os.environ["PATH"].split(":")[0])',
    )
    done = job.run("slurm.sbatch", *COMMAND)
    assert done.returncode == 0, done.stderr
    assert job.calls() == [[*SRUN, *COMMAND]]
    assert done.stdout == "0,1,2,3,4,5,6,7 cuda,cpu 32 .venv/bin\n"


@pytest.mark.parametrize("code", ["143", "138"])
def test_a_run_that_was_stopped_is_queued_again(job, code):
    done = job.run("slurm.sbatch", *COMMAND, CODES=code)
    assert done.returncode == 0, done.stderr
    assert names(job) == ["srun", "squeue", "scontrol"]
    assert job.calls()[-1] == ["scontrol", "requeue", "123"]


@pytest.mark.parametrize("state", ["COMPLETING", "CANCELLED", ""])
@pytest.mark.parametrize("code", [143, 137])
def test_a_job_that_a_person_cancelled_does_not_come_back(job, state, code):
    done = job.run("slurm.sbatch", *COMMAND, CODES=str(code), STATE=state)
    assert done.returncode == code
    assert names(job) == ["srun", "squeue"]


@pytest.mark.parametrize("code", [2, 3])
def test_what_a_person_must_put_right_is_not_started_again(job, code):
    done = job.run("slurm.sbatch", *COMMAND, CODES=str(code))
    assert done.returncode == code
    assert names(job) == ["srun"]


def test_a_crash_is_started_again_in_place(job):
    done = job.run("slurm.sbatch", *COMMAND, CODES="134 137")
    assert done.returncode == 0, done.stderr
    assert [call for call in job.calls() if call[0] == "srun"] == 3 * [[*SRUN, *COMMAND]]
    assert "scontrol" not in names(job)


def test_a_run_that_crashes_on_and_on_is_given_up(job):
    done = job.run("slurm.sbatch", *COMMAND, CODES="1 1 1 1 1", RESTARTS="2")
    assert "the run failed 3 times" in one_line(done)
    assert names(job).count("srun") == 3


@pytest.mark.parametrize(
    ("command", "environment", "line"),
    [
        (COMMAND, {"SLURM_JOB_ID": ""}, "this is for Slurm"),
        ([], {}, "no command"),
        (COMMAND, {"VENV": "nowhere"}, "no nowhere/bin/python (VENV)"),
    ],
)
def test_a_mistake_ends_in_one_line(job, command, environment, line):
    assert line in one_line(job.run("slurm.sbatch", *command, **environment))
    assert job.calls() == []


def test_the_job_is_signalled_before_its_end_and_may_be_queued_again():
    text = (LAUNCH / "slurm.sbatch").read_text()
    flags = [line.split()[1] for line in text.splitlines() if line.startswith("#SBATCH")]
    assert "--ntasks-per-node=1" in flags
    assert "--requeue" in flags
    assert "--open-mode=append" in flags  # or a job that goes on would lose its log
    assert "--signal=TERM@300" in flags  # not B:, which is for the shell alone
    # Slurm reads no flag after the first line that is neither empty nor a comment.
    code = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert text.index(code[0]) > text.rindex("#SBATCH")


def test_jax_finds_its_peers_and_all_gpus_by_itself(job):
    """Two real processes, with what Slurm sets; without the script JAX would have GPU 0 alone."""
    job.stand_in("srun", TWO_HOSTS)
    job.environment["PATH"] += f":{os.path.dirname(sys.executable)}"
    (job.path / ".venv/bin/python").unlink()
    wrapper = f'#!/bin/sh\nJAX_PLATFORMS=cpu exec {sys.executable} "$@"\n'
    (job.path / ".venv/bin/python").write_text(wrapper)
    (job.path / ".venv/bin/python").chmod(0o755)
    # The job's number makes the port: one of 4096.
    done = job.run(
        "slurm.sbatch", "python", "-c", JOINS, SLURM_JOB_ID=str(os.getpid()), RESTARTS="0"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("visible devices: 0,1,2,3,4,5,6,7\n") == 2
    joined = [line for line in done.stdout.splitlines() if line.startswith("process ")]
    assert sorted(joined) == ["process 0 of 2 8", "process 1 of 2 8"]
