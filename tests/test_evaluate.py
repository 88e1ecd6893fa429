"""The command that measures, as a person types it."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusion_distill.data import sources
from diffusion_distill.storage.files import read_rows

ROOT = Path(__file__).parents[1]
CONFIG = "--config=configs/digits_distill.py:tiny"


def evaluate(*arguments):
    command = [sys.executable, "-m", "diffusion_distill.evaluate", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.fixture
def digits(tmp_path):
    """(a folder of 200 real digits, an npz of the other ones)."""
    images = sources.digits().images()
    (tmp_path / "folder").mkdir()
    for n, image in enumerate(images[:200]):
        Image.fromarray(image[..., 0]).save(tmp_path / f"folder/{n:03d}.png")
    np.savez(tmp_path / "others.npz", images=images[200:])
    return tmp_path / "folder", tmp_path / "others.npz"


def test_a_stage_by_several_seeds(workdir):
    common = [f"--workdir={workdir}", "--num_steps=1", "--num_images=60"]
    done = evaluate(*common, "--seeds=2", "--metrics=fd,kid", "--seed=4")
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if " at 1 steps of ddim: " in line]
    assert [line.split(" at ")[0] for line in lines] == [
        f"{seed}{metric}"
        for seed in ("seed 4: ", "seed 5: ", "")
        for metric in ("fd_pixels60_train", "kid_pixels60_train", "label_agreement")
    ]
    rows = read_rows(workdir / "evaluations.jsonl")
    assert [row["seed"] for row in rows] == [4, 5]
    values = [row["fd_pixels60_train"] for row in rows]
    assert values[0] != values[1]
    mean, spread = np.mean(values), abs(values[0] - values[1]) / np.sqrt(2)
    assert f"fd_pixels60_train at 1 steps of ddim: {mean:.4f} ± {spread:.4f}" in done.stdout
    assert not any((workdir / "evaluating").iterdir())


def test_two_sets_and_their_statistics(tmp_path, digits):
    """Images against images, and against their mu and sigma, are the same distance."""
    folder, npz = digits
    arguments = [f"--images={folder}", "--features=pixels", f"--out={tmp_path / 'out.jsonl'}"]
    done = evaluate(*arguments, f"--reference={npz}", "--metrics=fd,precision_recall")
    assert done.returncode == 0, done.stderr
    pixels = [
        x.reshape(len(x), -1) / 127.5 - 1
        for x in (sources.digits().images()[200:], sources.digits().images()[:200])
    ]
    mu, sigma = pixels[0].mean(0), np.cov(pixels[0], rowvar=False)
    np.savez(tmp_path / "stats.npz", mu=mu, sigma=sigma)
    done = evaluate(*arguments, f"--reference={tmp_path / 'stats.npz'}", "--metrics=fd,kid")
    assert done.returncode == 0, done.stderr
    assert "kid: vs_stats has statistics only" in done.stdout
    first, second = read_rows(tmp_path / "out.jsonl")
    assert first["metrics"] == [
        "fd_pixels200_vs_others", "precision_pixels200_vs_others", "recall_pixels200_vs_others",
    ]  # fmt: skip
    assert second["metrics"] == ["fd_pixels200_vs_stats"]
    value = first["fd_pixels200_vs_others"]
    assert second["fd_pixels200_vs_stats"] == pytest.approx(value, abs=1e-4)
    assert 0.3 < value < 3
    assert first["reference"]["count"] == 1597
    assert first["reference"]["fingerprint"] != second["reference"]["statistics"]
    assert first["fingerprint"] == second["fingerprint"]
    assert first["precision_pixels200_vs_others"] > 0.7


def test_images_against_the_data_of_a_config_are_drawn_from_all_of_them(tmp_path):
    """Not the first of them, which here are all of a few classes."""
    digits = sources.digits()
    by_class = digits.images()[np.argsort(digits.labels, kind="stable")]
    np.savez(tmp_path / "by_class.npz", images=by_class)
    out = tmp_path / "out.jsonl"
    done = evaluate(f"--images={tmp_path / 'by_class.npz'}", CONFIG, "--num_images=500",
                    f"--out={out}")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "images: 500 of 1,797, drawn at random" in done.stdout
    (row,) = read_rows(out)
    assert row["fd_pixels500_train"] < 1.0  # 500 drawn at random: 0.3; the first 500: 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "error: --workdir must be given"),
        (["--images={folder}"], "--images is compared with --reference, or the data of --config"),
        (["--images={folder}", CONFIG, "--num_images=201"], "201 images were asked for; "),
        (["--images={folder}", CONFIG, "--metrics=fid"], "config.eval.metrics is ('fid',)"),
        (["--images={folder}", "--reference={small}"], "has images of 8x8x1, the reference "),
        (["--images={folder}", "--reference=nowhere"], "nowhere is neither a folder of images"),
        (["--images={folder}", CONFIG, "--split=test"], "digits have only 'train'"),
        (["--images={folder}", CONFIG, "--seeds=3"], "--seeds means nothing with --images"),
        (
            ["--images={folder}", "--reference={small}", "--split=test"],
            "--split means nothing with --reference",
        ),
    ],
)
def test_mistakes(tmp_path, digits, arguments, message):
    np.savez(tmp_path / "small.npz", images=np.zeros((9, 4, 4, 1), np.uint8))
    paths = {"folder": digits[0], "small": tmp_path / "small.npz"}
    done = evaluate(*[argument.format(**paths) for argument in arguments])
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
