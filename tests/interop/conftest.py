"""Files of published checkpoints with random weights, for the tiny network."""

import pytest

from diffusion_distill.devices.sharding import make_mesh
from diffusion_distill.models.build import abstract_params, build_unet
from tests.conftest import tiny_config
from tests.interop import reference


def published_config():
    """The tiny config, for the digits' 8x8 pixels and its ten labels."""
    config = tiny_config()
    config.data.image_size = 8
    return config


def random_weights(config):
    """Random weights of a config's network, for the digits."""
    shapes = abstract_params(build_unet(config, 1, 10), (8, 8, 1), make_mesh())
    return reference.random_weights(shapes)


@pytest.fixture(scope="session")
def weights():
    """Random weights of the tiny network."""
    return random_weights(published_config())


@pytest.fixture(scope="session")
def published_file(weights, tmp_path_factory):
    """A published file of two sampling steps, as older Flax wrote it."""
    path = tmp_path_factory.mktemp("published") / "digits_2"
    return reference.write_published(path, weights, 2, old_norm=True)
