"""Samplers: from noise at t = 1 to images at t = 0 in num_steps equal steps of time.

All have one signature. A sampler is a function that makes the step from t = i / num_steps to
s = (i - 1) / num_steps:

    state = step(denoiser, state, i, num_steps, logsnr_fn, noise_fn)

so that the loop over i = num_steps, ..., 1 can run inside a compiled program (`sample`, right on
accelerators) or outside of it, around one compiled step (right on CPU). i and num_steps may be
traced: one compilation serves every number of steps.

Every sampler's last step returns x_hat. Clipping is the denoiser's business: wrap it in `clip_x`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from diffusion_distill.diffusion.process import Denoiser, alpha_sigma_like, q_posterior
from diffusion_distill.diffusion.schedule import angle

LogsnrFn = Callable[[jax.Array], jax.Array]
NoiseFn = Callable[[jax.Array], jax.Array]


class SamplerState(NamedTuple):
    """What a sampler carries from step to step."""

    z: jax.Array  # the images as they stand, [B, ...]: noise at the start, samples at the end
    x_hat: jax.Array  # the x predicted one step earlier, [B, ...]; for multi-step samplers


Step = Callable[[Denoiser, SamplerState, jax.Array, jax.Array, LogsnrFn, NoiseFn], SamplerState]


def seed_key(seed: int | jax.Array) -> jax.Array:
    """The random key of a seed from 0 to 2**31 - 1, whatever generator and offset JAX is set to.

    It is that of `jax.random.key` with JAX's own settings.
    """
    data = jnp.stack([jnp.uint32(0), jnp.asarray(seed).astype(jnp.uint32)])
    return jax.random.wrap_key_data(data, impl="threefry2x32")


def image_keys(seed: int | jax.Array, indices: jax.Array) -> jax.Array:
    """One random key for each image, a function of (seed, its index) alone: [N] -> keys [N]."""
    return jax.vmap(lambda index: jax.random.fold_in(seed_key(seed), index))(indices)


def image_noise(keys: jax.Array, i: jax.Array | int, shape: tuple[int, ...]) -> jax.Array:
    """Standard normal noise [N, *shape], that of image n from keys[n] and i alone.

    i = 0 is the noise that sampling starts from; i = num_steps, ..., 1 that of ancestral steps.
    """
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, i), shape))(keys)


def _times(i, num_steps, logsnr_fn: LogsnrFn, batch: int, dtype):
    """logSNR at s and at t, [B] each; B alike, because networks take one logSNR an image."""
    dtype = jnp.promote_types(dtype, jnp.float32)  # bfloat16 counts to 256 only
    i = jnp.broadcast_to(jnp.asarray(i, dtype), (batch,))
    return logsnr_fn((i - 1.0) / num_steps), logsnr_fn(i / num_steps)


def ddim(denoiser, state, i, num_steps, logsnr_fn, noise_fn) -> SamplerState:
    """Deterministic DDIM: z_s = alpha_s x_hat + sigma_s eps_hat (Song et al. 2021; equation 8)."""
    del noise_fn
    z = state.z
    logsnr_s, logsnr_t = _times(i, num_steps, logsnr_fn, z.shape[0], z.dtype)
    prediction = denoiser(z, logsnr_t)
    alpha_s, sigma_s = alpha_sigma_like(logsnr_s, z)
    z_s = alpha_s * prediction.x + sigma_s * prediction.eps
    return SamplerState(z=jnp.where(i == 1, prediction.x, z_s), x_hat=prediction.x)


def ancestral(
    denoiser, state, i, num_steps, logsnr_fn, noise_fn, *, variance: float = 0.0
) -> SamplerState:
    """Ancestral sampling: z_s drawn from q(z_s | z_t, x_hat) (Ho et al. 2020).

    Args:
        variance: the log-variance coefficient of `q_posterior`: 0 small, 1 large.
    """
    z = state.z
    logsnr_s, logsnr_t = _times(i, num_steps, logsnr_fn, z.shape[0], z.dtype)
    prediction = denoiser(z, logsnr_t)
    mean, std = q_posterior(prediction.x, z, logsnr_s, logsnr_t, variance)
    z_s = mean + std * noise_fn(i)
    return SamplerState(z=jnp.where(i == 1, prediction.x, z_s), x_hat=prediction.x)


def dpmpp_2m(denoiser, state, i, num_steps, logsnr_fn, noise_fn) -> SamplerState:
    """DPM-Solver++(2M): second order, one network evaluation a step (Lu et al. 2022, algorithm 2).

    With lambda = logSNR / 2, h = lambda_s - lambda_t and h_0 the step before,

        z_s = (sigma_s / sigma_t) z_t - alpha_s (exp(-h) - 1) D,
        D = x_hat + h / (2 h_0) (x_hat - x_hat_before).

    The first step has no step before it and is DDIM's; so is the last, which returns x_hat.
    Departure: steps are uniform in this package's t, as for all samplers here, where the authors
    also offer steps uniform in lambda.
    """
    del noise_fn
    z = state.z
    logsnr_s, logsnr_t = _times(i, num_steps, logsnr_fn, z.shape[0], z.dtype)
    # The time before the first step is past t = 1; any value does, as it is not used then.
    _, logsnr_before = _times(
        jnp.minimum(i + 1, num_steps), num_steps, logsnr_fn, z.shape[0], z.dtype
    )
    prediction = denoiser(z, logsnr_t)
    alpha_s, sigma_s = alpha_sigma_like(logsnr_s, z)
    _, sigma_t = alpha_sigma_like(logsnr_t, z)
    h = 0.5 * (logsnr_s - logsnr_t)
    ratio = jnp.where(i == num_steps, 0.0, (logsnr_s - logsnr_t) / (logsnr_t - logsnr_before))
    column = (-1,) + (1,) * (z.ndim - 1)
    # At the first step logsnr_t - logsnr_before is 0 and the ratio is chosen to be 0.
    d = prediction.x + 0.5 * ratio.reshape(column) * (prediction.x - state.x_hat)
    z_s = (sigma_s / sigma_t) * z - alpha_s * jnp.expm1(-h).reshape(column) * d
    return SamplerState(z=jnp.where(i == 1, prediction.x, z_s), x_hat=prediction.x)


def heun(denoiser, state, i, num_steps, logsnr_fn, noise_fn) -> SamplerState:
    """Heun's method with DDIM as the predictor: second order, two network evaluations a step.

    The probability flow is dz / dphi = v_hat(z, phi). While x_hat and eps_hat stand still, DDIM
    solves it exactly and v turns into v_ddim = alpha_s eps_hat - sigma_s x_hat. The trapezoidal
    rule is applied to what remains:

        z_s = z_ddim + (phi_s - phi_t) / 2 (v_hat(z_ddim, s) - v_ddim).

    Departure: Karras et al. 2022 (algorithm 1) integrate d(z / alpha) / d(sigma / alpha), whose
    variable runs to 22,000 on a schedule that ends at logSNR -20, where the trapezoidal rule is
    useless at few steps; in the angle nothing grows. As there, the last step is the predictor
    alone, so num_steps steps cost 2 num_steps - 1 evaluations.
    """
    del noise_fn
    z = state.z
    logsnr_s, logsnr_t = _times(i, num_steps, logsnr_fn, z.shape[0], z.dtype)
    prediction = denoiser(z, logsnr_t)
    alpha_s, sigma_s = alpha_sigma_like(logsnr_s, z)
    z_ddim = alpha_s * prediction.x + sigma_s * prediction.eps
    v_ddim = alpha_s * prediction.eps - sigma_s * prediction.x
    half_step = 0.5 * (angle(logsnr_s) - angle(logsnr_t)).reshape((-1,) + (1,) * (z.ndim - 1))

    def corrected():
        return z_ddim + half_step * (denoiser(z_ddim, logsnr_s).v - v_ddim)

    z_s = jax.lax.cond(i == 1, lambda: prediction.x, corrected)
    return SamplerState(z=z_s, x_hat=prediction.x)


SAMPLERS: dict[str, Step] = {
    "ddim": ddim,
    "ancestral": ancestral,
    "dpmpp_2m": dpmpp_2m,
    "heun": heun,
}


def sample(
    step: Step,
    denoiser: Denoiser,
    z: jax.Array,
    num_steps: jax.Array | int,
    logsnr_fn: LogsnrFn,
    noise_fn: NoiseFn,
) -> jax.Array:
    """Images [B, ...] from standard normal noise z at t = 1, the loop in the compiled program.

    Args:
        step: one of SAMPLERS, or a partial of one.
        num_steps: how many steps; may be traced.
        noise_fn: from i to standard normal noise of z's shape; called by stochastic samplers.
    """

    def body(count, state):
        return step(denoiser, state, num_steps - count, num_steps, logsnr_fn, noise_fn)

    return jax.lax.fori_loop(0, num_steps, body, SamplerState(z, jnp.zeros_like(z))).z
