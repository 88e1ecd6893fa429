"""Noise schedules: logSNR as a function of time, and alpha and sigma from logSNR.

Time t runs from 0 (data) to 1 (noise). A noisy image is z_t = alpha_t x + sigma_t eps with
alpha^2 + sigma^2 = 1 (variance preserving), and logSNR = log(alpha^2 / sigma^2), in nats.
Everything else in this package takes logSNR and never t, so that any schedule fits.
"""

import math

import jax
import jax.numpy as jnp


def cosine_logsnr(t: jax.Array, logsnr_min: float = -20.0, logsnr_max: float = 20.0) -> jax.Array:
    """logSNR of the cosine schedule, cut so that it stays within [logsnr_min, logsnr_max].

    alpha_t = cos(phi), sigma_t = sin(phi), with phi linear in t from arctan(exp(-logsnr_max / 2))
    to arctan(exp(-logsnr_min / 2)) (section 2 of Salimans & Ho 2022; the cut is their appendix's).

    logSNR = -2 log tan(phi). Near t = 1, phi is near pi / 2, where float32 has spent its digits on
    the pi / 2; there the complement pi / 2 - phi is computed instead, from 1 - t, which is exact.

    Times t in [0, 1] have any shape, and are not checked; logSNR, in nats, has t's shape and dtype.
    """
    t = jnp.asarray(t, jnp.result_type(t, jnp.float32))
    phi_at_0 = math.atan(math.exp(-0.5 * logsnr_max))
    complement_at_1 = math.atan(math.exp(0.5 * logsnr_min))
    span = 0.5 * math.pi - phi_at_0 - complement_at_1
    first_half = t < 0.5
    angle = jnp.where(first_half, phi_at_0 + span * t, complement_at_1 + span * (1.0 - t))
    log_tan = jnp.log(jnp.tan(angle))
    return jnp.where(first_half, -2.0, 2.0) * log_tan


def alpha_sigma(logsnr: jax.Array) -> tuple[jax.Array, jax.Array]:
    """alpha = sqrt(sigmoid(logSNR)) and sigma = sqrt(sigmoid(-logSNR)), each of logsnr's shape.

    Both keep all their digits at both ends: neither is ever computed as one minus the other.
    """
    return jnp.sqrt(jax.nn.sigmoid(logsnr)), jnp.sqrt(jax.nn.sigmoid(-logsnr))


def angle(logsnr: jax.Array) -> jax.Array:
    """phi in [0, pi / 2] with alpha = cos(phi) and sigma = sin(phi), in radians."""
    return jnp.arctan(jnp.exp(-0.5 * logsnr))
