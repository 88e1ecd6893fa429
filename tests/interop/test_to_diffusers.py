"""Exports for diffusers: it opens them, and draws what we draw."""

import numpy as np
import pytest

from diffusion_distill.devices.sharding import make_mesh
from diffusion_distill.generate import Sampler, make_sample_program
from diffusion_distill.interop import to_diffusers
from diffusion_distill.runs.network import Network, flatten, with_weights
from tests.conftest import tiny_config
from tests.interop import diffusers_folders as folders
from tests.interop import reference


def student(parameterization, num_steps, model=(), num_classes=0):
    """A student of random weights, for 8x8 pixels of one colour."""
    config = tiny_config()
    config.diffusion.parameterization = parameterization
    config.model.class_conditional = bool(num_classes)
    config.model.update(dict(model))
    network = Network.untrained(config, (8, 8, 1), num_classes, num_steps, make_mesh())
    weights = flatten(reference.random_weights(network.params))
    return with_weights(network, weights, "")


def drawn(network, z, labels=None):
    sizes = network.config, network.image_shape, network.num_classes
    program = make_sample_program(*sizes, "ddim", make_mesh())
    return Sampler(program, network.params, network.fixed_steps).from_noise(z, labels)


@pytest.mark.parametrize(
    ("parameterization", "num_steps", "model"),
    [
        ("v", 4, {"attention_resolutions": (4,)}),
        ("x", 1, {"resample_blocks": False, "attention_resolutions": (8, 4), "num_heads": 2}),
        ("eps", 8, {"time_input": "linear", "num_heads": 0, "head_dim": 4, "num_blocks": 2}),
    ],
)
def test_diffusers_draws_what_we_draw(
    parameterization, num_steps, model, tmp_path, compiled_quickly
):
    network = student(parameterization, num_steps, model)
    to_diffusers.write(network, tmp_path, "")
    made = folders.package().DDIMPipeline.from_pretrained(tmp_path)
    z, images = folders.images(made, num_steps, use_clipped_model_output=True)
    np.testing.assert_allclose(images, drawn(network, z), atol=1e-3)
    assert np.mean(np.abs(images) < 0.99) > 0.05
