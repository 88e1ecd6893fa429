"""What the subfolders of a folder of images are taken for: labels, splits or parts of one set."""

import json
import shutil

import pytest

from diffusion_distill.data import sources
from diffusion_distill.errors import UserError
from tests.conftest import data_config
from tests.data.folders import load, names, put


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
