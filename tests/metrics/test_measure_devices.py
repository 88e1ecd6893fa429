"""Measuring on eight devices, which a process of its own has."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.digits_distill import get_config
from diffusion_distill.devices.sharding import make_mesh
from diffusion_distill.metrics import measure
from diffusion_distill.metrics.features import FeatureNetwork
from diffusion_distill.metrics.measure import for_run
from diffusion_distill.metrics.request import Request
from tests.commands import run
from tests.metrics.test_measure import SOME


def convolution(weights=""):
    """A small random network of the kind that features come from, with logits."""
    rng = np.random.default_rng(0)
    params = {
        "kernel": rng.normal(size=(3, 3, 1, 16)).astype(np.float32) / 3,
        "logits": rng.normal(size=(16, 5)).astype(np.float32),
    }

    def apply(params, images):
        x = images.astype(jnp.float32) / 127.5 - 1
        x = jax.lax.conv_general_dilated(
            x, params["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision="highest",
        )  # fmt: skip
        x = jax.nn.relu(x).mean(axis=(1, 2))
        return x, jnp.matmul(x, params["logits"], precision="highest")

    return FeatureNetwork("convolution", params, apply, "convolution")


def test_eight_devices_measure_what_one_does(tmp_path):
    done = run("test_measure_devices", tmp_path, package="tests.metrics")
    assert done.returncode == 0, done.stderr


def on_one_and_eight(folder):
    """Of 400 digits, what a child process with eight devices measures on one, and on all."""
    (one, values), (eight, others) = (measured_digits(n, folder / str(n)) for n in (1, 8))
    np.testing.assert_allclose(eight, one, atol=1e-5)
    assert one.std() > 0.01
    assert values.keys() == others.keys()
    assert len(values) == 5
    for name, value in values.items():
        assert others[name] == pytest.approx(value, abs=1e-3)


def measured_digits(devices, folder):
    """Features of digits, and what is measured of a noisy version of them."""
    measure.FEATURES["convolution"] = convolution
    config = get_config("tiny")
    config.eval.features = "convolution"
    config.eval.metrics = ("fd", "kid", "precision_recall", "inception_score")
    config.eval.label_agreement = False
    config.runtime.cache_dir = str(folder)
    config.runtime.sampler_batch_size = 203  # no multiple of the devices
    mesh = make_mesh(devices=jax.devices()[:devices])
    assert mesh.size == devices
    measurer = for_run(config, SOME, mesh)
    reference = measurer.yardstick.reference
    # Images are uint8: 7 added to each, and what passes 255 begins at 0 again.
    size = measurer.batch_size(len(SOME))
    assert size == (203 if devices == 1 else 208)
    request = Request(lambda n: SOME.images(n) + 7, len(SOME), size)
    return reference.features, measurer.yardstick.measure(request).values


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)
    on_one_and_eight(Path(sys.argv[1]))
