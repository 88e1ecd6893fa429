"""Which images of a folder are taken, whatever else is in it, and as what."""

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from diffusion_distill.data import folder, sources, write_prepared
from diffusion_distill.errors import UserError
from diffusion_distill.terminal import console
from tests.conftest import data_config

COUNT = iter(range(10**6))


def load(root, split="train", **fields):
    return sources.load(data_config("folder", str(root), split=split, **fields))


def put(root, *names, size=8):
    """Images, no two alike."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(next(COUNT)).integers(0, 256, (size, size, 3), np.uint8)
        Image.fromarray(pixels).save(root / name)


def names(source):
    return [os.path.basename(source.image_name(n)) for n in range(len(source))]


@pytest.fixture
def said(capsys):
    """What was said since the last call, of folders of any test before, too."""
    console.say_once.cache_clear()
    return lambda: capsys.readouterr().out


def test_labels_that_are_numbers_are_numbered_by_name_and_that_is_said(tmp_path, said):
    put(tmp_path, *(f"{label}/a.png" for label in range(11)))
    assert names(load(tmp_path))[2] == "a.png"
    assert "labels 0, 1, 2, 3, ... are its subfolders 0, 1, 10, 2, ...: by name" in said()
    shutil.rmtree(tmp_path / "10")
    load(tmp_path)
    assert "by name" not in said()


class TestSplits:
    @pytest.mark.parametrize("labels", [True, False])
    @pytest.mark.parametrize(
        ("train", "split", "other"),
        [
            ("train", "test", "test"),
            ("Training", "test", "Testing"),
            ("training", "validation", "val"),
            ("train2017", "val", "val2017"),
            ("train", "val", "valid"),
            ("TRAIN", "test", "tests"),
            ("train_64x64", "test", "test_64x64"),
            ("trainImages", "test", "testImages"),
            ("trainfolder", "val", "valfolder"),
            ("church_outdoor_train_lmdb", "val", "church_outdoor_val_lmdb"),
        ],
    )
    def test_are_known_by_what_they_are_called(self, tmp_path, train, split, other, labels):
        put(
            tmp_path, f"{train}/a/1.png", f"{train}/b/2.png", f"{other}/a/3.png", f"{other}/b/4.png"
        )
        (tmp_path / "annotations").mkdir()
        (tmp_path / "annotations/train.json").write_text("{}")
        config = data_config("folder", str(tmp_path), folder_labels=labels)
        for asked, expected in (("train", ["1.png", "2.png"]), (split, ["3.png", "4.png"])):
            source = sources.load(config, split=asked)
            assert (names(source), source.num_classes) == (expected, 2 * labels)
            assert (source.name, source.split) == (tmp_path.name, asked)
        missing = ({"test", "val"} - {split, split[:3]}).pop()
        with pytest.raises(UserError, match=f"no split '{missing}'; it has .*config.data.split to"):
            sources.load(config, split=missing)

    @pytest.mark.parametrize("labels", [True, False])
    def test_beside_labels_are_refused_with_both_ways_to_say_what_is_meant(self, tmp_path, labels):
        put(tmp_path, "Training/1.png", "Test/3.png", "dog/2.png")
        with pytest.raises(
            UserError, match="has Training, Test, which .*dog, .*: give config"
        ) as error:
            load(tmp_path, folder_labels=labels)
        assert f"config.data.path={tmp_path}/Training where it is a split" in str(error.value)
        assert "config.data.split=all where it is a label" in str(error.value)
        assert len(load(tmp_path / "Training", folder_labels=False)) == 1
        whole = load(tmp_path, split="all", folder_labels=labels)
        assert (len(whole), whole.num_classes) == (3, 3 * labels)

    def test_that_may_be_meant_by_one_name_are_taken_by_their_own(self, tmp_path):
        put(tmp_path, "trainA/1.png", "trainB/2.png", "testA/3.png", "testB/4.png")
        with pytest.raises(
            UserError, match="has trainA, trainB, and each may be the split 'train'"
        ):
            load(tmp_path, folder_labels=False)
        assert names(load(tmp_path, "trainB", folder_labels=False)) == ["2.png"]

    @pytest.mark.parametrize(
        "labels",
        [
            "bullet_train valley ship testudo",
            "valley testudo",
            "valves",
            "freight_train bullet_train",
        ],
    )
    def test_are_no_labels_of_things_that_are_called_alike(self, tmp_path, labels):
        put(tmp_path, *(f"{label}/1.png" for label in labels.split()))
        assert load(tmp_path).num_classes == len(labels.split())

    @pytest.mark.parametrize("only", ["train", "testing", "church_train_lmdb"])
    def test_are_splits_alone_too(self, tmp_path, only):
        put(tmp_path, f"{only}/a/1.png", f"{only}/b/1.png")
        with pytest.raises(UserError, match=f"no split 'val'; it has {only}"):
            load(tmp_path, "val")

    @pytest.mark.parametrize(
        "at", ["cat/{}/1.png", "images/{}/a/1.png", "all/images_{}/1.png", "a/b/{}2017/1.png"]
    )
    def test_below_labels_are_not_mixed(self, tmp_path, at, said):
        put(tmp_path, at.format("train"), at.format("val"))
        for labels in (True, False):
            with pytest.raises(UserError, match="which would be one set: .*config.data.split=all,"):
                load(tmp_path, folder_labels=labels)
        said()
        assert len(sources.load_images(tmp_path)) == 2
        assert f"warning: {tmp_path}" in (told := said()) and ", which are taken together" in told
        if at[0] != "a":
            assert len(load(tmp_path, split="all")) == 2

    def test_that_hold_a_run_or_a_prepared_set_are_none(self, tmp_path):
        put(tmp_path, "a/1.png", "b/2.png", "train_run/samples.png")
        for name in ("config.json", "stages.jsonl"):
            (tmp_path / "train_run" / name).write_text("")
        assert names(load(tmp_path)) == ["1.png", "2.png"]


class TestParts:
    """Of one set, in folders that are no labels."""

    FILES = ("00000/img00000000.png", "00000/img00000001.png", "00001/img00000002.png")

    def write(self, root, content):
        put(root, *self.FILES)
        (root / "dataset.json").write_text(json.dumps(content))
        return root

    def test_have_the_labels_of_their_dataset_json(self, tmp_path, said):
        pairs = [
            [name.replace("/", "\\"), n] for name, n in zip(self.FILES, (1, 0, 1), strict=True)
        ]
        root = self.write(tmp_path, {"labels": [*pairs, ["00001/img00000003.png", 0]]})
        source = load(root)
        assert (source.num_classes, source.labels.tolist()) == (2, [1, 0, 1])
        assert "1 images that have a label there are not in" in said()
        assert load(root, folder_labels=False).num_classes == 0
        root = self.write(tmp_path, {"labels": [[name, 0] for name in self.FILES]})
        assert load(root).fingerprint != source.fingerprint

    def test_have_none_where_it_says_so(self, tmp_path):
        source = load(self.write(tmp_path, {"labels": None}))
        assert (len(source), source.num_classes) == (3, 0)

    @pytest.mark.parametrize(
        ("labels", "message"),
        [
            ((0, 1), "dataset.json has no label for 1 of 3 images, 00001/img00000002.png for one"),
            ((1, 2, 3), "labels are 1 to 3, and 0 has no image"),
            (([0.0, 1.0],) * 3, r"labels are float64 \[3, 2\]; they must be integers"),
            (([0.0], [0.0, 1.0], []), "inhomogeneous"),
            (("cat", "dog", "cat"), "labels are <U3"),
        ],
    )
    def test_whose_dataset_json_is_not_of_labels_are_refused(self, tmp_path, labels, message):
        pairs = [list(pair) for pair in zip(self.FILES, labels, strict=False)]
        root = self.write(tmp_path, {"labels": pairs})
        with pytest.raises(UserError, match=f"{message}.*config.data.folder_labels=False"):
            load(root)
        (root / "dataset.json").write_text("{")
        with pytest.raises(UserError, match="dataset.json is damaged: not JSON"):
            load(root)

    @pytest.mark.parametrize("content", [{"name": "mine"}, ["a"], {"labels": ["cat", "dog"]}])
    def test_another_dataset_json_is_not_read_and_named(self, tmp_path, said, content):
        put(tmp_path, "cat/1.png", "dog/2.png")
        (tmp_path / "dataset.json").write_text(json.dumps(content))
        assert load(tmp_path).labels.tolist() == [0, 1]
        assert "dataset.json is not read: it has no list of labels" in said()

    @pytest.mark.parametrize(
        "files",
        [FILES, ("01000/01000.png", "02000/02000.png"), ("shard_0/1.png", "shard_1/1.png")],
    )
    def test_without_one_are_refused_with_both_ways_to_say_what_is_meant(self, tmp_path, files):
        put(tmp_path, *files)
        with pytest.raises(UserError, match="numbered on as parts of one set: .*labels=False"):
            load(tmp_path)
        assert load(tmp_path, folder_labels=False).num_classes == 0
        assert load(tmp_path, split="all").num_classes == 2

    def test_are_not_what_labels_with_numbers_are(self, tmp_path):
        put(tmp_path / "padded", "00000/00000_00001.png", "00001/00001_00000.png")
        put(tmp_path / "short", "0/1.png", "1/2.png", "2/3.png")
        assert load(tmp_path / "padded").num_classes == 2
        assert load(tmp_path / "short").num_classes == 3


class TestOther:
    """What is in a folder beside its images."""

    @pytest.mark.parametrize("labels", [True, False])
    def test_a_run_or_a_prepared_set_is_left_out(self, tmp_path, labels, said):
        put(tmp_path, "a/1.png", "b/2.png", "b/run/teacher/samples.png", "runs/x/report/plot.png")
        put(tmp_path, ".git/x.png", "a/.cache/x.png", "__MACOSX/a/x.png", "a/@eaDir/1.png/x.png")
        for run in ("b/run", "runs/x"):
            for name in ("config.json", "stages.jsonl"):
                (tmp_path / run / name).write_text("")
        before = load(tmp_path, folder_labels=labels)
        assert names(before) == ["1.png", "2.png"]
        assert before.num_classes == 2 * labels
        assert f"left out: {tmp_path}/b/run: the workdir of a run" in said()
        for out in ("prepared/train", "a/prepared"):
            write_prepared.write(before, tmp_path / out, {})
            write_prepared.write(load(tmp_path, folder_labels=labels), tmp_path / out, {})
            assert f"left out: {tmp_path}/{out}: a prepared set" in said()
        after = load(tmp_path, folder_labels=labels)
        assert after.fingerprint == before.fingerprint

    def test_it_is_refused_where_it_is_the_folder_itself(self, tmp_path):
        put(tmp_path, "run/samples.png", "images/1.png")
        for name in ("config.json", "stages.jsonl"):
            (tmp_path / "run" / name).write_text("")
        write_prepared.write(
            load(tmp_path / "images", folder_labels=False), tmp_path / "set/train", {}
        )
        (tmp_path / "begun").mkdir()
        (tmp_path / "begun/preparing.json").write_text("{}")
        for path, message in [
            ("run", "run is the workdir of a run, no folder of images"),
            ("set/train", "train is a prepared set, .*: config.data.name=prepared reads it"),
            (
                "set",
                "has no images .*; train is a prepared set: config.data.name=prepared reads it",
            ),
            ("begun", "begun is a prepared set"),
        ]:
            with pytest.raises(UserError, match=message):
                load(tmp_path / path)
        with pytest.raises(UserError, match="is the workdir of a run, no folder of images"):
            sources.load_images(tmp_path / "run")

    def test_a_file_in_place_of_a_folder_is_said_to_be_one(self, tmp_path):
        shutil.make_archive(tmp_path / "set", "zip", tmp_path)
        with pytest.raises(UserError, match="set.zip is a file; it must be a folder .*: unpack it"):
            load(tmp_path / "set.zip")

    def test_links_are_followed_and_not_in_circles(self, tmp_path, said):
        put(tmp_path / "far", "x/2.png", "3.png")
        put(tmp_path / "set", "a/1.png")
        for link, target in [
            ("set/a/linked", "far"),
            ("set/b", "far/x"),
            ("set/a/linked.png", "far/3.png"),
            ("set/a/up", "set"),
            ("set/a/above", "."),
            ("far/x/back", "set/a"),
            ("far/x/self", "far/x"),
        ]:
            (tmp_path / link).symlink_to(tmp_path / target)
        (tmp_path / "set/a/loop").symlink_to("loop")
        source = load(tmp_path / "set")
        # set/b leads back to set/a once, since it is not in it.
        below_b = ["2.png", "1.png", "linked.png", "3.png"]
        assert names(source) == ["1.png", "linked.png", "3.png", "2.png", *below_b]
        assert source.labels.tolist() == [0] * 4 + [1] * 4
        assert len(np.unique(source.images(np.arange(4)), axis=0)) == 3  # one is linked twice
        told = said()
        assert f"{tmp_path}/set/a/up: a link to a folder that it is in" in told
        assert f"{tmp_path}/set/a/above: a link to a folder that it is in" in told
        assert f"{tmp_path}/set/a/loop: Too many levels" in told

    def test_what_cannot_be_read_is_left_out_and_named(self, tmp_path, said):
        put(tmp_path, "a/1.png")
        (tmp_path / "a/gone.png").symlink_to("nowhere")
        os.mkfifo(tmp_path / "a/pipe.png")
        shutil.copy(tmp_path / "a/1.png", os.fsencode(tmp_path) + b"/a/caf\xe9.png")
        os.mkdir(os.fsencode(tmp_path) + b"/a/\xff")
        source = load(tmp_path)
        assert (names(source), len(source.images()), len(source.fingerprint) > 64) == (
            ["1.png"],
            1,
            1,
        )
        told = said()
        told.encode()
        for line in (
            "gone.png: a broken link",
            "pipe.png: no file",
            r"caf\xe9.png: its name is not",
        ):
            assert f"left out: {tmp_path}/a/{line}" in told
        for n in range(20):
            (tmp_path / f"a/x{n}.png").symlink_to("nowhere")
        load(tmp_path)
        assert f"left out: 14 more in {tmp_path}" in said()

    def test_a_folder_that_cannot_be_read_is_never_passed_over(self, tmp_path, monkeypatch):
        put(tmp_path, "a/1.png", "a/secret/2.png")
        scandir = os.scandir

        def refusing(path):
            if str(path).endswith("secret"):
                raise PermissionError(13, "Permission denied")
            return scandir(path)

        monkeypatch.setattr(os, "scandir", refusing)
        with pytest.raises(UserError, match="a/secret cannot be read: Permission denied"):
            load(tmp_path)

    def test_files_that_are_no_images_by_their_names_are_counted_once(self, tmp_path, said):
        put(tmp_path, "a/1.png", "a/.hidden.png")
        for name in ("2.jfif", "3.JFIF", "4.gif", "5", "Thumbs.db", "desktop.ini", ".DS_Store"):
            (tmp_path / "a" / name).write_bytes(b"")
        for _ in range(2):
            assert names(load(tmp_path)) == ["1.png"]
        assert said().splitlines() == [
            f"{tmp_path}: 4 files are not images by their names, and are left out: "
            "2 .jfif, 1 .gif, 1 without an extension; a/2.jfif for one"
        ]


@pytest.mark.parametrize("upright", [True, False])
def test_photos_are_turned_where_that_is_asked_for(tmp_path, upright):
    pixels = np.arange(8 * 5 * 3, dtype=np.uint8).reshape(8, 5, 3)
    exif = Image.Exif()
    exif[0x0112] = 8
    (tmp_path / "a").mkdir()
    Image.fromarray(pixels).save(tmp_path / "a/1.png", exif=exif)
    source = load(tmp_path, upright=upright)
    np.testing.assert_array_equal(source.images()[0], np.rot90(pixels) if upright else pixels)
    assert source.fingerprint != load(tmp_path, upright=not upright).fingerprint


class TestFingerprint:
    def test_is_of_contents_and_not_of_times_and_places(self, tmp_path):
        put(tmp_path, *(f"set/a/{n}.ppm" for n in range(5)))  # of one size each
        shutil.copytree(tmp_path / "set", tmp_path / "copy")
        before = load(tmp_path / "set").fingerprint
        assert load(tmp_path / "copy").fingerprint == before
        put(tmp_path, "copy/a/3.ppm")
        for path in [*tmp_path.glob("*/a/*")]:
            os.utime(path, (0, 0))
        assert load(tmp_path / "set").fingerprint == before != load(tmp_path / "copy").fingerprint
        (tmp_path / "set/a/3.ppm").rename(tmp_path / "set/a/5.ppm")
        assert load(tmp_path / "set").fingerprint != before

    @pytest.mark.parametrize("at", [20, 60_000, -1])
    def test_looks_at_both_ends_and_the_middle_of_what_is_large(self, tmp_path, at):
        put(tmp_path, "a/1.ppm", size=200)
        os.utime(tmp_path / "a/1.ppm", (0, 0))
        before = load(tmp_path).fingerprint
        content = bytearray((tmp_path / "a/1.ppm").read_bytes())
        content[at] ^= 1
        (tmp_path / "a/1.ppm").write_bytes(content)
        os.utime(tmp_path / "a/1.ppm", (0, 0))
        assert load(tmp_path).fingerprint != before

    def test_looks_into_some_of_many_the_same_each_time(self, tmp_path, monkeypatch):
        monkeypatch.setattr(folder, "SAMPLED", 5)
        put(tmp_path, *(f"a/{n:02}.ppm" for n in range(20)))
        before = load(tmp_path).fingerprint
        assert load(tmp_path).fingerprint == before
        put(tmp_path, *(f"a/{n:02}.ppm" for n in range(20)))
        assert load(tmp_path).fingerprint != before

    def test_a_file_that_goes_meanwhile_is_named(self, tmp_path):
        put(tmp_path, "a/1.png", "a/2.png")
        source = load(tmp_path)
        (tmp_path / "a/2.png").unlink()
        with pytest.raises(UserError, match="a/2.png cannot be read: No such file"):
            source.fingerprint  # noqa: B018
