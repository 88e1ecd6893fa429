"""gpu.sh against stand-ins for nvidia-smi and for a Python whose JAX sees some number of GPUs."""

import pytest

from tests.launch.conftest import one_line, printed

SMI = r'print("\n".join(f"GPU {i}: NVIDIA H200 (UUID: GPU-{i})" for i in range(4)))'
# The check of JAX first, then the command.
PYTHON = """
import shlex
if sys.argv[1] == "-c":
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    print(os.environ.get("SEEN", len(visible.split(","))))
else:
    print(shlex.join(sys.argv[1:]))
    print(os.environ.get("CUDA_VISIBLE_DEVICES"), os.environ["JAX_PLATFORMS"])
    sys.exit(7)
"""
COMMAND = ["python", "-m", "diffusion_distill.main", "--workdir=a b"]


@pytest.fixture
def host(bench):
    """A host of four GPUs."""
    bench.stand_in("nvidia-smi", SMI)
    bench.stand_in("python", PYTHON)
    return bench


@pytest.mark.parametrize(
    ("environment", "visible"),
    [
        ({}, None),
        ({"GPUS": "0,2"}, "0,2"),
        ({"CUDA_VISIBLE_DEVICES": "3"}, "3"),
        ({"CUDA_VISIBLE_DEVICES": "GPU-1"}, "GPU-1"),
        ({"CUDA_VISIBLE_DEVICES": "3", "GPUS": "1"}, "1"),
    ],
)
def test_one_process_has_all_gpus_or_those_that_were_asked_for(host, environment, visible):
    done = host.run("gpu.sh", *COMMAND, **environment)
    assert done.returncode == 7  # the command's own
    assert done.stdout == f"-m diffusion_distill.main '--workdir=a b'\n{visible} cuda,cpu\n"
    assert host.calls()[-1] == COMMAND


def test_a_signal_reaches_the_command(host):
    waiting = 'import signal\nprint("waiting", flush=True)\nsignal.pause()'
    host.stand_in("python", f"if sys.argv[1] == '-c':\n    print(4)\n    sys.exit()\n{waiting}")
    process = host.start("gpu.sh", *COMMAND)
    assert process.stdout.readline() == "waiting\n"
    process.terminate()
    assert process.wait(timeout=20) == -15
    process.communicate()


def test_a_dry_run_prints_and_runs_nothing(host):
    done = host.run("gpu.sh", "--dry-run", *COMMAND, GPUS="0,1")
    assert printed(done) == [
        ["env", "CUDA_VISIBLE_DEVICES=0,1", "JAX_PLATFORMS=cuda,cpu", *COMMAND]
    ]
    assert host.calls() == []


@pytest.mark.parametrize(
    ("command", "environment", "line"),
    [
        ([], {}, "no command"),
        (["--gpus=1", "true"], {}, "no flag --gpus=1"),
        (COMMAND, {"GPUS": "all"}, 'GPUS "all" must be numbers'),
        (COMMAND, {"GPUS": "0,4"}, "there is no GPU 4: this host has 4"),
        (COMMAND, {"SEEN": "0"}, "JAX sees 0 of 4 GPU(s)"),
        (COMMAND, {"SEEN": "1", "GPUS": "0,1"}, "JAX sees 1 of 2 GPU(s)"),
        (COMMAND, {"PYTHON": "no-such-python"}, "JAX sees 0 of 4 GPU(s)"),
    ],
)
def test_a_mistake_ends_in_one_line(host, command, environment, line):
    assert line in one_line(host.run("gpu.sh", *command, **environment))
    assert COMMAND not in host.calls()


@pytest.mark.parametrize(
    ("body", "line"),
    [
        (
            'print("NVIDIA-SMI has failed because it could not talk to the driver.\\nMake sure");'
            "sys.exit(9)",
            "nvidia-smi: NVIDIA-SMI has failed",
        ),
        ("", "nvidia-smi lists no GPU"),
    ],
)
def test_a_host_without_gpus_is_said_so(host, body, line):
    host.stand_in("nvidia-smi", body)
    assert line in one_line(host.run("gpu.sh", *COMMAND))
