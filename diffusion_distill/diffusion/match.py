"""What turns one denoiser into another without halving: the matched target, and guidance."""

import jax
import jax.numpy as jnp

from diffusion_distill.diffusion.process import Prediction, alpha_sigma_like


def guide(with_label: jax.Array, without: jax.Array, guidance: jax.Array) -> jax.Array:
    """(1 + w) a - w b: away from what is predicted without a label (Ho & Salimans 2022).

    Of images, noise or velocities alike: at one z the three are tied by affine maps, under which
    weights that sum to 1 stay as they are. w = 0 is no guidance; others write s = 1 + w.

    Args:
        with_label, without: predictions for the same z, [B, ...].
        guidance: w of each, [B].

    Returns:
        [B, ...].
    """
    w = guidance.reshape(guidance.shape + (1,) * (with_label.ndim - guidance.ndim))
    return (1.0 + w) * with_label - w * without


def guided(with_label: Prediction, without: Prediction, guidance: jax.Array) -> Prediction:
    """The guided prediction, in all three views; see `guide`."""
    return Prediction(*(guide(*views, guidance) for views in zip(with_label, without, strict=True)))


def match_target(
    x: jax.Array,
    source_x: jax.Array,
    logsnr: jax.Array,
    source_x_without: jax.Array | None = None,
    guidance: jax.Array | None = None,
) -> jax.Array:
    """The x that a student learns from a source at the same z and the same time.

    The source's x_hat, mixed with the image that z was made of:

        x_target = alpha^2 x_hat + sigma^2 x

    Both have the conditional mean E[x | z], so a student that minimises a weighted squared error
    learns the source's x_hat wherever that is right. Where it is not, the mix is milder: an error e
    of a source that predicts eps is (sigma / alpha) e in x_hat, 22,026 e at t = 1, and at most
    e / 2 here. Clipping x_hat to [-1, 1] bounds the error too, but moves the mean (RESULTS.md
    compares the two).

    A guided source's x_w is no conditional mean of anything. Its share x_hat, which is one, is
    mixed as above; what guidance adds, w (x_hat - x_hat without a label), stays as it is; and the
    whole is clipped to [-1, 1], as a sampler would.

    Args:
        x: images in [-1, 1], [B, ...].
        source_x: x_hat of the source for z, of x's shape.
        logsnr: logSNR of z in nats, [B].
        source_x_without: x_hat without a label; None where nothing is guided.
        guidance: w of each, [B]; None where nothing is guided.

    Returns:
        x_target, of x's shape. No gradient flows through it.
    """
    alpha, sigma = alpha_sigma_like(logsnr, x)
    target = alpha**2 * source_x + sigma**2 * x
    if guidance is not None:
        added = guide(source_x, source_x_without, guidance) - source_x
        target = jnp.clip(target + added, -1.0, 1.0)
    return jax.lax.stop_gradient(target)
