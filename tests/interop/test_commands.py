"""The commands as a person types them."""

import shutil
from pathlib import Path

import numpy as np
import pytest

import diffusion_distill
from diffusion_distill.interop import to_diffusers
from diffusion_distill.run import check
from tests.commands import run
from tests.conftest import TINY
from tests.interop.conftest import published_config

CONFIG = [*TINY, "--config.data.image_size=8"]
load = diffusion_distill.load_sampler


@pytest.fixture(scope="module")
def made(published_file, tmp_path_factory):
    """A workdir made of a published file that is gone."""
    folder = tmp_path_factory.mktemp("commands")
    file = Path(shutil.copy(published_file, folder / "digits_2"))
    done = run("interop.published", file, *CONFIG, f"--workdir={folder / 'run'}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(f"run: its teacher is {file}, of 2 steps\n")
    again = run("interop.published", file, *CONFIG, f"--workdir={folder / 'run'}")
    assert again.stdout.endswith(f"it has a copy of {file} already, and keeps it\n")
    file.unlink()
    return folder / "run"


def test_a_workdir_of_a_published_file(made, published_file, tmp_path):
    """It samples, is measured, teaches another run, and distils on under its own config."""
    direct = load(published_file, config=published_config())(seed=3, num_images=12)
    np.testing.assert_array_equal(load(made)(seed=3, num_images=12), direct)
    sampled = run("sample", f"--workdir={made}", "--seed=3", "--num_images=12",
                  f"--out={tmp_path / 'x.npz'}")  # fmt: skip
    assert sampled.returncode == 0, sampled.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "x.npz")["images"], direct)
    measured = run("evaluate", f"--workdir={made}")
    assert measured.returncode == 0, measured.stderr
    assert "fd_pixels100_train at 2 steps of ddim: " in measured.stdout

    taught = published_config()
    taught.distill.teacher = str(made)
    assert check(taught, tmp_path / "taught").given_teacher.fixed_steps == 2
    again = check(published_config(), made)
    assert list(again.stages) == ["teacher", "student_0001"]
    assert again.workdir.is_finished(again.stages["teacher"])


def test_export(finished, tmp_path):
    common = [f"--workdir={finished[0]}", f"--out={tmp_path / 'out'}"]
    done = run("interop.export", *common, "--num_steps=2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"student_0002 of {finished[0]}, 2 steps, ")
    expected = load(finished[0], 2)(seed=1, num_images=5)
    np.testing.assert_array_equal(load(tmp_path / "out")(seed=1, num_images=5), expected)


@pytest.mark.slow
def test_an_export_for_diffusers_samples_here_too(finished, tmp_path):
    """Its times are ours but for the cut at t = 0."""
    out = tmp_path / "out"
    common = [f"--workdir={finished[0]}", f"--out={out}", "--format=diffusers"]
    done = run("interop.export", *common, "--num_steps=2")
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in out.iterdir()) == sorted(to_diffusers.FILES)
    sampled = run("sample", f"--path={out}", "--num_images=5", f"--out={tmp_path / 'x.npz'}")
    assert sampled.returncode == 0, sampled.stderr
    assert sampled.stdout.startswith("5 images in 2 steps")
    expected = np.int32(load(finished[0], 2)(num_images=5))
    assert np.abs(np.load(tmp_path / "x.npz")["images"] - expected).max() <= 2


@pytest.mark.parametrize(
    ("module", "arguments", "message"),
    [
        ("interop.published", CONFIG, "one FILE must be given, and 0 were"),
        ("interop.published", ["a", "--workdir=x"], "--config must be given"),
        ("interop.published", ["setup.py", *CONFIG, "--workdir=x"], "setup.py is not a published"),
        ("interop.export", ["--workdir=FINISHED"], "--out must be given"),
        ("interop.export", ["--workdir=FINISHED", "--out=x", "--num_steps=3", "--stage=teacher"],
         "give one of --num_steps and --stage"),
        ("interop.export", ["--workdir=FINISHED", "--out=x", "--dtype=int8"],
         "flag --dtype=int8: value should be one of <float32|bfloat16>"),
        ("interop.export", ["--workdir=FINISHED", "--out=x", "--format=diffusers",
                            "--dtype=bfloat16"], "--dtype=bfloat16 is not for --format=diffusers"),
        ("sample", ["--workdir=a", "--path=b", "--out=x"], "give one of --workdir and --path"),
        ("main", [*CONFIG, "--workdir=x", "--config.distill.teacher=nowhere"],
         "config.distill.teacher is 'nowhere'; there is no such"),
    ],
)  # fmt: skip
def test_mistakes_end_in_one_line(finished, module, arguments, message):
    done = run(module, *(a.replace("FINISHED", str(finished[0])) for a in arguments))
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
