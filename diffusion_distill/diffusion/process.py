"""The diffusion process: q(z_t | x), q(z_s | z_t, x), and x, eps and v as one prediction.

logSNR arguments have shape [B] or []; z, x and eps have shape [B, ...], images [B, H, W, C].
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from diffusion_distill.diffusion.schedule import alpha_sigma


class Prediction(NamedTuple):
    """One belief about a noisy image z_t, seen as image, as noise and as velocity.

    The three are tied by z_t = alpha x + sigma eps and v = alpha eps - sigma x.
    """

    x: jax.Array  # the noise-free image, [B, ...]
    eps: jax.Array  # the noise, [B, ...]
    # the velocity dz / dphi, [B, ...] (section 4, and appendix D, of Salimans & Ho 2022)
    v: jax.Array


# A denoiser: (z_t [B, ...], logsnr [B]) -> Prediction. Samplers and targets know networks as this.
Denoiser = Callable[[jax.Array, jax.Array], Prediction]


def alpha_sigma_like(logsnr: jax.Array, z: jax.Array) -> tuple[jax.Array, jax.Array]:
    """alpha and sigma for logsnr of shape [B] or [], shaped to multiply z of shape [B, ...]."""
    logsnr = jnp.asarray(logsnr)
    return alpha_sigma(logsnr.reshape(logsnr.shape + (1,) * (z.ndim - logsnr.ndim)))


def q_sample(x: jax.Array, eps: jax.Array, logsnr: jax.Array) -> jax.Array:
    """A draw of q(z_t | x): z_t = alpha_t x + sigma_t eps for standard normal eps (equation 1)."""
    alpha, sigma = alpha_sigma_like(logsnr, x)
    return alpha * x + sigma * eps


def q_posterior(
    x: jax.Array, z_t: jax.Array, logsnr_s: jax.Array, logsnr_t: jax.Array, variance: float = 0.0
) -> tuple[jax.Array, jax.Array]:
    """Mean and standard deviation of q(z_s | z_t, x) for s < t.

    With r = SNR_t / SNR_s the mean is r (alpha_s / alpha_t) z_t + (1 - r) alpha_s x. The variance
    of the posterior itself is (1 - r) sigma_s^2, "small"; that of q(z_t | z_s) is
    (1 - r) sigma_t^2, "large". An ancestral sampler may use either, or a point between, in the
    log: sigma_small^(2 (1 - c)) sigma_large^(2 c) (Nichol & Dhariwal 2021).

    Args:
        x, z_t: images and noisy images, [B, ...].
        logsnr_s, logsnr_t: logSNR at the less noisy time and at the noisier; s above t.
        variance: the log-variance coefficient c: 0 is small, 1 is large.

    Returns:
        The mean [B, ...] and the standard deviation, which broadcasts against it.
    """
    alpha_s, sigma_s = alpha_sigma_like(logsnr_s, z_t)
    alpha_t, sigma_t = alpha_sigma_like(logsnr_t, z_t)
    log_r = jnp.asarray(logsnr_t) - jnp.asarray(logsnr_s)
    log_r = log_r.reshape(log_r.shape + (1,) * (z_t.ndim - log_r.ndim))
    one_minus_r = -jnp.expm1(log_r)
    mean = jnp.exp(log_r) * (alpha_s / alpha_t) * z_t + one_minus_r * alpha_s * x
    std = jnp.sqrt(one_minus_r) * sigma_s ** (1.0 - variance) * sigma_t**variance
    return mean, std


def from_x(x: jax.Array, z: jax.Array, logsnr: jax.Array) -> Prediction:
    """eps = (z - alpha x) / sigma, v = (alpha z - x) / sigma."""
    alpha, sigma = alpha_sigma_like(logsnr, z)
    return Prediction(x=x, eps=(z - alpha * x) / sigma, v=(alpha * z - x) / sigma)


def from_eps(eps: jax.Array, z: jax.Array, logsnr: jax.Array) -> Prediction:
    """x = (z - sigma eps) / alpha, v = (eps - sigma z) / alpha."""
    alpha, sigma = alpha_sigma_like(logsnr, z)
    return Prediction(x=(z - sigma * eps) / alpha, eps=eps, v=(eps - sigma * z) / alpha)


def from_v(v: jax.Array, z: jax.Array, logsnr: jax.Array) -> Prediction:
    """x = alpha z - sigma v, eps = sigma z + alpha v: no division, stable at every logSNR."""
    alpha, sigma = alpha_sigma_like(logsnr, z)
    return Prediction(x=alpha * z - sigma * v, eps=sigma * z + alpha * v, v=v)


def from_both(output: jax.Array, z: jax.Array, logsnr: jax.Array) -> Prediction:
    """x and eps in one output of 2C channels, merged so that each counts where it is stable.

    x = sigma^2 x_out + alpha^2 (z - sigma eps_out) / alpha (section 4). Put into the definitions
    of v and eps, every division cancels: v = alpha eps_out - sigma x_out, so this is a v
    prediction whose network sees the rotation done for it.
    """
    x_out, eps_out = jnp.split(output, 2, axis=-1)
    alpha, sigma = alpha_sigma_like(logsnr, z)
    return from_v(alpha * eps_out - sigma * x_out, z, logsnr)


PARAMETERIZATIONS: dict[str, Callable[[jax.Array, jax.Array, jax.Array], Prediction]] = {
    "x": from_x,
    "eps": from_eps,
    "v": from_v,
    "both": from_both,
}


def output_channels(parameterization: str, channels: int) -> int:
    """How many channels the network must give for images of `channels` channels."""
    return 2 * channels if parameterization == "both" else channels


def predict(
    output: jax.Array, z: jax.Array, logsnr: jax.Array, parameterization: str
) -> Prediction:
    """The prediction that a network's output for z stands for.

    output is [B, ..., C], for "both" [B, ..., 2C]; parameterization is one of PARAMETERIZATIONS.

    Raises:
        ValueError: the parameterization is unknown, or the output has the wrong channels.
    """
    if parameterization not in PARAMETERIZATIONS:
        raise ValueError(
            f"parameterization {parameterization!r} is not one of {', '.join(PARAMETERIZATIONS)}"
        )
    expected = output_channels(parameterization, z.shape[-1])
    if output.shape != (*z.shape[:-1], expected):
        raise ValueError(
            f"a network that predicts {parameterization!r} gives {expected} channels for images "
            f"of shape {z.shape}, not an output of shape {output.shape}"
        )
    return PARAMETERIZATIONS[parameterization](output, z, logsnr)


def clip_x(prediction: Prediction, z: jax.Array, logsnr: jax.Array) -> Prediction:
    """The prediction with x clipped to [-1, 1], eps and v derived anew so that all three agree."""
    return from_x(jnp.clip(prediction.x, -1.0, 1.0), z, logsnr)
