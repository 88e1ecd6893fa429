"""A run, and its data, in a bucket of a server on loopback: as on a local disk, to the bit."""

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import gcsfs.retry
import jax
import numpy as np
import pytest

from diffusion_distill.data import sources
from diffusion_distill.data.images import load_images
from diffusion_distill.devices.sharding import make_mesh
from diffusion_distill.errors import BucketError, CheckpointError, UserError
from diffusion_distill.interop.load import load_sampler
from diffusion_distill.run import check, run_config
from diffusion_distill.runs import checkpoints
from diffusion_distill.runs.network import from_stage
from diffusion_distill.runs.workdir import Workdir
from diffusion_distill.storage import buckets
from diffusion_distill.storage.buckets import as_path
from diffusion_distill.storage.files import read_rows, write_rows
from tests.bucket_server import Object, flip
from tests.conftest import data_config, tiny_config

ROOT = Path(__file__).parents[2]
STAGES = ["teacher", "student_0002", "student_0001"]


@pytest.fixture(scope="module")
def server(bucket_server):
    return bucket_server


def command(module, *arguments):
    return [sys.executable, "-m", f"diffusion_distill.{module}", *arguments]


def run(module, *arguments):
    return subprocess.run(
        command(module, *arguments), cwd=ROOT, capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def killed_and_finished(server):
    """A run that was killed after its first checkpoint, and then started again to its end."""
    config = "--config=configs/digits_distill.py:tiny"
    process = subprocess.Popen(
        command(
            "main", config, "--config.model.attention_resolutions=()", "--workdir=gs://bucket/run"
        ),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
    )
    objects, end = server.buckets["bucket"], time.monotonic() + 300
    while "run/teacher/checkpoints/4/sha256.json" not in objects:
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.005)
    server.gone = True  # so that it gets no further, on however slow a machine
    process.kill()
    process.wait()
    server.gone = False
    assert "run/.lock" in objects
    assert "run/results.jsonl" not in objects
    with pytest.MonkeyPatch.context() as patch:  # what it left behind is not waited for here
        patch.setattr(buckets, "SILENCE", 0.1)
        patch.setattr(buckets, "HEARTBEAT", 0.05)
        with buckets.locked(as_path("gs://bucket/run/.lock"), lost=print):
            pass
    run_config(tiny_config(), "gs://bucket/run")
    return as_path("gs://bucket/run")


@pytest.fixture
def in_bucket(killed_and_finished, server):
    """A copy to damage."""
    objects = server.buckets["bucket"]
    for name in [name for name in objects if name.startswith("copy/")]:
        del objects[name]
    for name in [name for name in objects if name.startswith("run/")]:
        objects[f"copy/{name.removeprefix('run/')}"] = objects[name]
    return as_path("gs://bucket/copy")


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


@pytest.mark.slow
def test_killed_and_started_again_it_ends_with_the_bits_of_a_local_run(
    killed_and_finished, finished, server
):
    local, _ = finished
    assert outcome(killed_and_finished) == outcome(local)
    jax.tree.map(np.testing.assert_array_equal, weights(killed_and_finished), weights(local))
    names = {name.removeprefix("run/") for name in server.buckets["bucket"] if "run/" in name}
    for stage in STAGES:
        assert any(name.startswith(f"{stage}/tensorboard/events") for name in names)
    assert "results.txt" in names
    assert not any("measuring" in name or name.endswith(".lock") for name in names)
    here = {p.relative_to(local).as_posix() for p in local.rglob("*") if p.is_dir()}
    assert {name.split("/")[0] for name in names if "/" in name} == {
        name.split("/")[0] for name in here
    }


def test_events_are_those_of_tensorboard(killed_and_finished, server):
    contents = [
        found.content
        for name, found in server.buckets["bucket"].items()
        if name.startswith("run/student_0001/tensorboard/")
    ]
    assert len(contents) == 1
    assert b"brain.Event:2" in contents[0]
    assert b"learning_rate" in contents[0]


def test_a_finished_run_is_left_as_it_is(killed_and_finished, server):
    before = dict(server.buckets["bucket"])
    run_config(tiny_config(), "gs://bucket/run")
    after = dict(server.buckets["bucket"])
    for name in ("run/config.json", "run/stages.jsonl"):  # written at each start
        before.pop(name), after.pop(name)
    assert after == before


def test_it_samples_as_a_local_one_does(killed_and_finished, finished, server):
    here, there = (load_sampler(path, 2) for path in (finished[0], "gs://bucket/run"))
    np.testing.assert_array_equal(there(5, 12), here(5, 12))


@pytest.mark.slow
def test_the_commands_take_it(killed_and_finished, server):
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
    (row,) = read_rows(killed_and_finished / "evaluations.jsonl")
    measured = read_rows(killed_and_finished / "results.jsonl")[1]
    assert row["fd_pixels100_train"] == measured["fd_pixels100_train"]
    assert not any("evaluating" in name for name in server.buckets["bucket"])
    del server.buckets["bucket"]["run/evaluations.jsonl"]


def test_a_damaged_object_is_found_named_and_set_aside(in_bucket, server, capsys):
    directory = checkpoints.folder(in_bucket, "teacher")
    assert checkpoints.steps(directory) == [12, 8]
    (name,) = [
        name
        for name in server.buckets["bucket"]
        if name.startswith("copy/teacher/checkpoints/12/ema_params/d/")
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
    del server.buckets["bucket"]["copy/teacher/checkpoints/12/sha256.json"]
    whole = checkpoints.newest_whole(directory, lambda line: None)
    checkpoints.set_aside_newer(directory, whole)
    assert not any("copy/teacher/checkpoints/12" in name for name in server.buckets["bucket"])


@pytest.fixture
def gone(server, monkeypatch):
    """A server that drops every connection; attempts follow each other without a wait."""

    async def no_wait(seconds):
        pass

    monkeypatch.setattr(gcsfs.retry.asyncio, "sleep", no_wait)
    server.gone = True
    yield
    server.gone = False


def test_a_bucket_out_of_reach_is_not_taken_for_damage_or_for_an_empty_one(in_bucket, gone):
    directory = checkpoints.folder(in_bucket, "teacher")
    for asked in (
        lambda: checkpoints.steps(directory),
        lambda: checkpoints.is_finished(directory, 12),
        lambda: checkpoints.check(directory, 12),
        lambda: read_rows(in_bucket / "results.jsonl"),
        lambda: Workdir(in_bucket, tiny_config(), (8, 8, 1), 10).begin(),
        lambda: sources.load(data_config("folder", "gs://bucket/photos")),
    ):
        with pytest.raises(BucketError, match="^gs://bucket/.* cannot be used: .*") as error:
            asked()
        assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("path", "kind", "message"),
    [
        ("gs://nobody/run", UserError, "there is no bucket nobody"),
        ("gs://closed/run", BucketError, "gs://closed/run.* cannot be used: .*does not have"),
        ("s3://bucket/run", UserError, "s3://bucket/run is neither a folder nor an address such"),
        ("gs:/bucket/run", UserError, "gs:/bucket/run is neither a folder nor an address such"),
        ("gs://bucket", UserError, "gs://bucket does not name a folder in a bucket"),
    ],
)
def test_a_wrong_address_is_told_in_one_line(server, path, kind, message):
    with pytest.raises(kind, match=message) as error:
        Workdir(as_path(path), tiny_config(), (8, 8, 1), 10).begin()
    assert len(str(error.value).splitlines()) == 1


def test_the_command_tells_it_in_one_line(server):
    done = run("main", "--config=configs/digits_distill.py:tiny", "--workdir=gs://nobody/run")
    assert done.returncode == 2
    assert done.stderr == "error: gs://nobody/run: there is no bucket nobody\n"


def test_without_gcsfs_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(buckets.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"gs://bucket/run needs gcsfs: pip install -e '.\[gcs\]'"):
        load_sampler("gs://bucket/run")


def test_a_cache_in_a_bucket_is_refused(tiny_config):
    tiny_config.runtime.cache_dir = "gs://bucket/cache"
    with pytest.raises(UserError, match="config.runtime.cache_dir is gs://bucket/cache; it must"):
        check(tiny_config, "gs://bucket/another")


def test_a_lock_is_one_process_s_at_a_time(server, monkeypatch):
    monkeypatch.setattr(buckets, "HEARTBEAT", 0.05)
    path, lost = as_path("gs://bucket/locked/.lock"), []
    with buckets.locked(path, lost.append):
        with (
            pytest.raises(UserError, match="^gs://bucket/locked is in use by another process"),
            buckets.locked(path),
        ):
            pass
        assert not lost
    assert "locked/.lock" not in server.buckets["bucket"]


def test_a_lock_that_gives_no_sign_of_life_is_taken_over(server, monkeypatch, capsys):
    monkeypatch.setattr(buckets, "SILENCE", 0.3)
    monkeypatch.setattr(buckets, "HEARTBEAT", 0.1)
    server.buckets["bucket"]["left/.lock"] = Object(b"", 1)
    began = time.monotonic()
    with buckets.locked(as_path("gs://bucket/left/.lock"), lost=print):
        assert server.buckets["bucket"]["left/.lock"].generation != 1
    assert time.monotonic() - began >= 0.3
    assert "gs://bucket/left is locked; waiting up to" in capsys.readouterr().out


def test_a_lock_in_other_hands_ends_the_process_that_lost_it(server, monkeypatch):
    monkeypatch.setattr(buckets, "HEARTBEAT", 0.02)
    lost = threading.Event()
    with buckets.locked(as_path("gs://bucket/lost/.lock"), lambda reason: lost.set()):
        server.put("bucket", "lost/.lock", b"", {})
        assert lost.wait(10)
    assert "lost/.lock" in server.buckets["bucket"]  # it is the other's


def test_rows_that_were_not_written_out_are_in_the_next_flush(server):
    path = as_path("gs://bucket/rows.jsonl")
    write_rows(path, [{"step": 1}])
    growing = buckets.Growing(path, path.read_text())
    growing.write('{"step": 2}\n')
    assert read_rows(path) == [{"step": 1}]
    growing.flush()
    assert read_rows(path) == [{"step": 1}, {"step": 2}]
