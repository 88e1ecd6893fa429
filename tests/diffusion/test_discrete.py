"""Discrete levels against float64, and the grids of diffusers' scheduler against NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_distill.diffusion.discrete import (
    BETAS,
    SPACINGS,
    level_of,
    logsnr_of_levels,
    rescale_to_zero_snr,
)


def linear_levels(rescaled=False):
    betas = BETAS["linear"](1e-4, 0.02, 1000)
    return logsnr_of_levels(rescale_to_zero_snr(betas) if rescaled else betas)


def test_the_levels_of_linear_betas():
    levels = linear_levels()
    assert (np.diff(levels) < 0).all()
    abar = np.cumprod(1.0 - np.linspace(1e-4, 0.02, 1000))
    # 1 - abar is that of a float32 abar: 6e-8 of 1e-4 at the first level.
    np.testing.assert_allclose(levels, np.log(abar / (1 - abar)), atol=1e-3)
    assert levels[0] == pytest.approx(9.21, abs=0.01)
    assert levels[-1] == pytest.approx(-10.12, abs=0.01)


def test_zero_snr_keeps_the_first_level_and_ends_in_noise_alone():
    levels = linear_levels(rescaled=True)
    assert levels[0] == pytest.approx(linear_levels()[0], abs=1e-3)
    assert np.isneginf(levels[-1]) and np.isfinite(levels[:-1]).all()


@pytest.mark.parametrize("rescaled", [False, True])
def test_a_level_is_found_by_its_logsnr(rescaled):
    levels = linear_levels(rescaled)
    found = level_of(jnp.asarray(levels), levels)
    np.testing.assert_array_equal(found, np.arange(1000))  # to the bit: networks see integers
    between = level_of((levels[:-2] + levels[1:-1]) / 2, levels)
    np.testing.assert_allclose(between, np.arange(998) + 0.5, atol=1e-3)
    beyond = level_of(jnp.array([30.0, -30.0, -jnp.inf]), levels)
    np.testing.assert_array_equal(beyond, [0, 999, 999])


def visited(spacing, n, count, offset):
    """The levels that diffusers' schedulers go through, first to last, as their pages say."""
    if spacing == "leading":
        return np.arange(n)[::-1] * (count // n) + offset
    if spacing == "trailing":
        return np.round(np.arange(count, 0, -count / n)).astype(int) - 1
    return np.linspace(0, count - 1, n).round()[::-1].astype(int)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize(("n", "count"), [(1, 1000), (2, 1000), (7, 1000), (16, 1000), (50, 200)])
def test_the_levels_that_are_visited(spacing, n, count):
    expected = visited(spacing, n, count, offset=1)
    found = [SPACINGS[spacing](jnp.int32(i), jnp.int32(n), count, 1) for i in range(n, 0, -1)]
    np.testing.assert_array_equal(found, expected)
