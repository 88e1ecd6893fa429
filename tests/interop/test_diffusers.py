"""Folders of diffusers: the same network, the same images, and what is not supported refused."""

import jax
import numpy as np
import pytest

import diffusion_distill
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


LEVELS = [
    name if name in ("linear", "zero_snr") else pytest.param(name, marks=pytest.mark.slow)
    for name in folders.LEVELS
]


@pytest.mark.parametrize("name", LEVELS)
def test_its_own_sampler_gives_the_images_of_diffusers(name, tmp_path, compiled_quickly):
    made = folders.pipeline(tmp_path, **folders.LEVELS[name])
    sampler = diffusion_distill.load_sampler(tmp_path, 10, sampler="ddim_diffusers")
    for num_steps in (1, 2, 5, 7, 10):
        sampler.num_steps = num_steps
        z, expected = folders.images(made, num_steps)
        result = np.clip(sampler.from_noise(z), -1.0, 1.0)
        np.testing.assert_allclose(result, expected, atol=1e-4)
    assert np.mean(np.abs(expected) < 0.99) > 0.05  # not all of it at its bounds
