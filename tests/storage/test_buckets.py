"""Paths in a bucket, its lock and its growing file: in our stand-in, and in an emulator by others.

fake-gcs-server, which the extra test installs, is a program that knows nothing of ours: what passes
with both is no quirk of tests/bucket_server.py. It creates on condition that there is none, but
drops the conditions of changes and deletions and keeps one metageneration, so what the lock does
with them is tested with the stand-in alone.
"""

import threading
import time

import gcsfs.retry
import pytest

from diffusion_distill.data import sources
from diffusion_distill.errors import BucketError, UserError
from diffusion_distill.interop.load import load_sampler
from diffusion_distill.run import check
from diffusion_distill.runs import checkpoints
from diffusion_distill.runs.workdir import Workdir
from diffusion_distill.storage import buckets, files
from diffusion_distill.storage.buckets import as_path
from diffusion_distill.storage.files import read_rows, sha256, write_rows
from tests.bucket_server import Object
from tests.conftest import data_config, tiny_config


@pytest.fixture(scope="module")
def server(bucket_server):
    return bucket_server


@pytest.fixture(params=["server", pytest.param("emulator", marks=pytest.mark.slow)])
def either(request):
    """The stand-in, or the emulator."""
    request.getfixturevalue(request.param)


def used(root):
    """What is seen of a folder in which files come and go; names are relative to it."""
    seen = []

    def look():
        paths = [*files.files_below(root), *root.iterdir(), *root.glob("*/b*")]
        kinds = [(path.is_file(), path.is_dir(), path.exists()) for path in paths]
        names = [path.relative_to(root).as_posix() for path in paths]
        seen.append(sorted(zip(names, kinds, strict=True)))

    root.mkdir(parents=True, exist_ok=True)
    for name in ("a.json", "one/b c#%20+é.bin", "one/b", "two/three/b"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        files.write_atomically(root / name, f'{{"of": "{name}"}}')
    look()
    seen.append(files.read_json(root / "a.json"))
    files.write_atomically(root / "a.json", '{"of": "later"}')
    seen.append((root / "a.json").read_text())
    (root / "one/b").replace(root / "one/c")
    (root / "two").rename(root / "four")
    look()
    large = bytes(range(256)) * 2**15  # 8 MiB: clients upload these in parts
    files.write_atomically(root / "large", large)
    seen.append([files.sha256(root / "large"), (root / "large").read_bytes() == large])
    (root / "large").unlink()
    files.remove(root / "four")
    files.remove(root / "four")
    (root / "large").unlink(missing_ok=True)
    look()
    write_rows(root / "rows.jsonl", [{"step": 1}])
    seen.append([read_rows(root / "rows.jsonl"), read_rows(root / "no.jsonl")])
    for asked in ("read_bytes", "unlink"):
        with pytest.raises(FileNotFoundError):
            getattr(root / "absent", asked)()
    with pytest.raises(FileNotFoundError):
        list((root / "absent").iterdir())
    seen.append([(root / "absent").exists(), (root / "absent").is_dir()])
    return seen


def test_a_folder_is_used_as_a_local_one(either, tmp_path, monkeypatch):
    monkeypatch.setattr(buckets, "BLOCK", 3 * 2**20)
    assert used(as_path("gs://bucket/a folder/used")) == used(tmp_path / "used")


def test_a_bucket_that_is_not_there_is_told(either):
    there = as_path("gs://nobody/run")
    for make in (there.mkdir, lambda: there.write_bytes(b"")):
        with pytest.raises(UserError, match="^gs://nobody/run: there is no bucket nobody$"):
            make()
    assert not there.exists()


def test_rows_that_were_not_written_out_are_in_the_next_flush(either):
    path = as_path("gs://bucket/rows.jsonl")
    write_rows(path, [{"step": 1}])
    growing = buckets.Growing(path, path.read_text())
    growing.write('{"step": 2}\n')
    assert read_rows(path) == [{"step": 1}]
    growing.flush()
    assert read_rows(path) == [{"step": 1}, {"step": 2}]


def test_a_lock_object_is_created_once_and_let_go(either):
    path = as_path("gs://bucket/locked/.lock")
    with buckets.locked(path, print):
        with pytest.raises(FileExistsError):
            path._ask("pipe_file", b"", mode="create")
        assert path.exists()
    assert not path.exists()


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


def test_a_bucket_out_of_reach_is_not_taken_for_damage_or_for_an_empty_one(server, monkeypatch):
    """Attempts follow each other without a wait."""

    async def no_wait(seconds):
        pass

    monkeypatch.setattr(gcsfs.retry.asyncio, "sleep", no_wait)
    monkeypatch.setattr(server, "gone", True)
    run = as_path("gs://bucket/run")
    directory = checkpoints.folder(run, "teacher")
    for asked in (
        run.exists,
        run.is_dir,
        run.is_file,
        run.mkdir,
        run.read_bytes,
        run.unlink,
        run.rmtree,
        lambda: run.write_bytes(b""),
        lambda: list(run.iterdir()),
        lambda: list(run.glob("*")),
        lambda: sha256(run),
        lambda: checkpoints.steps(directory),
        lambda: checkpoints.is_finished(directory, 12),
        lambda: checkpoints.verify(directory, 12),
        lambda: read_rows(run / "results.jsonl"),
        lambda: Workdir(run, tiny_config(), (8, 8, 1), 10).begin(),
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


def test_without_gcsfs_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(buckets.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"gs://bucket/run needs gcsfs: pip install -e '.\[gcs\]'"):
        load_sampler("gs://bucket/run")


def test_a_cache_in_a_bucket_is_refused(tiny_config):
    tiny_config.runtime.cache_dir = "gs://bucket/cache"
    with pytest.raises(UserError, match="config.runtime.cache_dir is gs://bucket/cache; it must"):
        check(tiny_config, "gs://bucket/another")
