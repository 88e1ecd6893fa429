"""tpu_vm.sh against a stand-in for gcloud, whose two workers run what they are told."""

import json
import shutil
import sys
import time
from pathlib import Path

import pytest

from tests.launch.conftest import LAUNCH, one_line, printed

GCLOUD = Path(__file__).with_name("gcloud.py")
WHERE = ["--zone=us-west4-a", "--project=my-project"]
QUEUED = ["gcloud", "compute", "tpus", "queued-resources"]

# A worker's `uv venv` makes what the script looks for; what it installs is only recorded.
UV = """
if sys.argv[1] == "venv":
    os.makedirs(sys.argv[-1] + "/bin")
    os.symlink(sys.executable, sys.argv[-1] + "/bin/python")
"""

# Commands of a person, as Python programs. The first runs until it is asked to stop, and saves.
UNTIL_STOPPED = """
import signal, sys
signal.signal(signal.SIGTERM, lambda *_: (print("saved", flush=True), sys.exit(143)))
print("running", sys.argv[1:], flush=True)
signal.pause()
"""
# The second ends with the code of the first line of a file, a line for each start; then with 0.
CODES = """
import os, pathlib, sys
file = pathlib.Path(sys.argv[1]) / os.environ["WORKER"]
lines = file.read_text().split() if file.exists() else []
file.write_text(" ".join(lines[1:]))
sys.exit(int(lines[0]) if lines else 0)
"""


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


def without_archive(commands: list[list[str]]) -> list[list[str]]:
    """Commands less the local archive, whose name has the script's process in it."""
    return [[word for word in words if not word.startswith("/")] for words in commands]


def created(bench) -> list[list[str]]:
    return [call for call in bench.calls() if call[:5] == [*QUEUED, "create"]]


@pytest.mark.parametrize(
    ("accelerator", "version"),
    [
        ("v4-16", "tpu-ubuntu2204-base"),
        ("v5litepod-64", "v2-alpha-tpuv5-lite"),
        ("v5p-8", "v2-alpha-tpuv5"),
        ("v6e-16", "v2-alpha-tpuv6e"),
    ],
)
def test_create_requests_the_slice(bench, cloud, accelerator, version):
    done = bench.run("tpu_vm.sh", "create", ACCELERATOR_TYPE=accelerator)
    assert done.returncode == 0, done.stderr
    assert bench.calls() == [
        [
            *[*QUEUED, "create", "diffusion-distill", *WHERE, "--node-id=diffusion-distill"],
            *[f"--accelerator-type={accelerator}", f"--runtime-version={version}"],
        ]
    ]


def test_create_takes_every_variable(bench, cloud):
    done = bench.run(
        "tpu_vm.sh",
        "create",
        TPU_NAME="mine",
        SPOT="true",
        RUNTIME_VERSION="another",
        CREATE_FLAGS="--reserved --network=lab",
    )
    assert done.returncode == 0, done.stderr
    (call,) = bench.calls()
    assert call[5] == "mine"
    assert call[8:] == [
        "--node-id=mine",
        "--accelerator-type=v5litepod-8",
        "--runtime-version=another",
        "--spot",
        "--reserved",
        "--network=lab",
    ]


def test_setup_waits_and_installs_on_all_workers(bench, cloud):
    (cloud / "next").write_text("WAITING_FOR_RESOURCES WAITING_FOR_RESOURCES PROVISIONING ACTIVE")
    bench.run("tpu_vm.sh", "create")
    done = bench.run("tpu_vm.sh", "setup")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("WAITING_FOR_RESOURCES") == 1
    for number in range(2):
        code = cloud / f"worker-{number}/diffusion_distill"
        assert (code / "diffusion_distill/main.py").exists()
        assert (code / "configs/cifar10_distill.py").exists()
    installs = [call for call in bench.calls() if call[0] == "uv"]
    assert sorted(installs) == 2 * [
        "uv pip install --python .venv/bin/python -c constraints.txt -e .[tpu,gcs]".split()
    ] + 2 * ["uv venv --python 3.11 .venv".split()]
    assert not list(bench.path.glob("*.tgz"))
    again = bench.run("tpu_vm.sh", "setup")  # after a change of the code
    assert again.returncode == 0, again.stderr


def test_setup_ends_where_the_request_failed(bench, cloud):
    (cloud / "next").write_text("PROVISIONING FAILED")
    bench.run("tpu_vm.sh", "create")
    assert "will not become ACTIVE" in one_line(bench.run("tpu_vm.sh", "setup"))


def test_setup_names_a_failed_installation(bench, cloud):
    bench.stand_in("uv", "sys.exit(1)")
    bench.run("tpu_vm.sh", "create")
    done = bench.run("tpu_vm.sh", "setup")
    assert done.returncode == 2
    assert "not set up on all workers" in done.stderr.splitlines()[-1]


def test_the_same_command_runs_on_all_workers_detached(bench, ready):
    words = ["two words", "$HOME", "it's", '"', "--dry-run", "a\\b", "*", ""]
    done = bench.run("tpu_vm.sh", "run", "python", "-c", UNTIL_STOPPED, *words)
    assert done.returncode == 0, done.stderr
    for number in range(2):
        wait_for(lambda number=number: f"running {words}" in log(ready, number))
    state = bench.run("tpu_vm.sh", "status").stdout
    assert '"diffusion-distill" is ACTIVE' in state
    assert state.count(": running; last line: running ['two words'") == 2

    twice = bench.run("tpu_vm.sh", "run", "python", "-c", UNTIL_STOPPED)
    assert twice.returncode == 2
    assert twice.stderr.count("a command runs already; stop it first") == 2

    stopped = bench.run("tpu_vm.sh", "stop")
    assert stopped.returncode == 0, stopped.stderr
    assert stopped.stdout.count(": stopped; last line: saved") == 2
    for number in range(2):
        assert log(ready, number)[-2:] == [f"running {words}", "saved"]
        code = ready / f"worker-{number}/diffusion_distill/.run/ended"
        assert code.read_text() == "143\n"


def test_stop_does_not_cut_a_save_short(bench, ready):
    slow = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (print("signal"), time.sleep(1.5), sys.exit(0)))
print("running", flush=True)
signal.pause()
"""
    bench.run("tpu_vm.sh", "run", "python", "-u", "-c", slow)
    wait_for(lambda: all("running" in log(ready, number) for number in range(2)))
    early = bench.run("tpu_vm.sh", "stop", STOP_SECONDS="0")
    assert early.returncode == 2
    assert "it runs still, 0 s after SIGTERM" in early.stderr
    late = bench.run("tpu_vm.sh", "stop")
    assert late.returncode == 0, late.stderr
    assert [log(ready, number).count("signal") for number in range(2)] == [1, 1]


def test_logs_are_gathered(bench, ready):
    bench.run("tpu_vm.sh", "run", "bash", "-c", "echo this is $WORKER")
    wait_for(lambda: all(f"this is worker-{i}" in log(ready, i) for i in range(2)))
    done = bench.run("tpu_vm.sh", "logs")
    assert done.returncode == 0, done.stderr
    for number in range(2):
        gathered = (bench.path / f"logs/diffusion-distill/worker-{number}.log").read_text()
        assert gathered.endswith(f"\nthis is worker-{number}\n")


def test_status_tells_how_a_command_ended(bench, ready):
    assert bench.run("tpu_vm.sh", "status").stdout.count(": not started\n") == 2
    bench.run("tpu_vm.sh", "run", "bash", "-c", 'echo end; [ "$WORKER" = worker-0 ] || exit 3')
    ended = [ready / f"worker-{number}/diffusion_distill/.run/ended" for number in range(2)]
    wait_for(lambda: all(file.exists() for file in ended))
    state = bench.run("tpu_vm.sh", "status").stdout
    assert "worker worker-0: ended 0; last line: end\n" in state
    assert "worker worker-1: ended 3; last line: end\n" in state


COMMANDS = [
    ["create"],
    ["setup"],
    ["run", "python", "-m", "diffusion_distill.main"],
    ["run", "--keep=diffusion-distill", "python", "-m", "diffusion_distill.main"],
    ["status"],
    ["logs"],
    ["stop"],
    ["delete", "diffusion-distill"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_dry_run_prints_and_runs_nothing(bench, cloud, command):
    before = bench.run("tpu_vm.sh", "--dry-run", *command)
    after = bench.run("tpu_vm.sh", command[0], "--dry-run", *command[1:])
    assert bench.calls() == []
    assert not (bench.path / "logs").exists()
    assert not list(bench.path.glob("*.tgz"))
    assert without_archive(printed(before)) == without_archive(printed(after))
    assert {words[0] for words in printed(before)} <= {"gcloud", "tar", "mkdir", "rm"}
    if command[0] == "delete":
        trailing = bench.run("tpu_vm.sh", *command, "--dry-run")
        assert printed(trailing)[-1][3:6] == ["queued-resources", "delete", "diffusion-distill"]
        assert bench.calls() == []


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_what_a_dry_run_prints_is_what_runs(bench, ready, command):
    if command[0] == "create":
        (ready / "resource").unlink()
    if command[0] == "run":
        command = [*command[:-3], "true"]
    if command[0] == "logs":
        bench.run("tpu_vm.sh", "run", "true")
    (bench.path / "calls").unlink(missing_ok=True)
    dry = bench.run("tpu_vm.sh", "--dry-run", *command)
    real = bench.run("tpu_vm.sh", *command)
    assert real.returncode == 0, real.stderr
    calls, shown = (
        [words for words in without_archive(commands) if words[0] == "gcloud"]
        for commands in (bench.calls(), printed(dry))
    )
    if command[0] == "logs":  # it says that the others follow
        calls = calls[:-1]
    if any(word.startswith("--keep") for word in command):  # what comes later is shown, too
        assert all(words in shown for words in calls)
    else:
        assert calls == shown


@pytest.mark.parametrize("command", [c for c in COMMANDS if c[0] != "create"], ids=" ".join)
def test_a_name_that_is_not_there_ends_in_one_line(bench, cloud, command):
    line = one_line(bench.run("tpu_vm.sh", *command))
    assert 'no "diffusion-distill" in zone us-west4-a of project my-project' in line


@pytest.mark.parametrize(
    ("command", "wrong"),
    [(command, {"PROJECT": "not-mine"}) for command in COMMANDS]
    + [(command, {"ZONE": "mars-north1-a"}) for command in (["create"], ["status"])],
)
def test_a_wrong_project_or_zone_ends_in_one_line(bench, ready, command, wrong):
    line = one_line(bench.run("tpu_vm.sh", *command, **wrong))
    assert "is PROJECT, ZONE or ACCELERATOR_TYPE wrong?" in line
    assert f"zone {wrong.get('ZONE', 'us-west4-a')} of project " in line
    assert wrong.get("PROJECT", "my-project") in line
    assert (ready / "resource").exists()


@pytest.mark.parametrize(
    ("errors", "line"),
    [
        (
            "ERROR: (gcloud.x) Error parsing [queued_resource].\nThe [queued_resource] resource is "
            "not properly specified.\nFailed to find attribute [project]. The attribute can be set",
            "no project: set PROJECT",
        ),
        (
            "ERROR: (gcloud.x) You do not currently have an active account selected.\nPlease run:",
            "gcloud auth login",
        ),
        (
            'ERROR: (gcloud.x) {\n  "code": 8,\n  "message": "There is no more capacity"\n}',
            "There is no more capacity",
        ),
        ("Segmentation fault\n\n", "Segmentation fault"),
        ("", "did not say why"),
    ],
)
def test_whatever_gcloud_says_ends_in_one_line(bench, cloud, errors, line):
    bench.stand_in("gcloud", f"sys.stderr.write({errors!r}); sys.exit(1)")
    for command in ("create", "status"):
        assert line in one_line(bench.run("tpu_vm.sh", command))


@pytest.mark.parametrize(
    ("command", "environment", "line"),
    [
        (["create"], {"TPU_NAME": "My_TPU"}, '"My_TPU" is not a name'),
        (["create"], {"ZONE": "us-west4"}, '"us-west4" is not a zone'),
        (["create"], {"SPOT": "yes"}, 'SPOT "yes" must be true or false'),
        (["create"], {"ACCELERATOR_TYPE": "h100-8"}, '"h100-8" is none of v4-N'),
        (["create", "mine"], {}, 'create takes no argument, but got "mine"'),
        (["crate"], {}, 'no command "crate"'),
        (["create", "--spot"], {}, "no flag --spot"),
        (["run"], {}, "run needs a command"),
        (["run", "--keep", "true"], {}, "--keep=NAME names"),
        (["run", "--keep=another", "true"], {}, "--keep=another names another slice"),
        (["stop", "--keep=diffusion-distill"], {}, "--keep belongs to run"),
        (["status"], {"PATH": "/usr/sbin"}, "gcloud is not installed"),
    ],
)
def test_a_mistake_ends_in_one_line_before_anything_is_called(
    bench, ready, command, environment, line
):
    if "PATH" in environment:  # what the script needs, but no gcloud
        for program in ("bash", "env", "dirname", "sed"):
            (bench.path / program).symlink_to(Path("/usr/bin") / program)
        environment = {"PATH": str(bench.path)}
    assert line in one_line(bench.run("tpu_vm.sh", *command, **environment))
    assert bench.calls() == []


def test_a_slice_that_is_not_up_yet_is_said_so(bench, cloud):
    (cloud / "next").write_text("PROVISIONING")
    bench.run("tpu_vm.sh", "create")
    assert '"diffusion-distill" is PROVISIONING' in bench.run("tpu_vm.sh", "status").stdout
    for command in (["run", "true"], ["logs"], ["stop"]):
        line = one_line(bench.run("tpu_vm.sh", *command))
        assert "is PROVISIONING, not ACTIVE" in line


def test_a_command_before_setup_is_said_so(bench, ready):
    for number in range(2):
        (ready / f"worker-{number}/diffusion_distill/.venv/bin/python").unlink()
    done = bench.run("tpu_vm.sh", "run", "true")
    assert done.returncode == 2
    assert done.stderr.count("nothing is installed here; `setup` comes first") == 2
    assert "not started on all workers" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("words", [[], ["one", "two"], ["--force"], ["Not-A-Name"], ["another"]])
def test_only_what_is_named_is_deleted(bench, ready, words):
    # The name in the environment is not enough.
    one_line(bench.run("tpu_vm.sh", "delete", *words, TPU_NAME="diffusion-distill"))
    assert not any("delete" in call for call in bench.calls())
    assert (ready / "resource").exists()


def test_delete_deletes_what_is_named(bench, ready):
    done = bench.run("tpu_vm.sh", "delete", "diffusion-distill", TPU_NAME="another")
    assert done.returncode == 0, done.stderr
    assert bench.calls()[-1] == [
        *[*QUEUED, "delete", "diffusion-distill"],
        *[*WHERE, "--force", "--quiet"],
    ]
    assert not (ready / "resource").exists()


KEEP = ["run", "--keep=diffusion-distill"]


@pytest.mark.parametrize("how", ["SUSPENDED", "PREEMPTED"])
def test_a_preempted_run_is_started_again_on_a_new_slice(bench, ready, how):
    command = ["python", "-c", UNTIL_STOPPED, "the same"]
    keeper = bench.start("tpu_vm.sh", *KEEP, *command, SPOT="true")
    wait_for(lambda: all("running ['the same']" in log(ready, number) for number in range(2)))
    (ready / "next").write_text("WAITING_FOR_RESOURCES ACTIVE")
    (ready / "states").write_text(how)
    wait_for(lambda: log(ready, 0) == [])
    wait_for(lambda: all("running ['the same']" in log(ready, number) for number in range(2)))
    assert [call[-1] for call in created(bench)] == ["--spot"]
    stopped = bench.run("tpu_vm.sh", "stop")
    assert stopped.returncode == 0, stopped.stderr
    output, errors = keeper.communicate(timeout=60)
    assert keeper.returncode == 0, errors
    assert f'"diffusion-distill" is {how}; requesting it anew' in output
    assert "stopped by hand" in output


def test_it_gives_up_where_request_after_request_fails(bench, ready):
    (ready / "next").write_text("FAILED")
    (ready / "states").write_text("FAILED")
    done = bench.run("tpu_vm.sh", *KEEP, "true")
    assert done.returncode == 2
    assert "is FAILED after 3 requests in a row" in done.stderr
    assert len(created(bench)) == 3


def test_a_slice_that_somebody_deleted_stays_deleted(bench, ready):
    keeper = bench.start("tpu_vm.sh", *KEEP, "python", "-c", UNTIL_STOPPED)
    wait_for(lambda: "running []" in log(ready, 0))
    assert bench.run("tpu_vm.sh", "delete", "diffusion-distill").returncode == 0
    _, errors = keeper.communicate(timeout=60)
    assert keeper.returncode == 2
    assert "was deleted by somebody else" in errors
    assert created(bench) == []


@pytest.mark.parametrize(
    ("codes", "returncode", "message", "starts"),
    [
        (["", ""], 0, "done; `logs` gathers the logs", 1),
        (["134 1 0", "137 0 0"], 0, "(ended 134,ended 137); starting it again", 3),
        (["2", "2"], 2, "only a person can put right", 1),
        (["134", "3"], 2, "only a person can put right", 1),
        (["1 1 1", "1 1 1"], 2, "the command failed 3 times (ended 1)", 3),
    ],
)
def test_how_the_command_ended_decides(bench, ready, codes, returncode, message, starts):
    for number, worker_codes in enumerate(codes):
        (bench.path / f"worker-{number}").write_text(worker_codes)
    done = bench.run("tpu_vm.sh", *KEEP, "python", "-c", CODES, str(bench.path), RESTARTS="2")
    assert done.returncode == returncode, done.stderr
    assert message in done.stdout + done.stderr
    begun = [call for call in bench.calls() if "worker.sh start" in call[-1]]
    assert len(begun) == starts
    assert len({json.dumps(call) for call in begun}) == 1


def test_keep_goes_on_watching_what_runs_already(bench, ready):
    command = ["python", "-c", UNTIL_STOPPED]
    bench.run("tpu_vm.sh", "run", *command)
    keeper = bench.start("tpu_vm.sh", *KEEP, *command)
    wait_for(lambda: sum("worker.sh status" in call[-1] for call in bench.calls()) > 2)
    assert bench.run("tpu_vm.sh", "stop").returncode == 0
    assert keeper.wait(timeout=60) == 0
    assert sum("worker.sh start" in call[-1] for call in bench.calls()) == 1
