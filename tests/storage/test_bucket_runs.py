"""A run in a bucket: as on a local disk, to the bit."""

import json
import signal
import time

import jax
import numpy as np
import pytest

from diffusion_distill.data.sources import load_images
from diffusion_distill.devices.sharding import make_mesh
from diffusion_distill.errors import CheckpointError
from diffusion_distill.interop.load import load_sampler
from diffusion_distill.run import run_config
from diffusion_distill.runs import checkpoints
from diffusion_distill.runs.network import from_stage
from diffusion_distill.runs.workdir import Workdir
from diffusion_distill.storage import buckets
from diffusion_distill.storage.buckets import as_path
from diffusion_distill.storage.files import read_rows, write_rows
from tests.bucket_server import flip
from tests.commands import Command, run
from tests.conftest import TINY, tiny_config

STAGES = ["teacher", "student_0002", "student_0001"]


@pytest.fixture(scope="module")
def server(bucket_server):
    return bucket_server


@pytest.fixture
def in_bucket(finished, server):
    """The finished run, copied into the bucket, to go on with, to look at and to damage."""
    server.buckets["bucket"].clear()
    for path in finished[0].rglob("*"):
        if path.is_file() and path.name != ".lock":
            name = path.relative_to(finished[0]).as_posix()
            server.put("bucket", f"run/{name}", path.read_bytes(), {})
    return as_path("gs://bucket/run")


def outcome(workdir):
    """All numbers and images that a run leaves, but for how long it took."""
    rows = [row | {"seconds": 0} for row in read_rows(workdir / "results.jsonl")]
    metrics = [read_rows(workdir / stage / "metrics.jsonl") for stage in STAGES]
    return json.dumps([rows, metrics]), [
        (workdir / stage / "samples.png").read_bytes() for stage in STAGES
    ]


def weights(workdir):
    run = Workdir.open(workdir)
    return [from_stage(run, run.finished_stage(name=stage), make_mesh()).params for stage in STAGES]


def assert_same_run(there, here):
    """All that a run leaves, but for its times."""
    assert outcome(there) == outcome(here)
    jax.tree.map(np.testing.assert_array_equal, weights(there), weights(here))
    names = {path.relative_to(there).as_posix() for path in there.below()}
    for stage in STAGES:
        assert any(name.startswith(f"{stage}/tensorboard/events") for name in names)
    assert "results.txt" in names
    assert not any("measuring" in name or name.endswith(".lock") for name in names)
    folders = {p.relative_to(here).as_posix() for p in here.rglob("*") if p.is_dir()}
    assert {name.split("/")[0] for name in names if "/" in name} == {
        name.split("/")[0] for name in folders
    }


def test_it_goes_on_there_and_ends_with_the_bits_of_a_local_run(in_bucket, finished, server, go_on):
    objects = server.buckets["bucket"]
    for name in [name for name in objects if name.startswith("run/student_0001/")]:
        del objects[name]
    write_rows(in_bucket / "results.jsonl", read_rows(in_bucket / "results.jsonl")[:-1])
    go_on(str(in_bucket))
    assert_same_run(in_bucket, finished[0])
    (events,) = (
        found.content
        for name, found in objects.items()
        if name.startswith("run/student_0001/tensorboard/")
    )
    assert b"brain.Event:2" in events
    assert b"learning_rate" in events


@pytest.mark.slow
def test_in_an_emulator_too_it_ends_with_the_bits_of_a_local_run(emulator, finished):
    run_config(tiny_config(), "gs://bucket/run")
    assert_same_run(as_path("gs://bucket/run"), finished[0])


@pytest.mark.slow
def test_killed_and_started_again_it_ends_with_the_bits_of_a_local_run(
    finished, server, monkeypatch
):
    objects, end = server.buckets["bucket"], time.monotonic() + 300
    objects.clear()
    process = Command("main", *TINY, "--workdir=gs://bucket/run")
    while "run/teacher/checkpoints/4/sha256.json" not in objects:
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.005)
    server.gone = True  # so that it gets no further, on however slow a machine
    process.send_signal(signal.SIGKILL)
    process.wait()
    server.gone = False
    assert "run/.lock" in objects
    assert "run/results.jsonl" not in objects
    with monkeypatch.context() as patch:  # what it left behind is not waited for here
        patch.setattr(buckets, "SILENCE", 0.1)
        patch.setattr(buckets, "HEARTBEAT", 0.05)
        with buckets.locked(as_path("gs://bucket/run/.lock"), lost=print):
            pass
    run_config(tiny_config(), "gs://bucket/run")
    assert_same_run(as_path("gs://bucket/run"), finished[0])


def test_a_finished_run_is_left_as_it_is(in_bucket, server):
    before = dict(server.buckets["bucket"])
    run_config(tiny_config(), "gs://bucket/run")
    after = dict(server.buckets["bucket"])
    for name in ("run/config.json", "run/stages.jsonl"):  # written at each start
        before.pop(name), after.pop(name)
    assert after == before


def test_it_samples_as_a_local_one_does(in_bucket, finished):
    here, there = (load_sampler(path, 2) for path in (finished[0], "gs://bucket/run"))
    np.testing.assert_array_equal(there(5, 12), here(5, 12))


@pytest.mark.slow
def test_the_commands_take_it(in_bucket, server):
    done = run(
        "sample",
        "--workdir=gs://bucket/run",
        "--num_images=4",
        "--out=gs://bucket/samples/a.npz",
    )
    assert done.returncode == 0, done.stderr
    assert len(load_images("gs://bucket/samples/a.npz")) == 4
    done = run("evaluate", "--workdir=gs://bucket/run", "--num_steps=2")
    assert done.returncode == 0, done.stderr
    (row,) = read_rows(in_bucket / "evaluations.jsonl")
    measured = read_rows(in_bucket / "results.jsonl")[1]
    assert row["fd_pixels100_train"] == measured["fd_pixels100_train"]
    assert not any("evaluating" in name for name in server.buckets["bucket"])


def test_a_damaged_object_is_found_named_and_set_aside(in_bucket, server, capsys):
    directory = checkpoints.folder(in_bucket, "teacher")
    assert checkpoints.steps(directory) == [12, 8]
    (name,) = [
        name
        for name in server.buckets["bucket"]
        if name.startswith("run/teacher/checkpoints/12/ema_params/d/")
    ]
    flip(server, name)
    with pytest.raises(CheckpointError, match="12 cannot be used: ema_params/d/.* does not match"):
        checkpoints.verify(directory, 12)
    whole = checkpoints.newest_whole(directory, print)
    assert whole.step == 8
    checkpoints.set_aside_newer(directory, whole)
    assert checkpoints.steps(directory) == [8]
    assert name.replace("checkpoints/12", "damaged/12-0") in server.buckets["bucket"]


def test_what_a_kill_cut_off_is_removed(in_bucket, server):
    directory = checkpoints.folder(in_bucket, "teacher")
    del server.buckets["bucket"]["run/teacher/checkpoints/12/sha256.json"]
    whole = checkpoints.newest_whole(directory, lambda line: None)
    checkpoints.set_aside_newer(directory, whole)
    assert not any("run/teacher/checkpoints/12" in name for name in server.buckets["bucket"])


@pytest.mark.slow
def test_the_command_tells_it_in_one_line(server):
    done = run("main", "--config=configs/digits_distill.py:tiny", "--workdir=gs://nobody/run")
    assert done.returncode == 2
    assert done.stderr == "error: gs://nobody/run: there is no bucket nobody\n"
