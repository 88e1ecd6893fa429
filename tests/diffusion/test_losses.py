"""Every weighting with every parameterisation, against its weight on the error in x."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_distill.diffusion.losses import WEIGHTINGS
from diffusion_distill.diffusion.process import (
    PARAMETERIZATIONS,
    from_x,
    output_channels,
    predict,
    q_sample,
)

WEIGHTS = {
    "constant": lambda snr: np.ones_like(snr),
    "snr": lambda snr: snr,
    "truncated_snr": lambda snr: np.maximum(snr, 1.0),
    "snr_plus_one": lambda snr: snr + 1.0,
}
LOGSNR = np.array([-12.0, -3.0, -0.5, 0.5, 3.0, 12.0])


def make(kind, dtype):
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (len(LOGSNR), 4, 4, 3)).astype(dtype)
    logsnr = LOGSNR.astype(dtype)
    z = q_sample(x, rng.normal(size=x.shape).astype(dtype), logsnr)
    output = rng.normal(size=(*x.shape[:-1], output_channels(kind, 3))).astype(dtype)
    return x, z, logsnr, output


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("kind", PARAMETERIZATIONS)
def test_is_the_weight_times_the_error_in_x(kind, weighting, x64):
    x, z, logsnr, output = make(kind, np.float64)
    prediction = predict(output, z, logsnr, kind)
    loss = WEIGHTINGS[weighting](from_x(x, z, logsnr), prediction)
    error = np.mean((x - np.asarray(prediction.x)) ** 2, axis=(1, 2, 3))
    assert loss.shape == LOGSNR.shape
    np.testing.assert_allclose(loss, WEIGHTS[weighting](np.exp(LOGSNR)) * error, rtol=1e-8)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("kind", PARAMETERIZATIONS)
def test_loss_and_gradient_are_finite_in_float32(kind, weighting):
    x, z, _, output = make(kind, np.float32)
    logsnr = jnp.float32([-20.0, -10.0, -1.0, 1.0, 10.0, 20.0])

    def loss(output):
        prediction = predict(output, z, logsnr, kind)
        return WEIGHTINGS[weighting](from_x(x, z, logsnr), prediction).mean()

    value, gradient = jax.value_and_grad(loss)(output)
    assert np.isfinite(value)
    assert np.all(np.isfinite(gradient))
    assert np.any(gradient != 0)


def test_truncation_is_per_example():
    """One example at low and one at high SNR: each takes its own larger error."""
    x, z, logsnr, output = make("x", np.float32)
    target, prediction = from_x(x, z, logsnr), predict(output, z, logsnr, "x")
    truncated = WEIGHTINGS["truncated_snr"](target, prediction)
    constant, snr = (WEIGHTINGS[n](target, prediction) for n in ("constant", "snr"))
    np.testing.assert_array_equal(truncated[:3], constant[:3])
    np.testing.assert_array_equal(truncated[3:], snr[3:])
