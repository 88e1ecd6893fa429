"""Pixels two by two: where each value lies, and that layers do to pairs what they do to pixels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_distill.models.layers import Conv, Dense, GroupNorm
from diffusion_distill.models.pairs import paired, paired_kernel, spread, summed, unpaired
from diffusion_distill.models.unet import downsample, downsample_pairs

SECTIONS = [(3,), (3, 5)]  # channels of what is concatenated


def normal(*shape):
    return jnp.asarray(np.random.default_rng(sum(shape)).normal(size=shape))


def in_pairs(x, sections):
    """[B, H, W, C] as `pairs` has it: each section's pairs after those of the one before."""
    parts = np.split(x, np.cumsum(sections)[:-1], axis=-1)
    return jnp.concatenate([paired(part) for part in parts], axis=-1)


def test_a_pair_has_the_channels_of_its_first_pixel_then_of_its_second():
    x = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    pairs = paired(x)
    assert pairs.shape == (2, 3, 2, 10)
    np.testing.assert_array_equal(pairs[1, 2, 1, :5], x[1, 2, 2])
    np.testing.assert_array_equal(pairs[1, 2, 1, 5:], x[1, 2, 3])
    np.testing.assert_array_equal(unpaired(pairs), x)


@pytest.mark.parametrize("sections", SECTIONS)
def test_vectors_of_channels_go_to_pairs_and_back(sections):
    v, channels = np.arange(sum(sections)), sum(sections)
    pixels = np.broadcast_to(v, (1, 1, 2, channels))
    np.testing.assert_array_equal(spread(v, sections), in_pairs(pixels, sections)[0, 0, 0])
    pixels = np.arange(2 * channels).reshape(1, 1, 2, channels)
    np.testing.assert_array_equal(
        summed(in_pairs(pixels, sections)[0, 0, 0], sections), pixels[0, 0].sum(axis=0)
    )


@pytest.mark.parametrize("sections", SECTIONS)
@pytest.mark.parametrize("size", [(1, 1), (3, 3), (1, 5), (3, 7)])
def test_a_paired_kernel_convolves_pairs_as_the_kernel_does_pixels(size, sections, x64):
    """By sums over the kernel, in float64; rows have more pixels than the kernel, or less."""
    height, width = size
    channels, features = sum(sections), 4
    kernel, x = normal(height, width, channels, features), normal(2, 3, 6, channels)
    padded = np.pad(x, ((0, 0), (height // 2,) * 2, (width // 2,) * 2, (0, 0)))
    expected = sum(
        padded[:, i : i + 3, j : j + 6] @ np.asarray(kernel[i, j])
        for i in range(height)
        for j in range(width)
    )
    made = jax.lax.conv_general_dilated(
        in_pairs(x, sections),
        paired_kernel(kernel, sections),
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    np.testing.assert_allclose(unpaired(made), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sections", SECTIONS)
@pytest.mark.parametrize("layer", [Conv(4), Dense(4), GroupNorm(2, jax.nn.swish)])
def test_layers_do_to_pairs_what_they_do_to_pixels(layer, sections):
    """With the same parameters; a group of the norm has channels of both sections."""
    x = jnp.float32(normal(2, 4, 6, 2 * sum(sections)))  # an even number, for two groups
    sections = tuple(2 * c for c in sections)
    of_pairs = layer.clone(pairs=sections)
    params = layer.init(jax.random.key(0), x)
    params = jax.tree.map(lambda leaf: jnp.float32(normal(*leaf.shape)), params)
    x_pairs = in_pairs(x, sections)
    shapes = jax.eval_shape(lambda: of_pairs.init(jax.random.key(0), x_pairs))
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, params)
    expected = layer.apply(params, x)
    made = sections if isinstance(layer, GroupNorm) else (layer.features,)
    np.testing.assert_allclose(
        of_pairs.apply(params, x_pairs), in_pairs(expected, made), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_downsampling(dtype):
    x = normal(2, 4, 6, 3).astype(dtype)
    made = downsample_pairs(paired(x))
    assert made.dtype == x.dtype
    step = 1e-6 if dtype == "float32" else 8e-3  # of values of about 1; bfloat16 has 8 bits
    made, expected = (np.asarray(a, np.float64) for a in (made, downsample(x)))
    np.testing.assert_allclose(made, expected, rtol=step, atol=step)
