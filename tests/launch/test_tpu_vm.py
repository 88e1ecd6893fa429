"""tpu_vm.sh against a stand-in for gcloud, whose two workers run what they are told."""

from pathlib import Path

import pytest

from tests.launch.conftest import (
    QUEUED,
    UNTIL_STOPPED,
    log,
    one_line,
    printed,
    wait_for,
)

WHERE = ["--zone=us-west4-a", "--project=my-project"]


def without_archive(commands: list[list[str]]) -> list[list[str]]:
    """Commands less the local archive, whose name has the script's process in it."""
    return [[word for word in words if not word.startswith("/")] for words in commands]


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
        command = ["run", "true"]
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


@pytest.mark.parametrize("how", ["SUSPENDED", "PREEMPTED"])
def test_a_slice_that_is_gone_is_said_so(bench, ready, how):
    (ready / "states").write_text(how)
    assert f'"diffusion-distill" is {how}' in bench.run("tpu_vm.sh", "status").stdout
    assert f"is {how}, not ACTIVE" in one_line(bench.run("tpu_vm.sh", "run", "true"))
    assert "will not become ACTIVE" in one_line(bench.run("tpu_vm.sh", "setup"))


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
