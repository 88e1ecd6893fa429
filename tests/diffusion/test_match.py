"""The matched target and guidance, against closed forms in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_distill.diffusion.match import guide, guided, match_target
from diffusion_distill.diffusion.process import from_eps, from_v, from_x, q_sample
from diffusion_distill.diffusion.samplers import SAMPLERS, sample
from diffusion_distill.diffusion.schedule import cosine_logsnr

pytestmark = pytest.mark.usefixtures("x64")
MEAN, STD = 0.3, 0.2  # of the Gaussian that images are drawn from
STEPS = 128


def exact(z, logsnr):
    """E[x | z] for x ~ N(MEAN, STD^2), by Bayes' rule."""
    alpha, sigma = (1 / jnp.sqrt(1 + jnp.exp(sign * logsnr)) for sign in (-1, 1))
    gain = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
    return MEAN + gain * (z - alpha * MEAN)


def test_guidance_is_the_same_in_every_view():
    rng = np.random.default_rng(0)
    z, a, b = rng.normal(size=(3, 4, 6, 6, 3))
    w, logsnr = np.array([0.0, 0.5, 1.0, 4.0]), np.array([8.0, 1.0, -1.0, -8.0])
    by_x = guided(from_x(a, z, logsnr), from_x(b, z, logsnr), w)
    column = w[:, None, None, None]
    np.testing.assert_allclose(by_x.x, (1 + column) * a - column * b, rtol=1e-12)
    for form, view in ((from_eps, "eps"), (from_v, "v")):
        views = (getattr(from_x(image, z, logsnr), view) for image in (a, b))
        again = form(guide(*views, w), z, logsnr)
        np.testing.assert_allclose(again.x, by_x.x, rtol=1e-7, atol=1e-7)
    np.testing.assert_array_equal(guide(a, b, w)[0], a[0])


def test_a_student_matched_to_the_exact_denoiser_of_a_gaussian_samples_it():
    """At each time the student is the affine map that fits the targets best in squared error."""
    rng, fits = np.random.default_rng(1), {}
    logsnrs = [float(cosine_logsnr(jnp.float64(i / STEPS), -20.0, 20.0)) for i in range(STEPS + 1)]
    for logsnr in logsnrs:
        x = rng.normal(MEAN, STD, 40_000)
        z = np.asarray(q_sample(x, rng.normal(size=x.size), jnp.float64(logsnr)))
        target = match_target(x, exact(z, logsnr), jnp.float64(logsnr))
        fits[logsnr] = np.polyfit(z, target, 1)
        expected = np.polyfit(z, exact(z, logsnr), 1)
        np.testing.assert_allclose(fits[logsnr], expected, atol=0.006)  # five times STD / 200

    slopes, offsets = (jnp.array([fits[value][k] for value in logsnrs]) for k in (0, 1))

    def student(z, logsnr):
        nearest = jnp.argmin(jnp.abs(jnp.array(logsnrs) - logsnr[0]))
        return from_x(slopes[nearest] * z + offsets[nearest], z, logsnr)

    def source(z, logsnr):
        return from_x(exact(z, logsnr[0]), z, logsnr)

    noise = jnp.asarray(rng.normal(size=(1, 40_000)))
    ddim = SAMPLERS["ddim"], noise, STEPS, lambda t: cosine_logsnr(t, -20.0, 20.0), None
    images, expected = (sample(ddim[0], denoiser, *ddim[1:]) for denoiser in (student, source))
    np.testing.assert_allclose(images, expected, atol=0.02)
    np.testing.assert_allclose([images.mean(), images.std()], [MEAN, STD], atol=0.006)  # DDIM's


def test_the_error_of_a_source_that_predicts_noise_stays_bounded():
    """An error e in eps is (sigma / alpha) e in x_hat, and alpha sigma e in the target."""
    x, error = np.zeros((3, 2, 2, 1)), 0.1
    logsnr = np.array([20.0, 0.0, -20.0])
    sigma_over_alpha = np.exp(-logsnr / 2)[:, None, None, None]
    target = match_target(x, x + sigma_over_alpha * error, logsnr)
    assert np.abs(target).max() <= error / 2 + 1e-12
    np.testing.assert_allclose(target[1], error / 2, rtol=1e-12)


def test_what_guidance_adds_is_kept_and_the_whole_is_clipped():
    x, known, without = (np.full((2, 1), value) for value in (0.5, 0.4, 0.3))
    w, logsnr = np.array([2.0, 9.0]), np.array([0.0, -20.0])
    target = match_target(x, known, logsnr, without, w)
    np.testing.assert_allclose(target[:, 0], [0.45 + 0.2, 1.0], rtol=1e-9)
    unguided = match_target(x, known, logsnr)
    np.testing.assert_array_equal(match_target(x, known, logsnr, without, 0 * w), unguided)


def test_no_gradient_flows_through_the_target():
    def mean(source):
        return match_target(jnp.ones((2, 3)), source, jnp.zeros(2)).mean()

    assert not jax.grad(mean)(jnp.ones((2, 3))).any()
