"""The command that gets data sets, and turns others into prepared ones."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from diffusion_distill.data import sources, write_prepared
from diffusion_distill.data.preprocess import to_square
from tests.commands import ROOT, run
from tests.conftest import data_config

RNG = np.random.default_rng(0)


def load(path):
    return sources.load(data_config("prepared", str(path)))


@pytest.mark.parametrize("kills", [1, pytest.param(10, marks=pytest.mark.slow)])
def test_killed_at_any_moment_it_ends_with_the_same_set(tmp_path, kills):
    """As a user does it, from a folder of pictures, with SIGKILL."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for n in range(200):
        Image.fromarray(RNG.integers(0, 256, (80, 90, 3), np.uint8)).save(pictures / f"{n:03}.png")
    program = (
        "from diffusion_distill.data import prepare as p; "
        "p.write_prepared.write.__defaults__ = (10 * 64 * 64 * 3,); "  # ten images a file
        "p.cli.run(p.main)"
    )
    flags = ["--source=folder", f"--path={pictures}", "--image_size=64", "--nofolder_labels"]
    command = [sys.executable, "-c", program, *flags, f"--out={tmp_path / 'a'}"]
    parts, killed = tmp_path / "a/train", 0
    for delay in np.linspace(0.01, 0.1, kills):
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
        before = len(list(parts.glob("part-*")))
        deadline = time.monotonic() + 60
        while process.poll() is None and len(list(parts.glob("part-*"))) <= before:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
    assert killed
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    config = data_config("folder", str(pictures), image_size=64, folder_labels=False)
    write_prepared.write(sources.load(config), tmp_path / "b/train", {}, 10 * 64 * 64 * 3)
    assert load(tmp_path / "a").fingerprint == load(tmp_path / "b").fingerprint
    assert sorted(os.listdir(tmp_path / "a/train")) == sorted(os.listdir(tmp_path / "b/train"))


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
        (["--out=x", "--source=digits", "--split=test"], "--split is 'test'; digits have only"),
        (["--out=x", "--source=folder", "--path=configs"], "configs has no images"),
        (["--out=x", "--source=tfds"], "--tfds_name is ''; it must name a data set"),
        (["--out=x", "--source=prepared", "--path=y"], "say where it is with --path"),
    ],
)  # fmt: skip
def test_mistakes_end_in_one_line(flags, message):
    done = run("data.prepare", *flags)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert message in done.stderr
    assert not (ROOT / "x").exists()


def test_the_published_preprocessing_of_each_data_set(tmp_path):
    """From files as a person has them, through the command line, to the training shape.

    EXIF orientation was not applied.
    """
    picture = RNG.integers(0, 256, (150, 200, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("n01", "n02"):
        (tmp_path / "train" / name).mkdir(parents=True)
        Image.fromarray(picture).save(tmp_path / "train" / name / "a.png", exif=exif)
    Image.fromarray(picture[..., 0]).save(tmp_path / "train/n02/grey.png")
    (tmp_path / "train/n02/broken.png").write_bytes(b"\x89PNG")
    for dataset, size, labels, count in (
        ("imagenet64", 64, [0, 1, 1], "1,281,167"),
        ("lsun_church128", 128, [0] * 3, "126,227"),
    ):
        out = tmp_path / dataset
        done = run(
            "data.prepare", f"--dataset={dataset}", f"--path={tmp_path / 'train'}", f"--out={out}"
        )
        assert done.returncode == 0, done.stderr
        assert "left out: " in done.stdout and "broken.png" in done.stdout
        assert f"warning: {dataset} train has {count} images" in done.stdout
        source = load(out)
        assert source.image_shape == (size, size, 3)
        assert source.name == dataset
        np.testing.assert_array_equal(source.labels, labels)
        kind = "area" if dataset == "imagenet64" else "antialias"
        assert source.preprocessing == f"central square crop, {kind} resize to {size}"
        np.testing.assert_array_equal(source.images([0])[0], to_square(picture, size, kind))
    assert run("data.prepare", f"--out={out}", "--verify").returncode == 0
    with open(out / "train/images-00000.npy", "r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))
    assert "images-00000.npy is damaged" in run("data.prepare", f"--out={out}", "--verify").stderr
