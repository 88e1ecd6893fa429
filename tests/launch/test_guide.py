"""docs/pod.md says what the scripts and `plan` take."""

import re
import shlex

import pytest

from diffusion_distill.plan.hardware import parse_topology
from diffusion_distill.validate import from_file
from tests.launch.conftest import LAUNCH, printed

ROOT = LAUNCH.parent
GUIDE = (ROOT / "docs/pod.md").read_text()
LINES = re.search(r"```\n(.*?)```", GUIDE, re.DOTALL)[1].splitlines()
ROWS = re.findall(r"^\| (v\w+:[\dx]+) *\| (\S+) *\| *(\d+) \|", GUIDE, re.MULTILINE)
EXPORTED = dict(word.split("=") for line in LINES if "export" in line for word in line.split()[1:])


def test_ten_lines_and_a_table():
    assert len(LINES) == 10
    assert len(ROWS) >= 8


@pytest.mark.parametrize("line", [x for x in LINES if x.startswith("launch/tpu_vm.sh ")])
def test_each_line_is_one_that_the_script_takes(bench, line):
    """After the `export`, with the variables that it sets, and as a shell reads it."""
    words = shlex.split(line.replace("$BUCKET", EXPORTED["BUCKET"]))
    done = bench.run("tpu_vm.sh", "--dry-run", *words[1:], **EXPORTED)
    assert done.returncode == 0, done.stderr
    assert printed(done)
    for words_run in printed(done):
        if words_run[0] == "gcloud":
            assert f"--zone={EXPORTED['ZONE']}" in words_run


def test_a_bucket_reaches_the_workers_as_it_is(bench):
    (line,) = [x for x in LINES if x.startswith("launch/tpu_vm.sh run ")]
    words = shlex.split(line.replace("$BUCKET", EXPORTED["BUCKET"]))
    done = bench.run("tpu_vm.sh", "--dry-run", *words[1:], **EXPORTED)
    starts = [w[-1] for w in printed(done) if "worker.sh start" in w[-1]]
    command = shlex.split(starts[0].removeprefix("--command="))
    assert command[:3] == ["bash", "diffusion_distill/launch/worker.sh", "start"]
    assert command[3:] == words[2:]
    assert "--workdir=gs://MY-BUCKET/runs/imagenet64" in command


def test_the_fields_that_it_sets_are_there():
    (line,) = [x for x in LINES if x.startswith("launch/tpu_vm.sh run ")]
    fields = from_file(str(ROOT / re.search(r"--config=(\S+)", line)[1]))
    found = re.findall(r"--config\.(\w+)\.(\w+)=", line)
    assert found
    assert all(name in fields[section] for section, name in found)


@pytest.mark.parametrize("row", ROWS)
def test_the_two_names_are_of_the_same_slice(row):
    topology, accelerator, chips = row
    kind, size = accelerator.rsplit("-", 1)
    cores = 2 if kind in ("v4", "v5p") else 1
    assert parse_topology(topology).size == int(chips) == int(size) / cores
    assert kind.replace("v5litepod", "v5e") == topology.split(":")[0]


def test_the_slice_that_is_planned_is_the_slice_that_is_requested():
    (planned,) = re.findall(r"--topology=(\S+)", "\n".join(LINES))
    assert f"| {planned} " in GUIDE
    row = next(line for line in GUIDE.splitlines() if line.startswith(f"| {planned} "))
    assert EXPORTED["ACCELERATOR_TYPE"] in row
