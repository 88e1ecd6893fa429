"""Loss weightings (section 4 of Salimans & Ho 2022), each as a squared error.

A weight w(SNR) on the error in x is the same as a squared error in another view of the same
prediction, which is how they are computed here:

    constant        1            |x - x_hat|^2
    snr             SNR          |eps - eps_hat|^2
    truncated_snr   max(SNR, 1)  max(|x - x_hat|^2, |eps - eps_hat|^2), for each example
    snr_plus_one    SNR + 1      |v - v_hat|^2

An error is the mean over an example's pixels and channels.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from diffusion_distill.diffusion.process import Prediction


def _error(a: jax.Array, b: jax.Array) -> jax.Array:
    """Mean squared error of each example: [B, ...] twice -> [B]."""
    return jnp.mean(jnp.square(a - b), axis=tuple(range(1, a.ndim)))


def constant(target: Prediction, prediction: Prediction) -> jax.Array:
    """|x - x_hat|^2: weight 1 on the error in x."""
    return _error(target.x, prediction.x)


def snr(target: Prediction, prediction: Prediction) -> jax.Array:
    """|eps - eps_hat|^2: weight SNR, the usual loss of DDPM. It vanishes as SNR -> 0."""
    return _error(target.eps, prediction.eps)


def truncated_snr(target: Prediction, prediction: Prediction) -> jax.Array:
    """max(|x - x_hat|^2, |eps - eps_hat|^2): weight max(SNR, 1).

    With an eps-predicting network the paper found training with this weighting to diverge: at low
    SNR it asks for x, which is (z - sigma eps) / alpha there, with alpha near 0. It works as any
    other combination does, and is allowed; do not expect it to learn.
    """
    return jnp.maximum(constant(target, prediction), snr(target, prediction))


def snr_plus_one(target: Prediction, prediction: Prediction) -> jax.Array:
    """|v - v_hat|^2: weight SNR + 1."""
    return _error(target.v, prediction.v)


# Each: (target, prediction) -> losses [B].
WEIGHTINGS: dict[str, Callable[[Prediction, Prediction], jax.Array]] = {
    "constant": constant,
    "snr": snr,
    "truncated_snr": truncated_snr,
    "snr_plus_one": snr_plus_one,
}
