"""The cosine schedule against float64, at every t and most of all at both ends."""

import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_distill.diffusion.schedule import alpha_sigma, angle, cosine_logsnr

TIMES = np.concatenate(
    [
        np.linspace(0.0, 1.0, 1001),
        10.0 ** -np.arange(2.0, 8.0),  # towards data
        1.0 - 2.0 ** -np.arange(3.0, 24.0),  # towards noise, exact in float32
        np.arange(1, 8193, 97) / 8192.0,  # the paper's finest grid
    ]
).astype(np.float32)


def angle64(t, low, high):
    start, end = np.arctan(np.exp(-high / 2)), np.arctan(np.exp(-low / 2))
    return start + (end - start) * t.astype(np.float64)


@pytest.mark.parametrize(("low", "high"), [(-20.0, 20.0), (-5.0, 12.0), (-15.0, 8.0)])
def test_float32_keeps_its_digits_everywhere(low, high):
    phi = angle64(TIMES, low, high)
    logsnr = cosine_logsnr(TIMES, low, high)
    assert logsnr.dtype == jnp.float32
    # logSNR's absolute error is the relative error of SNR.
    np.testing.assert_allclose(logsnr, -2 * np.log(np.tan(phi)), rtol=1e-6, atol=2e-6)
    alpha, sigma = alpha_sigma(logsnr)
    np.testing.assert_allclose(alpha, np.cos(phi), rtol=3e-6)
    np.testing.assert_allclose(sigma, np.sin(phi), rtol=3e-6)
    np.testing.assert_allclose(angle(logsnr), phi, rtol=3e-6)


def test_ends_are_the_cut_exactly():
    np.testing.assert_allclose(cosine_logsnr(np.float32([0.0, 1.0])), [20.0, -20.0], rtol=1e-7)


def test_is_decreasing_and_odd_about_one_half():
    t = np.sort(np.unique(TIMES))
    logsnr = np.asarray(cosine_logsnr(t))
    assert np.all(np.diff(logsnr) <= 0)
    mirrored = np.asarray(cosine_logsnr(np.float32(1) - t))
    exact = (np.float32(1) - (np.float32(1) - t)) == t
    np.testing.assert_allclose(mirrored[exact], -logsnr[exact], atol=2e-6)


def test_without_a_cut_it_would_be_the_cosine(x64):
    t = np.linspace(0.01, 0.99, 99)
    alpha, sigma = alpha_sigma(cosine_logsnr(jnp.asarray(t), -60.0, 60.0))
    np.testing.assert_allclose(alpha, np.cos(0.5 * np.pi * t), rtol=1e-10)
    np.testing.assert_allclose(sigma, np.sin(0.5 * np.pi * t), rtol=1e-10)


def test_variance_is_preserved():
    alpha, sigma = alpha_sigma(cosine_logsnr(TIMES))
    np.testing.assert_allclose(alpha**2 + sigma**2, 1.0, rtol=1e-6)
