"""tpu_vm.sh run --keep: what it starts again, and when it gives up."""

import json

import pytest

from tests.launch.conftest import UNTIL_STOPPED, created, log, wait_for

# A command of a person that ends with the code of the first line of a file, a line for each
# start; then with 0.
CODES = """
import os, pathlib, sys
file = pathlib.Path(sys.argv[1]) / os.environ["WORKER"]
lines = file.read_text().split() if file.exists() else []
file.write_text(" ".join(lines[1:]))
sys.exit(int(lines[0]) if lines else 0)
"""

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
