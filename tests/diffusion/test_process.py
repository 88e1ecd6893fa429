"""q(z_t | x), q(z_s | z_t, x) and the four ways to predict, against float64 from definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_distill.diffusion import process
from diffusion_distill.diffusion.schedule import cosine_logsnr

LOGSNR = np.array([-20.0, -6.0, -1.0, 0.0, 2.0, 7.0, 20.0])


def make(seed=0, shape=(4, 4, 3)):
    rng = np.random.default_rng(seed)
    x = rng.uniform(-1, 1, (len(LOGSNR), *shape))
    return x, rng.normal(size=x.shape)


def alpha_sigma64(logsnr, ndim=4):
    snr = np.exp(logsnr).reshape((-1,) + (1,) * (ndim - 1))
    return np.sqrt(snr / (1 + snr)), np.sqrt(1 / (1 + snr))


def outputs(x, eps):
    """What a network of each kind gives for the same belief."""
    alpha, sigma = alpha_sigma64(LOGSNR)
    return {
        "x": x,
        "eps": eps,
        "v": alpha * eps - sigma * x,
        "both": np.concatenate([x, eps], axis=-1),
    }


def test_q_sample_is_alpha_x_plus_sigma_eps():
    x, eps = make()
    alpha, sigma = alpha_sigma64(LOGSNR)
    z = process.q_sample(jnp.float32(x), jnp.float32(eps), jnp.float32(LOGSNR))
    np.testing.assert_allclose(z, alpha * x + sigma * eps, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", process.PARAMETERIZATIONS)
def test_every_parameterization_gives_the_one_prediction(kind, x64):
    x, eps = make()
    alpha, sigma = alpha_sigma64(LOGSNR)
    z = alpha * x + sigma * eps
    prediction = process.predict(outputs(x, eps)[kind], z, LOGSNR, kind)
    # x from eps divides float64's rounding by alpha = 4.5e-5, and eps from x by sigma.
    np.testing.assert_allclose(prediction.x, x, atol=1e-10)
    np.testing.assert_allclose(prediction.eps, eps, atol=1e-10)
    np.testing.assert_allclose(prediction.v, alpha * eps - sigma * x, atol=1e-10)


@pytest.mark.parametrize("kind", process.PARAMETERIZATIONS)
def test_views_of_a_wrong_prediction_agree_too(kind, x64):
    """The network may be wrong: z = alpha x + sigma eps and v = alpha eps - sigma x hold still."""
    z = jnp.asarray(make(1)[1])
    output = jnp.asarray(outputs(*make(2))[kind])
    alpha, sigma = alpha_sigma64(LOGSNR)
    p = process.predict(output, z, LOGSNR, kind)
    scale = np.maximum(1.0, np.abs(p.x))  # x from eps is as large as 1 / alpha
    np.testing.assert_allclose((alpha * p.x + sigma * p.eps - z) / scale, 0.0, atol=1e-9)
    np.testing.assert_allclose((alpha * p.eps - sigma * p.x - p.v) / scale, 0.0, atol=1e-9)


def test_both_merges_x_and_eps_as_the_paper_does(x64):
    z = make(1)[1]
    x_out, eps_out = make(2)
    alpha, sigma = alpha_sigma64(LOGSNR)
    p = process.from_both(np.concatenate([x_out, eps_out], -1), z, LOGSNR)
    x_from_eps = (z - sigma * eps_out) / alpha
    np.testing.assert_allclose(p.x, sigma**2 * x_out + alpha**2 * x_from_eps, atol=1e-10)


@pytest.mark.parametrize("kind", process.PARAMETERIZATIONS)
def test_float32_predictions_are_finite_at_both_ends(kind):
    x, eps = make()
    alpha, sigma = alpha_sigma64(LOGSNR)
    z = np.float32(alpha * x + sigma * eps)
    p = process.predict(np.float32(outputs(x, eps)[kind]), z, np.float32(LOGSNR), kind)
    for view in p:
        assert np.all(np.isfinite(view))


def test_clipping_derives_eps_and_v_anew(x64):
    z = make(1)[1]
    alpha, sigma = alpha_sigma64(LOGSNR)
    p = process.from_v(3.0 * make(2)[1], z, LOGSNR)
    assert np.abs(p.x).max() > 1
    clipped = process.clip_x(p, z, LOGSNR)
    x = np.clip(p.x, -1, 1)
    np.testing.assert_array_equal(clipped.x, x)
    np.testing.assert_allclose(clipped.eps, (z - alpha * x) / sigma, atol=1e-9)
    np.testing.assert_allclose(clipped.v, alpha * clipped.eps - sigma * x, atol=1e-9)


def posterior64(x, z_t, logsnr_s, logsnr_t):
    """Bayes: q(z_s | x) times q(z_t | z_s), both Gaussian in z_s; precisions add."""
    (alpha_s, sigma_s), (alpha_t, sigma_t) = alpha_sigma64(logsnr_s), alpha_sigma64(logsnr_t)
    alpha_ts = alpha_t / alpha_s
    variance_ts = sigma_t**2 - alpha_ts**2 * sigma_s**2
    precision = 1 / sigma_s**2 + alpha_ts**2 / variance_ts
    mean = (alpha_s * x / sigma_s**2 + alpha_ts * z_t / variance_ts) / precision
    return mean, 1 / precision, variance_ts


@pytest.mark.parametrize("num_steps", [1, 2, 16, 1024])
def test_posterior_is_bayes_rule(num_steps, x64):
    i = np.linspace(1, num_steps, len(LOGSNR)).round()
    logsnr_t = np.asarray(cosine_logsnr(jnp.asarray(i / num_steps)))
    logsnr_s = np.asarray(cosine_logsnr(jnp.asarray((i - 1) / num_steps)))
    x, z_t = make()
    mean, small, large = posterior64(x, z_t, logsnr_s, logsnr_t)
    for coefficient in (0.0, 0.3, 1.0):
        got_mean, got_std = process.q_posterior(x, z_t, logsnr_s, logsnr_t, coefficient)
        np.testing.assert_allclose(got_mean, mean, rtol=1e-6, atol=1e-8)
        interpolated = np.exp((1 - coefficient) * np.log(small) + coefficient * np.log(large))
        np.testing.assert_allclose(got_std**2, interpolated, rtol=1e-5)


def test_unknown_parameterization_and_wrong_channels_are_refused():
    z = jnp.zeros((2, 4, 4, 3))
    with pytest.raises(ValueError, match="'score' is not one of x, eps, v, both"):
        process.predict(z, z, jnp.zeros(2), "score")
    with pytest.raises(ValueError, match="gives 6 channels"):
        process.predict(z, z, jnp.zeros(2), "both")
    with pytest.raises(ValueError, match="gives 3 channels"):
        process.predict(jnp.zeros((2, 4, 4, 6)), z, jnp.zeros(2), "x")


def test_a_single_logsnr_serves_the_batch():
    x, eps = make()
    one = process.q_sample(jnp.float32(x), jnp.float32(eps), jnp.float32(1.5))
    each = process.q_sample(jnp.float32(x), jnp.float32(eps), jnp.full(len(x), 1.5))
    np.testing.assert_array_equal(one, each)
    jax.tree.map(
        np.testing.assert_array_equal,
        process.from_x(one, one, jnp.float32(1.5)),
        process.from_x(one, one, jnp.full(len(x), 1.5)),
    )
