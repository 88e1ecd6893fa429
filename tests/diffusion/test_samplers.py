"""Samplers with denoisers that are known exactly."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_distill.diffusion import samplers
from diffusion_distill.diffusion.process import alpha_sigma_like, from_x
from diffusion_distill.diffusion.samplers import SAMPLERS, SamplerState, sample
from diffusion_distill.diffusion.schedule import alpha_sigma, cosine_logsnr

DETERMINISTIC = ["ddim", "dpmpp_2m", "heun"]
MEAN = 0.4


def gaussian_denoiser(std):
    """The perfect denoiser of data drawn from N(MEAN, std^2): E[x | z]."""

    def denoiser(z, logsnr):
        alpha, sigma = alpha_sigma_like(logsnr, z)
        gain = alpha * std**2 / (alpha**2 * std**2 + sigma**2)
        return from_x(MEAN + gain * (z - alpha * MEAN), z, logsnr)

    return denoiser


@functools.partial(jax.jit, static_argnames=("name", "std"))  # one program for all num_steps
def run(name, std, num_steps, z, key=0):
    keys = samplers.image_keys(key, jnp.arange(len(z)))

    def noise_fn(i):
        return samplers.image_noise(keys, i, z.shape[1:])

    return sample(SAMPLERS[name], gaussian_denoiser(std), z, num_steps, cosine_logsnr, noise_fn)


def noise(count=5, dtype=np.float64):
    return jnp.asarray(np.random.default_rng(0).normal(size=(count, 3)).astype(dtype))


@pytest.mark.parametrize("num_steps", [1, 2, 3, 8])
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_single_point_is_sampled_exactly(name, num_steps, x64):
    """Data that is one point: x_hat never moves, and every sampler is exact in any steps."""
    np.testing.assert_allclose(run(name, 0.0, num_steps, noise()), MEAN, rtol=1e-12)


@pytest.mark.parametrize("num_steps", [1, 2, 5, 32])
def test_ddim_of_a_gaussian_in_closed_form(num_steps, x64):
    """Each DDIM step is linear in z; here the whole chain in plain numpy."""
    std, z = 0.3, np.asarray(noise())
    for i in range(num_steps, 0, -1):
        (alpha, sigma), (alpha_s, sigma_s) = (
            [np.asarray(a) for a in alpha_sigma(cosine_logsnr(jnp.float64(j / num_steps)))]
            for j in (i, i - 1)
        )
        x = MEAN + alpha * std**2 / (alpha**2 * std**2 + sigma**2) * (z - alpha * MEAN)
        z = alpha_s * x + sigma_s * (z - alpha * x) / sigma if i > 1 else x
    np.testing.assert_allclose(run("ddim", std, num_steps, noise()), z, rtol=1e-10)


# How the error falls with the number of steps N. Uniform steps in t are steps of about 1 / i in
# lambda towards the end, which costs DPM-Solver++(2M), a method in lambda, a factor of log N.
CONVERGENCE = {
    "ddim": lambda n: 1 / n,
    "heun": lambda n: 1 / n**2,
    "dpmpp_2m": lambda n: np.log(n) / n**2,
}


@pytest.mark.parametrize("name", CONVERGENCE)
def test_reaches_the_exact_flow_at_its_order(name, x64):
    """The probability flow keeps (z_t - alpha_t MEAN) over its standard deviation."""
    std, z = 0.5, noise()
    alpha, sigma = alpha_sigma(jnp.float64(-20.0))
    exact = MEAN + std * (z - alpha * MEAN) / jnp.sqrt(alpha**2 * std**2 + sigma**2)
    steps = np.array([256, 512, 1024])
    errors = [np.abs(run(name, std, n, z) - exact).max() for n in steps]
    slopes = np.diff(np.log(errors)) / np.log(2.0)
    expected = np.diff(np.log(CONVERGENCE[name](steps))) / np.log(2.0)
    np.testing.assert_allclose(slopes, expected, atol=0.12)
    assert errors[-1] < 2e-3  # of images that span about 2


@pytest.mark.parametrize("variance", [0.0, 0.5, 1.0])
def test_ancestral_sampling_reaches_the_data_distribution(variance, x64):
    std, num_steps = 0.5, 400
    z = jax.random.normal(jax.random.key(1), (20_000, 1), jnp.float64)
    keys = samplers.image_keys(0, jnp.arange(len(z)))
    step = functools.partial(samplers.ancestral, variance=variance)

    def noise_fn(i):
        return samplers.image_noise(keys, i, (1,))

    x = sample(step, gaussian_denoiser(std), z, num_steps, cosine_logsnr, noise_fn)
    # Standard errors: 0.0035 of the mean, 0.0025 of the standard deviation.
    np.testing.assert_allclose(x.mean(), MEAN, atol=0.014)
    np.testing.assert_allclose(x.std(), std, atol=0.015)


@pytest.mark.parametrize("name", SAMPLERS)
def test_loop_inside_and_outside_are_one(name):
    z = noise(dtype=np.float32)
    keys = samplers.image_keys(3, jnp.arange(len(z)))
    traces = []

    @jax.jit
    def step(state, i, num_steps):
        traces.append(name)
        return SAMPLERS[name](
            gaussian_denoiser(0.3),
            state,
            i,
            num_steps,
            cosine_logsnr,
            lambda i: samplers.image_noise(keys, i, z.shape[1:]),
        )

    for num_steps in (1, 2, 7):
        state = SamplerState(z, jnp.zeros_like(z))
        for i in range(num_steps, 0, -1):
            state = step(state, jnp.int32(i), jnp.int32(num_steps))
        inside = run(name, 0.3, num_steps, z, key=3)
        np.testing.assert_allclose(state.z, inside, rtol=1e-4, atol=1e-5)
    assert len(traces) == 1  # every number of steps is the same program


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_last_step_returns_x_hat(name):
    """At t = 1 / N, one step: what comes back is the prediction and not z_0."""
    z = noise(dtype=np.float32)
    state = SAMPLERS[name](
        gaussian_denoiser(0.5), SamplerState(z, z), 1, 64, cosine_logsnr, jnp.zeros_like
    )
    x_hat = gaussian_denoiser(0.5)(z, jnp.full(len(z), cosine_logsnr(jnp.float32(1 / 64)))).x
    np.testing.assert_allclose(state.z, x_hat, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "cost"), [("ddim", 5), ("ancestral", 5), ("dpmpp_2m", 5), ("heun", 9)]
)
def test_network_evaluations(name, cost):
    count = 0

    def denoiser(z, logsnr):
        nonlocal count
        count += 1
        return gaussian_denoiser(0.5)(z, logsnr)

    z = noise(dtype=np.float32)
    with jax.disable_jit():
        sample(SAMPLERS[name], denoiser, z, 5, cosine_logsnr, lambda i: jnp.zeros_like(z))
    assert count == cost


def test_an_images_noise_is_its_own():
    """From (seed, index) alone: not from how many are drawn, nor from their order."""
    all_keys = samplers.image_keys(7, jnp.arange(10))
    some_keys = samplers.image_keys(7, jnp.array([8, 2]))
    for i in (0, 3):
        everything = samplers.image_noise(all_keys, i, (4, 4, 1))
        some = samplers.image_noise(some_keys, i, (4, 4, 1))
        np.testing.assert_array_equal(some, everything[jnp.array([8, 2])])
    start, later = (samplers.image_noise(all_keys, i, (4, 4, 1)) for i in (0, 3))
    other_seed = samplers.image_noise(samplers.image_keys(8, jnp.arange(10)), 0, (4, 4, 1))
    for other in (later, other_seed, start[::-1]):
        assert np.abs(np.corrcoef(start.ravel(), other.ravel())[0, 1]) < 0.3
    assert np.abs(start.mean()) < 0.3
    assert np.abs(start.std() - 1) < 0.3
