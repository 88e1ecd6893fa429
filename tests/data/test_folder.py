"""Which images of a folder are taken, whatever else is in it, and as what."""

import os
import shutil

import numpy as np
import pytest
from PIL import Image

from diffusion_distill.data import folder, sources, write_prepared
from diffusion_distill.errors import UserError
from tests.data.folders import load, names, put


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
