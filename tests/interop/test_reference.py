"""The network computes what the published one computes from the same weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_distill.diffusion.process import output_channels, predict
from diffusion_distill.models.unet import UNet
from tests.interop import reference

# (parameterization, multipliers, blocks, attention at, heads, head_dim, labels)
NETWORKS = {
    "like-cifar": ("x", (1, 1), 2, (4,), 1, None, 0),
    "like-imagenet": ("both", (1, 2, 2), 1, (4, 2), None, 4, 5),
    "eps": ("eps", (1, 2), 1, (), 2, None, 0),
    "v-with-labels": ("v", (1, 2), 1, (8,), 1, None, 3),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_network_is_the_published_one(name):
    parameterization, multipliers, blocks, attention, heads, head_dim, classes = NETWORKS[name]
    model = UNet(
        out_channels=output_channels(parameterization, 3),
        channels=8,
        channel_multipliers=multipliers,
        num_blocks=blocks,
        emb_channels=16,
        attention_resolutions=attention,
        num_heads=heads,
        head_dim=head_dim,
        num_classes=classes,
        num_groups=4,
    )
    logsnr = np.float32([-20.0, -4.0, -0.7, 0.3, 4.0, 20.0])
    z = np.float32(np.random.default_rng(1).normal(size=(6, 8, 8, 3)))
    labels = np.arange(6) % classes if classes else None
    arguments = (z, logsnr, labels if labels is None else jnp.asarray(labels))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), *arguments)["params"])
    weights = reference.random_weights(shapes)
    output = jax.jit(model.apply)({"params": weights}, *arguments)
    settings = (np.float64(logsnr), labels, 8, multipliers, blocks, 4)
    expected = reference.unet(weights, z, *settings)
    assert np.asarray(expected).shape == output.shape
    assert expected.std() > 0.3  # it is something that could differ
    # The embedding takes 1000 times the time in float32, whose last bit alone, 6e-5 then, may move
    # the output by more than 1e-5: by as much as it does here.
    rounding = np.abs(reference.unet(weights, z, *settings, later=2.0**-24) - expected)
    assert rounding.max() < 1e-4 * np.abs(expected).max()
    excess = np.maximum(np.abs(output - expected) - 2 * rounding, 0.0)
    assert excess.max() <= 1e-5 * np.abs(expected).max()

    # The same output as an image, where neither alpha nor sigma, which are divided by, is near 0.
    middle = slice(1, 5)
    got = predict(output[middle], z[middle], logsnr[middle], parameterization).x
    image = reference.x_hat(np.float64(output[middle]), z[middle], logsnr[middle], parameterization)
    np.testing.assert_allclose(got, image, atol=1e-5 * np.abs(image).max())
