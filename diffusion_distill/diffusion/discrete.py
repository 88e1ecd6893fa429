"""Discrete schedules: K noise levels, each by its beta (Ho et al. 2020), as diffusers keeps them.

With abar_k = prod_{j <= k} (1 - beta_j), level k is alpha^2 = abar_k, sigma^2 = 1 - abar_k: logSNR
falls from level 0, nearly data, to level K - 1, nearly noise. A network trained on such levels is
asked at any logSNR by the fractional level that has it (`level_of`).
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_distill.diffusion.process import Denoiser, alpha_sigma_like
from diffusion_distill.diffusion.samplers import SamplerState, Step


def _cosine(count: int) -> np.ndarray:
    """Nichol & Dhariwal 2021: abar is a squared cosine, no beta above 0.999."""
    abar = np.cos((np.arange(count + 1) / count + 0.008) / 1.008 * math.pi / 2) ** 2
    return np.minimum(1.0 - abar[1:] / abar[:-1], 0.999)


# (first beta, last beta, K) -> betas, by the names that diffusers has for them.
BETAS: dict[str, Callable[[float, float, int], np.ndarray]] = {
    "linear": np.linspace,
    "scaled_linear": lambda low, high, count: np.linspace(low**0.5, high**0.5, count) ** 2,
    "squaredcos_cap_v2": lambda low, high, count: _cosine(count),
}


def rescale_to_zero_snr(betas: np.ndarray) -> np.ndarray:
    """Betas whose last level is noise alone: alpha shifted and scaled, the first as it was.

    Lin et al. 2024, "Common Diffusion Noise Schedules and Sample Steps are Flawed", algorithm 1.
    """
    alpha = np.sqrt(np.cumprod(1.0 - betas))
    alpha = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])
    abar = np.square(alpha)
    return 1.0 - abar / np.concatenate([[1.0], abar[:-1]])


def logsnr_of_levels(betas: np.ndarray) -> np.ndarray:
    """log(abar / (1 - abar)) of each level, float32 [K], strictly falling; the last may be -inf.

    Betas, 1 - beta and abar are rounded to float32 on the way, as where such networks are trained.
    """
    factors = np.float32(1.0) - np.asarray(betas, np.float32)
    abar = np.cumprod(factors, dtype=np.float64).astype(np.float32).astype(np.float64)
    with np.errstate(divide="ignore"):
        return (np.log(abar) - np.log1p(-abar)).astype(np.float32)


def level_of(logsnr: jax.Array, logsnr_of_levels: Sequence[float]) -> jax.Array:
    """The fractional level that has a logSNR, float32, of logsnr's shape; between levels linear.

    What lies outside of the levels is the first or the last. A last level of noise alone is taken
    to begin where alpha is a quarter of what it is on the level before.
    """
    levels = np.array(logsnr_of_levels, np.float32)
    if np.isneginf(levels[-1]):
        levels[-1] = levels[-2] - 2.0 * math.log(4.0)
    numbers = np.arange(len(levels), dtype=np.float32)
    finite = jnp.clip(logsnr.astype(jnp.float32), levels[-1], levels[0])
    return jnp.interp(finite, levels[::-1], numbers[::-1])


class Grid(NamedTuple):
    """Which levels a sampler of diffusers visits, and how it clips, by diffusers' names."""

    logsnr_of_levels: tuple[float, ...]
    timestep_spacing: str  # one of SPACINGS
    steps_offset: int  # added to the levels of "leading"
    set_alpha_to_one: bool  # whether the last step goes to the image; if not, to level 0
    clip_sample_range: float  # x_hat is clipped to plus or minus this; infinity for not at all


def _nearest(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    """The integer nearest to a fraction; of two alike the even one, as numpy rounds."""
    quotient, rest = jnp.divmod(numerator, denominator)
    up = (2 * rest > denominator) | ((2 * rest == denominator) & (quotient % 2 == 1))
    return quotient + up


# (i, num_steps, K, steps_offset) -> the level from which the i-th last step goes.
SPACINGS: dict[str, Callable] = {
    "leading": lambda i, n, count, offset: (i - 1) * (count // n) + offset,
    "trailing": lambda i, n, count, offset: _nearest(i * count, n) - 1,
    "linspace": lambda i, n, count, offset: _nearest((i - 1) * (count - 1), jnp.maximum(n - 1, 1)),
}


def diffusers_ddim(grid: Grid) -> Step:
    """The step of diffusers' DDIMScheduler, eta = 0, its peculiarities with it.

    From level k it goes to level k - K // num_steps, whether or not the next step starts there:
    with "trailing" and "linspace" it does not, where num_steps does not divide K. And eps_hat is
    the network's, not derived anew from the x_hat that is clipped: the denoiser must not clip.
    """
    levels = np.array(grid.logsnr_of_levels, np.float32)
    last = np.float32(np.inf) if grid.set_alpha_to_one else levels[0]
    spacing, limit = SPACINGS[grid.timestep_spacing], grid.clip_sample_range

    def step(denoiser: Denoiser, state, i, num_steps, logsnr_fn, noise_fn) -> SamplerState:
        del logsnr_fn, noise_fn
        z, count = state.z, len(levels)
        level = spacing(i, num_steps, count, grid.steps_offset)
        before = level - count // num_steps
        logsnr_t = jnp.asarray(levels)[level]
        logsnr_s = jnp.where(before >= 0, jnp.asarray(levels)[before], last)
        prediction = denoiser(z, jnp.broadcast_to(logsnr_t, (z.shape[0],)))
        x_hat = jnp.clip(prediction.x, -limit, limit)
        alpha_s, sigma_s = alpha_sigma_like(logsnr_s, z)
        return SamplerState(z=alpha_s * x_hat + sigma_s * prediction.eps, x_hat=x_hat)

    return step
