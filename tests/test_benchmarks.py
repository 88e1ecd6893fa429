"""The tiny variant of every config runs to its end, from real data or data of its shape."""

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
# without the rounds, and bedroom's is church's with another path.
NAMES = ("cifar10_distill", "cifar10_hour", "imagenet64_distill", "lsun_church128_distill")


@pytest.fixture(scope="session")
def prepared_dir(tmp_path_factory):
    """name -> a set of its shape that `prepare` made from generated pictures, of odd sizes."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for n in range(24):
        height, width = rng.integers(130, 180, 2)
        rows, cols = np.mgrid[:height, :width]
        ramps = np.stack([rows * 255 / height, cols * 255 / width, rows * 0 + 10 * n], axis=-1)
        (root / "pictures" / f"class{n % 3}").mkdir(parents=True, exist_ok=True)
        path = root / "pictures" / f"class{n % 3}" / f"{n}.jpg"
        Image.fromarray(ramps.astype(np.uint8)).save(path)

    def make(name):
        out = root / name
        if not out.exists():
            command = [sys.executable, "-m", "diffusion_distill.data.prepare", f"--dataset={name}",
                       f"--path={root / 'pictures'}", f"--out={out}"]  # fmt: skip
            subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        return out

    return make


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("optimized")  # large images: compiling is the lesser part
def test_the_tiny_variant_runs_its_whole_chain(name, request, tmp_path):
    config = from_file(str(ROOT / "configs" / f"{name}.py:tiny"))
    if name.startswith("cifar10"):
        config.data.path = str(request.getfixturevalue("cifar10_dir"))
    else:
        config.data.path = str(request.getfixturevalue("prepared_dir")(name.rpartition("_")[0]))
    run_config(config, tmp_path / "run")
    rows = read_rows(tmp_path / "run" / "results.jsonl")
    assert [row["stage"] for row in rows] == [stage.name for stage in plan(config)]
    assert [row["num_steps"] for row in rows] == [4, 2, 1]
    for row in rows:
        assert np.isfinite(row["fd_thumbnails64_train"])
    size = config.data.image_size
    images = load_sampler(tmp_path / "run")(seed=0, num_images=4)
    assert (images.shape, images.dtype) == ((4, size, size, 3), np.uint8)
