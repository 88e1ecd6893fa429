"""Data in a bucket of a server on loopback: what it is on a local disk."""

import dataclasses
import shutil

import numpy as np
import pytest

from diffusion_distill.data import sources, write_prepared
from diffusion_distill.errors import UserError
from diffusion_distill.report.grid import png
from diffusion_distill.storage.buckets import as_path
from tests.bucket_server import flip
from tests.conftest import data_config


@pytest.fixture(scope="module")
def server(bucket_server):
    return bucket_server


def upload(server, folder, prefix):
    for path in folder.rglob("*"):
        if path.is_file():
            name = f"{prefix}/{path.relative_to(folder).as_posix()}"
            server.put("bucket", name, path.read_bytes(), {})


def assert_same_source(there, here):
    np.testing.assert_array_equal(there.images(), here.images())
    np.testing.assert_array_equal(there.labels, here.labels)
    assert there.num_classes == here.num_classes


@pytest.fixture
def small():
    """300 digits."""
    digits = sources.digits()
    return dataclasses.replace(digits, labels=digits.labels[:300])


def test_a_prepared_set_is_copied_once_and_checked_on_the_way(server, small, tmp_path):
    there = as_path("gs://bucket/prepared")
    write_prepared.write(small, there / "train", {}, file_bytes=64 * 100)
    assert {name for name in server.buckets["bucket"] if name.startswith("prepared/")} == {
        f"prepared/train/{name}"
        for name in (*(f"images-{n:05d}.npy" for n in range(3)), "labels.npy", "manifest.json")
    }
    config = data_config("prepared", "gs://bucket/prepared")
    assert_same_source(sources.load(config, cache=tmp_path / "cache"), small)
    server.asked.clear()
    sources.load(config, cache=tmp_path / "cache")
    assert not any(path.endswith(".npy") for _, path in server.asked)

    flip(server, "prepared/train/images-00001.npy")
    with pytest.raises(UserError, match="gs://bucket/prepared/train/images-00001.npy is damaged"):
        sources.load(config, cache=tmp_path / "another")
    del server.buckets["bucket"]["prepared/train/images-00001.npy"]
    with pytest.raises(UserError, match="there is no gs://bucket/prepared/train/images-00001.npy"):
        sources.load(config, cache=tmp_path / "another")


def test_a_copy_that_the_disk_cannot_hold_is_foreseen(server, small, tmp_path, monkeypatch):
    write_prepared.write(small, as_path("gs://bucket/large/train"), {})
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, 100))
    with pytest.raises(UserError, match="has 0 MB free; the copy of digits needs .*cache_dir"):
        sources.load(data_config("prepared", "gs://bucket/large"), cache=tmp_path)


def test_arrays_and_folders_are_as_they_are_locally(server, small, tmp_path, capsys):
    np.savez(tmp_path / "a.npz", images=small.images(np.arange(50)), labels=small.labels[:50])
    folder = tmp_path / "photos" / "Training"
    for name, count in {"b": 3, "a-b": 2, "a": 4}.items():
        for n in range(count):
            (folder / name / "more").mkdir(parents=True, exist_ok=True)
            sub = "more" if n % 2 else "."
            (folder / name / sub / f"{n}.png").write_bytes(png(small.images([n + count])[0]))
    (folder / "a/run").mkdir()
    for name in ("config.json", "stages.jsonl", "samples.png", "../notes.txt"):
        (folder / "a/run" / name).write_bytes(b"")
    upload(server, tmp_path, "data")
    for name, path, fields in (
        ("npz", "a.npz", {}),
        ("folder", "photos", {"image_size": 8}),
        ("folder", "photos", {"folder_labels": False}),
    ):
        here = sources.load(data_config(name, str(tmp_path / path), **fields))
        there = sources.load(data_config(name, f"gs://bucket/data/{path}", **fields))
        assert_same_source(there, here)
        assert there.fingerprint == here.fingerprint
    said = capsys.readouterr().out
    assert "left out: gs://bucket/data/photos/Training/a/run: the workdir of a run" in said
    assert "gs://bucket/data/photos/Training: 1 files are not images by their names" in said
    server.put("bucket", "data/photos/Training/loose.png", b"", {})
    with pytest.raises(UserError, match="has images beside its subfolders, loose.png for one"):
        sources.load(data_config("folder", "gs://bucket/data/photos"))
    with pytest.raises(UserError, match="has no split 'test'; it has Training"):
        sources.load(data_config("folder", "gs://bucket/data/photos", split="test"))


def test_cifar10(server, cifar10_test_dir):
    file = cifar10_test_dir / "test_batch.bin"
    name = f"cifar10/{cifar10_test_dir.name}/{file.name}"
    server.put("bucket", name, file.read_bytes(), {})
    here = sources.load(data_config("cifar10", str(cifar10_test_dir), split="test"))
    there = sources.load(data_config("cifar10", "gs://bucket/cifar10", split="test"))
    assert_same_source(there, here)
    del server.buckets["bucket"][name]
