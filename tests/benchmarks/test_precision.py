"""benchmarks/precision.py as a person runs it, on a tiny network."""

import json
import math
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def numbers(value):
    """Every number in nested dicts."""
    if isinstance(value, dict):
        return [n for inner in value.values() for n in numbers(inner)]
    return [value] if isinstance(value, int | float) else []


def test_bfloat16_differs_from_float32_and_by_little(tmp_path):
    command = [
        sys.executable, "-m", "benchmarks.precision", "--config=configs/digits_distill.py",
        "--config.model.channels=8", "--config.model.channel_multipliers=(1,)",
        "--config.model.emb_channels=16", "--config.model.attention_resolutions=()",
        "--config.train.batch_size=8", "--updates=6", "--num_images=4", "--num_steps=2",
        f"--out={tmp_path / 'precision.json'}",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("| digits, 6 updates of 8 images")
    result = json.loads((tmp_path / "precision.json").read_text())
    assert all(math.isfinite(n) for n in numbers(result))
    exact, other = result["mean_loss"]["float32"], result["mean_loss"]["bfloat16"]
    assert 0 < abs(other - exact) < 0.02 * exact
    assert 0 < result["smoothed_loss_relative"]["largest"] < 0.02
    for images in (result["images_same_weights"], result["images_own_weights"]):
        assert 0 < images["mean"] < 0.1
        assert images["mean"] <= images["largest"] < 2
