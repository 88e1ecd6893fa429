"""Folders of diffusers: the same network, the same images, and what is not supported refused."""


import jax
import numpy as np
import pytest

from diffusion_distill.devices.sharding import make_mesh
from diffusion_distill.interop import diffusers
from diffusion_distill.models.build import build_unet, make_levels
from tests.interop import diffusers_folders as folders


def noise(shape, count=2):
    return np.random.default_rng(0).standard_normal((count, *shape), np.float32)


FORMS = [
    form if form in ("plain", "mixed") else pytest.param(form, marks=pytest.mark.slow)
    for form in folders.NETWORKS
]


@pytest.mark.parametrize("form", FORMS)
def test_the_network_gives_what_diffusers_does(form, tmp_path, compiled_quickly):
    model = folders.network(**folders.NETWORKS[form])
    model.save_pretrained(tmp_path)
    network = diffusers.read(tmp_path, make_mesh())
    z, labels = noise(network.image_shape), None
    if network.num_classes:
        labels = np.array([0, network.num_classes - 1])
    ours = build_unet(network.config, network.image_shape[-1], network.num_classes)
    apply = jax.jit(lambda logsnr: ours.apply({"params": network.params}, z, logsnr, labels))
    for level in (0, 437, 999):
        result = apply(np.full(len(z), make_levels(network.config)[level]))
        expected = folders.output(model, z, level, labels)
        # float32 on both sides, sums in another order.
        np.testing.assert_allclose(result, expected, atol=2e-5)
        assert np.abs(expected).max() > 0.1
