"""The tiny variant of a config runs to its end, from real data or data of its shape."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusion_distill import load_sampler
from diffusion_distill.run import run_config
from diffusion_distill.stages import plan
from diffusion_distill.storage.files import read_rows
from diffusion_distill.validate import from_file

ROOT = Path(__file__).resolve().parents[1]
# Of the others tests/test_configs.py says that they run no more: a teacher's config is its chain's
# without the rounds, bedroom's is church's with another path, ImageNet's is church's on smaller
# images with labels, and the hour's is CIFAR-10's with the loss of the small one.
NAMES = ("cifar10_distill", "cifar10_small", "lsun_church128_distill")


@pytest.fixture
def church_dir(tmp_path):
    """A set of its shape that `prepare` made from generated pictures, of odd sizes."""
    rng = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    for n in range(24):
        height, width = rng.integers(130, 180, 2)
        rows, cols = np.mgrid[:height, :width]
        ramps = np.stack([rows * 255 / height, cols * 255 / width, rows * 0 + 10 * n], axis=-1)
        Image.fromarray(ramps.astype(np.uint8)).save(tmp_path / "pictures" / f"{n}.jpg")
    command = [sys.executable, "-m", "diffusion_distill.data.prepare", "--dataset=lsun_church128",
               f"--path={tmp_path / 'pictures'}", f"--out={tmp_path / 'church'}"]  # fmt: skip
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return tmp_path / "church"


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_tiny_variant_runs_its_whole_chain(name, request, tmp_path):
    config = from_file(str(ROOT / "configs" / f"{name}.py:tiny"))
    if config.data.image_size > 32:  # where computing takes longer than compiling
        request.getfixturevalue("optimized")
    data = "cifar10_dir" if name.startswith("cifar10") else "church_dir"
    config.data.path = str(request.getfixturevalue(data))
    run_config(config, tmp_path / "run")
    rows = read_rows(tmp_path / "run" / "results.jsonl")
    assert [row["stage"] for row in rows] == [stage.name for stage in plan(config)]
    assert [row["num_steps"] for row in rows] == [4, 2, 1]
    for row in rows:
        assert np.isfinite(row[f"fd_thumbnails{config.eval.num_images}_train"])
    size = config.data.image_size
    images = load_sampler(tmp_path / "run")(seed=0, num_images=4)
    assert (images.shape, images.dtype) == ((4, size, size, 3), np.uint8)
