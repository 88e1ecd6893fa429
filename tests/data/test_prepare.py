"""A prepared set is what it was made from, whenever it was stopped, or says what is wrong."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusion_distill.config import base
from diffusion_distill.data import prepare as prepare_module
from diffusion_distill.data import prepared, sources
from diffusion_distill.data.prepare import DATASETS, prepare
from diffusion_distill.data.source import Source, from_arrays
from diffusion_distill.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (20, 6, 5, 3), np.uint8)
LABELS = RNG.integers(0, 4, 20)
FILE_BYTES = 7 * 6 * 5 * 3  # seven images a file: three files, the last with six


def load(path, split="train"):
    config = base().data
    config.name, config.path, config.split = "prepared", str(path), split
    return sources.load(config)


@pytest.fixture
def out(tmp_path):
    prepare(from_arrays(IMAGES, LABELS, 4), tmp_path / "set" / "train", {}, FILE_BYTES)
    return tmp_path / "set"


def test_what_goes_in_comes_out_by_index(out):
    source = load(out)
    assert (len(source), source.image_shape, source.num_classes) == (20, (6, 5, 3), 4)
    np.testing.assert_array_equal(source.images(), IMAGES)
    np.testing.assert_array_equal(source.labels, LABELS)
    indices = [19, 0, 7, 6, 7, 13, 14]
    np.testing.assert_array_equal(source.images(indices), IMAGES[indices])
    assert len(list(out.glob("train/images-*.npy"))) == 3


def test_the_files_are_plain_numpy_and_the_manifest_says_what_is_in_them(out):
    manifest = json.loads((out / "train/manifest.json").read_text())
    assert manifest["count"] == 20
    assert manifest["image_shape"] == [6, 5, 3]
    parts = [np.load(out / "train" / name) for name, _, _ in manifest["files"]]
    assert [len(part) for part in parts] == [n for _, n, _ in manifest["files"]] == [7, 7, 6]
    np.testing.assert_array_equal(np.concatenate(parts), IMAGES)
    names = {name for name, _, _ in manifest["files"]} | {"manifest.json", "labels.npy"}
    assert {p.name for p in (out / "train").iterdir() if p.name[0] != "."} == names


def test_the_fingerprint_is_that_of_the_content(out, tmp_path):
    prepare(from_arrays(IMAGES, LABELS, 4), tmp_path / "b/train", {"x": 1}, FILE_BYTES)
    prepare(from_arrays(IMAGES // 2, LABELS, 4), tmp_path / "c/train", {}, FILE_BYTES)
    prepare(from_arrays(IMAGES, LABELS % 2, 4), tmp_path / "d/train", {}, FILE_BYTES)
    a, b, c, d = (
        load(p).fingerprint for p in (out, tmp_path / "b", tmp_path / "c", tmp_path / "d")
    )
    assert a == b
    assert len({a, c, d}) == 3


def failing(bad, stop_at=None):
    """A source some of whose images cannot be read, and that is interrupted at one."""

    def read(indices):
        if stop_at in indices:
            raise KeyboardInterrupt
        if set(indices) & set(bad):
            raise UserError(f"{indices[0]}.png cannot be read: broken")
        return IMAGES[indices]

    source = from_arrays(IMAGES, LABELS, 4)
    return Source(**{**vars(source), "read": read, "image_name": "{}.png".format})


def test_images_that_cannot_be_read_are_left_out_and_named(tmp_path, capsys):
    bad = [2, 14, 15, 16, 17, 18, 19]  # among them a whole file, and less than half of all
    manifest = prepare(failing(bad), tmp_path / "set/train", {}, FILE_BYTES)
    good = np.setdiff1d(np.arange(20), bad)
    source = load(tmp_path / "set")
    np.testing.assert_array_equal(source.images(), IMAGES[good])
    np.testing.assert_array_equal(source.labels, LABELS[good])
    assert [name for name, _ in manifest.unreadable] == [f"{n}.png" for n in bad]
    said = capsys.readouterr().out
    assert "left out: 2.png cannot be read: broken" in said
    assert "13 images, 7 could not be read and were left out" in said


def test_where_nothing_can_be_read_nothing_is_made(tmp_path):
    with pytest.raises(UserError, match="20 of 20 images could not be read, .*0.png"):
        prepare(failing(range(20)), tmp_path / "set/train", {}, FILE_BYTES)
    assert not (tmp_path / "set/train/manifest.json").exists()


def test_unreadable_images_are_named_as_they_come_and_too_many_end_it_early(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(prepare_module, "TRIED", 10)
    source = failing(range(5), stop_at=12)
    with pytest.raises(UserError, match="5 of 10 images tried so far, of 20, could not be read"):
        prepare(source, tmp_path / "set/train", {}, FILE_BYTES)
    assert "left out: 0.png" in capsys.readouterr().out
    with pytest.raises(KeyboardInterrupt):  # fewer than half: it goes on to where it is stopped
        prepare(failing(range(4), stop_at=12), tmp_path / "other/train", {}, FILE_BYTES)
    assert "left out: 3.png" in capsys.readouterr().out


def test_it_goes_on_where_it_was_stopped(tmp_path, out, capsys):
    folder = tmp_path / "again/train"
    with pytest.raises(KeyboardInterrupt):
        prepare(failing([], stop_at=9), folder, {}, FILE_BYTES)
    with pytest.raises(UserError, match="train is not finished: prepare was stopped; its command"):
        load(folder.parent)
    first = folder / "images-00000.npy"
    written = first.stat().st_mtime_ns
    source = failing(range(7))  # what is written already is not read again
    prepare(source, folder, {}, FILE_BYTES)
    assert "going on where it was stopped" in capsys.readouterr().out
    assert first.stat().st_mtime_ns == written
    assert load(folder.parent).fingerprint == load(out).fingerprint


def test_stopped_between_its_manifest_and_its_end_it_leaves_no_notes(out):
    source = from_arrays(IMAGES, LABELS, 4)
    whole = sorted(p.name for p in (out / "train").iterdir())
    for name in ("part-00000.json", "part-00002.json", "preparing.json"):
        (out / "train" / name).write_text("{}")
    prepare(source, out / "train", {}, FILE_BYTES)
    assert sorted(p.name for p in (out / "train").iterdir()) == whole


def test_killed_at_any_moment_it_ends_with_the_same_set(tmp_path):
    """As a user does it, from a folder of pictures, with SIGKILL three times."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for n in range(300):
        Image.fromarray(RNG.integers(0, 256, (90, 120, 3), np.uint8)).save(pictures / f"{n:03}.png")
    program = (
        "from diffusion_distill.data import prepare as p; "
        "p.prepare.__defaults__ = (10 * 64 * 64 * 3,); p.cli.run(p.main)"  # ten images a file
    )
    flags = ["--source=folder", f"--path={pictures}", "--image_size=64", "--nofolder_labels"]
    command = [sys.executable, "-c", program, *flags]
    kills = 0
    for delay in (0.0, 0.05, 0.15):
        process = subprocess.Popen([*command, f"--out={tmp_path / 'a'}"], cwd=ROOT,
                                   stdout=subprocess.DEVNULL)  # fmt: skip
        parts = tmp_path / "a/train"
        before = len(list(parts.glob("part-*")))
        deadline = time.monotonic() + 60
        while process.poll() is None and len(list(parts.glob("part-*"))) <= before:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
    assert kills >= 1
    for name in "ab":
        subprocess.run([*command, f"--out={tmp_path / name}"], cwd=ROOT, check=True,
                       stdout=subprocess.DEVNULL)  # fmt: skip
    assert load(tmp_path / "a").fingerprint == load(tmp_path / "b").fingerprint
    assert sorted(os.listdir(tmp_path / "a/train")) == sorted(os.listdir(tmp_path / "b/train"))


def test_a_finished_set_is_left_as_it_is_and_another_is_not_mixed_into_it(out):
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*.npy")}
    prepare(from_arrays(IMAGES, LABELS, 4), out / "train", {}, FILE_BYTES)
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*.npy")} == before
    with pytest.raises(UserError, match="another set: split was None, is 'x'; choose another"):
        prepare(from_arrays(IMAGES, LABELS, 4), out / "train", {"split": "x"}, FILE_BYTES)


def test_the_same_images_by_another_path_are_the_same_set(out):
    prepare(from_arrays(IMAGES, LABELS, 4), out / "train", {"path": "./a"}, FILE_BYTES)


def test_a_folder_begun_from_elsewhere_or_with_other_files_is_refused(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        prepare(failing([], stop_at=9), tmp_path / "set", {"split": "a", "x": 1}, FILE_BYTES)
    with pytest.raises(UserError, match="begun otherwise: split was 'a', is 'b'; remove it"):
        same = from_arrays(IMAGES, LABELS, 4)
        prepare(same, tmp_path / "set", {"split": "b", "x": 1}, FILE_BYTES)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="thesis has other files"):
        prepare(from_arrays(IMAGES), tmp_path / "thesis", {}, FILE_BYTES)


def test_a_source_that_changed_since_is_not_mixed_in(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        prepare(failing([], stop_at=9), tmp_path / "set", {}, FILE_BYTES)
    more = from_arrays(np.concatenate([IMAGES[:1], IMAGES]), None)
    with pytest.raises(UserError, match="begun otherwise: images was 20, is 21; remove it"):
        prepare(more, tmp_path / "set", {}, FILE_BYTES)
    with pytest.raises(UserError, match="otherwise: its images were others, or have changed; rem"):
        prepare(from_arrays(IMAGES // 2, LABELS, 4), tmp_path / "set", {}, FILE_BYTES)


def test_splits_are_told_apart(out):
    prepare(from_arrays(IMAGES[:3], split="test"), out / "test", {}, FILE_BYTES)
    assert len(load(out, "test")) == 3
    with pytest.raises(UserError, match="no prepared split 'valid'; it has test, train"):
        load(out, "valid")


def flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: flip(p / "images-00001.npy"), "images-00001.npy is damaged: its sha256"),
        (lambda p: flip(p / "labels.npy"), "labels.npy is damaged: its sha256"),
        (lambda p: (p / "images-00001.npy").unlink(), "there is no .*images-00001.npy, which the"),
        (lambda p: (p / "labels.npy").unlink(), "there is no .*labels.npy, which the manifest"),
        (lambda p: os.truncate(p / "images-00002.npy", 200), "images-00002.npy is damaged"),
        (lambda p: os.truncate(p / "images-00002.npy", 0), "images-00002.npy is damaged"),
        (lambda p: np.save(p / "images-00000.npy", IMAGES[:3]), r"has uint8 \[3, 6, 5, 3\]; the"),
        (lambda p: (p / "manifest.json").write_text("{"), "manifest.json is damaged: not JSON"),
        (lambda p: (p / "manifest.json").write_text('{"format": 1}'), "manifest.json is damaged"),
        (lambda p: (p / "manifest.json").write_text('{"format": 9}'), "of another version"),
    ],
)  # fmt: skip
def test_damage_is_named(out, damage, message):
    damage(out / "train")
    with pytest.raises(UserError, match=message):
        load(out)


def test_a_large_set_is_verified_on_demand_and_not_at_each_start(out, monkeypatch):
    monkeypatch.setattr(prepared, "VERIFIED_AT_LOADING", 100)
    flip(out / "train/images-00001.npy")
    load(out)
    with pytest.raises(UserError, match="images-00001.npy is damaged"):
        prepared.verify(out / "train", prepared.Manifest.read(out / "train"))


def command(*flags):
    command = [sys.executable, "-m", "diffusion_distill.data.prepare", *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_data_that_is_not_there_ends_with_the_command_that_gets_it(tmp_path):
    made = (
        r"prepare --source=folder --image_size=SIZE --resize=area \(or antialias\) --path=\.\.\. "
    )
    for name in ("none", "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(UserError, match=f"data.path: .*{made}--out={tmp_path}/{name} --split="):
            load(tmp_path / name, "test")
    with pytest.raises(UserError, match="prepare --dataset=imagenet64 --path"):
        load(tmp_path / "imagenet64")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--source=npz", "--path=x.npz"], "--out must be given"),
        ([], "--dataset or --source must be given"),
        (["--dataset=imagenet64"], "needs an account on https://image-net.org"),
        (["--out=x", "--source=foo"], "--source is 'foo'; there are"),
        (["--out=x", "--source=npz"], "--path is ''; it must say"),
        (["--out=x"], "--dataset or --source must be given"),
        (["--out=x", "--dataset=mnist"], "there are cifar10, imagenet64"),
        (["--out=x", "--dataset=imagenet64"], "needs an account on https://image-net.org"),
        (["--out=x", "--dataset=lsun_church128"], "https://www.yf.io/p/lsun"),
        (["--out=x", "--source=folder", "--path=none"], "--path: there is no folder none"),
        (["--out=x", "--source=npz", "--path=none", "--resize=best"], "there are area, antialias"),
        (["--out=none", "--verify"], "none has no prepared split"),
    ],
)  # fmt: skip
def test_mistakes_end_in_one_line(flags, message):
    done = command(*flags)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert message in done.stderr
    assert not (ROOT / "x").exists()


def test_the_published_preprocessing_of_each_data_set(tmp_path):
    """From files as a person has them, through the command line, to the training shape."""
    picture = RNG.integers(0, 256, (150, 200, 3), np.uint8)
    for name in ("n01", "n02"):
        (tmp_path / "train" / name).mkdir(parents=True)
        Image.fromarray(picture).save(tmp_path / "train" / name / "a.png")
    Image.fromarray(picture[..., 0]).save(tmp_path / "train/n02/grey.png")
    (tmp_path / "train/n02/broken.png").write_bytes(b"\x89PNG")
    for dataset, size, labels in (("imagenet64", 64, [0, 1, 1]), ("lsun_church128", 128, [0] * 3)):
        out = tmp_path / dataset
        done = command(f"--dataset={dataset}", f"--path={tmp_path / 'train'}", f"--out={out}")
        assert done.returncode == 0, done.stderr
        assert "left out: " in done.stdout and "broken.png" in done.stdout
        assert f"warning: {dataset} train has {DATASETS[dataset].counts['train']:,}" in done.stdout
        source = load(out)
        assert source.image_shape == (size, size, 3)
        assert source.name == dataset
        np.testing.assert_array_equal(source.labels, labels)
        kind = "area" if dataset == "imagenet64" else "antialias"
        assert source.preprocessing == f"central square crop, {kind} resize to {size}"
    assert command(f"--out={out}", "--verify").returncode == 0
    flip(out / "train/images-00000.npy")
    assert "images-00000.npy is damaged" in command(f"--out={out}", "--verify").stderr
