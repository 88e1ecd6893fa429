"""A prepared set is what it was made from, whenever it was stopped, or says what is wrong."""

import contextlib
import dataclasses
import json
import os

import numpy as np
import pytest

from diffusion_distill.data import prepared, sources, write_prepared
from diffusion_distill.data.folder import BY_CONTENT
from diffusion_distill.data.source import Source, from_arrays
from diffusion_distill.errors import UserError
from tests.conftest import data_config

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (20, 6, 5, 3), np.uint8)
LABELS = RNG.integers(0, 4, 20)
FILE_BYTES = 7 * 6 * 5 * 3  # seven images a file: three files, the last with six


def load(path, split="train"):
    return sources.load(data_config("prepared", str(path), split=split))


def make(source, folder, **origin):
    return write_prepared.write(source, folder, origin, FILE_BYTES)


@pytest.fixture
def out(tmp_path):
    make(from_arrays(IMAGES, LABELS, 4), tmp_path / "set" / "train")
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
    make(from_arrays(IMAGES, LABELS, 4), tmp_path / "b/train", x=1)
    make(from_arrays(IMAGES // 2, LABELS, 4), tmp_path / "c/train")
    make(from_arrays(IMAGES, LABELS % 2, 4), tmp_path / "d/train")
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
    manifest = make(failing(bad), tmp_path / "set/train")
    good = np.setdiff1d(np.arange(20), bad)
    source = load(tmp_path / "set")
    np.testing.assert_array_equal(source.images(), IMAGES[good])
    np.testing.assert_array_equal(source.labels, LABELS[good])
    assert [name for name, _ in manifest.unreadable] == [f"{n}.png" for n in bad]
    said = capsys.readouterr().out
    assert "left out: 2.png cannot be read: broken" in said
    assert "13 images, 7 could not be read and were left out" in said


def test_a_label_of_which_nothing_could_be_read_is_named(tmp_path, capsys):
    make(failing(np.flatnonzero(LABELS == 2)), tmp_path / "set/train")
    assert load(tmp_path / "set").num_classes == 4
    assert "train/labels.npy: label 2 has no image, and samples may" in capsys.readouterr().out


def test_where_nothing_can_be_read_nothing_is_made(tmp_path):
    with pytest.raises(UserError, match="20 of 20 images could not be read, .*0.png"):
        make(failing(range(20)), tmp_path / "set/train")
    assert not (tmp_path / "set/train/manifest.json").exists()


def test_unreadable_images_are_named_as_they_come_and_too_many_end_it_early(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(write_prepared, "TRIED", 10)
    source = failing(range(5), stop_at=12)
    with pytest.raises(UserError, match="5 of 10 images tried so far, of 20, could not be read"):
        make(source, tmp_path / "set/train")
    assert "left out: 0.png" in capsys.readouterr().out
    with pytest.raises(KeyboardInterrupt):  # fewer than half: it goes on to where it is stopped
        make(failing(range(4), stop_at=12), tmp_path / "other/train")
    assert "left out: 3.png" in capsys.readouterr().out


def test_it_goes_on_where_it_was_stopped(tmp_path, out, capsys):
    folder = tmp_path / "again/train"
    with pytest.raises(KeyboardInterrupt):
        make(failing([], stop_at=9), folder)
    with pytest.raises(UserError, match="train is not finished: prepare was stopped; its command"):
        load(folder.parent)
    first = folder / "images-00000.npy"
    written = first.stat().st_mtime_ns
    source = failing(range(7))  # what is written already is not read again
    make(source, folder)
    assert "going on where it was stopped" in capsys.readouterr().out
    assert first.stat().st_mtime_ns == written
    assert load(folder.parent).fingerprint == load(out).fingerprint


def test_stopped_between_its_manifest_and_its_end_it_leaves_no_notes(out):
    source = from_arrays(IMAGES, LABELS, 4)
    whole = sorted(p.name for p in (out / "train").iterdir())
    for name in ("part-00000.json", "part-00002.json", "preparing.json"):
        (out / "train" / name).write_text("{}")
    make(source, out / "train")
    assert sorted(p.name for p in (out / "train").iterdir()) == whole


def test_a_finished_set_is_left_as_it_is_and_another_is_not_mixed_into_it(out):
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*.npy")}
    make(from_arrays(IMAGES, LABELS, 4), out / "train")
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*.npy")} == before
    with pytest.raises(UserError, match="another set: split was None, is 'x'; choose another"):
        make(from_arrays(IMAGES, LABELS, 4), out / "train", split="x")


def test_the_same_images_by_another_path_are_the_same_set(out):
    make(from_arrays(IMAGES, LABELS, 4), out / "train", path="./a")


def test_a_folder_begun_from_elsewhere_or_with_other_files_is_refused(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        make(failing([], stop_at=9), tmp_path / "set", split="a", x=1)
    with pytest.raises(UserError, match="begun otherwise: split was 'a', is 'b'; remove it"):
        same = from_arrays(IMAGES, LABELS, 4)
        make(same, tmp_path / "set", split="b", x=1)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="thesis has other files"):
        make(from_arrays(IMAGES), tmp_path / "thesis")


def test_a_source_that_changed_since_is_not_mixed_in(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        make(failing([], stop_at=9), tmp_path / "set")
    more = from_arrays(np.concatenate([IMAGES[:1], IMAGES]), None)
    with pytest.raises(UserError, match="begun otherwise: images was 20, is 21; remove it"):
        make(more, tmp_path / "set")
    with pytest.raises(UserError, match="otherwise: its images were others, or have changed; rem"):
        make(from_arrays(IMAGES // 2, LABELS, 4), tmp_path / "set")


def test_what_an_older_version_began_or_finished_is_compared_by_what_it_noted(tmp_path):
    """It told a folder by its files' times."""
    source = dataclasses.replace(failing([]), fingerprint_of=lambda: f"{BY_CONTENT}1")
    for n, stop_at in enumerate((None, 9)):
        older = dataclasses.replace(failing([], stop_at), fingerprint_of=lambda: "0" * 64)
        with contextlib.suppress(KeyboardInterrupt):
            make(older, tmp_path / f"{n}/train")
        with pytest.raises(UserError, match=": upright was None, is True; "):
            make(source, tmp_path / f"{n}/train", upright=True)
        assert make(source, tmp_path / f"{n}/train").count == 20
    other = dataclasses.replace(source, fingerprint_of=lambda: f"{BY_CONTENT}2")
    with pytest.raises(UserError, match="its images were others, or have changed"):
        make(other, tmp_path / "1/train")


def test_splits_are_told_apart(out):
    make(from_arrays(IMAGES[:3], split="test"), out / "test")
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
        (lambda p: (p / "images-00002.npy").write_text("1 " * 9), "magic string is not correct"),
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
