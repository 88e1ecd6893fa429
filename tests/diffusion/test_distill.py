"""The target of distillation, against the paper's own form and against the steps themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_distill.diffusion import samplers
from diffusion_distill.diffusion.distill import (
    TARGETS,
    distillation_target,
    first_step_weight,
    heun_target,
    tract_target,
)
from diffusion_distill.diffusion.process import from_v, from_x
from diffusion_distill.diffusion.schedule import alpha_sigma, cosine_logsnr
from tests.diffusion.test_samplers import MEAN, gaussian_denoiser, noise

NUM_STEPS = [1, 2, 3, 4, 16, 64, 512, 4096]


def teacher(z, logsnr):
    """Some denoiser: smooth, not linear, different at each logSNR."""
    column = jnp.reshape(logsnr, (-1,) + (1,) * (z.ndim - 1))
    return from_v(jnp.sin(3.0 * z + 0.3 * column) + 0.5 * jnp.cos(column), z, logsnr)


def example(num_steps, dtype):
    rng = np.random.default_rng(num_steps)
    i = np.linspace(1, num_steps, 7).round().astype(int)
    z = rng.normal(size=(len(i), 5)).astype(dtype)
    return jnp.asarray(z), jnp.asarray(i)


def ddim_step(z, t, s):
    logsnr_t = cosine_logsnr(t)
    alpha, sigma = (a[:, None] for a in alpha_sigma(cosine_logsnr(s)))
    prediction = teacher(z, logsnr_t)
    return alpha * prediction.x + sigma * prediction.eps


def two_teacher_steps(z, i, num_steps):
    t, m, s = (jnp.asarray((i - d) / num_steps, z.dtype) for d in (0.0, 0.5, 1.0))
    return ddim_step(ddim_step(z, t, m), m, s)


def papers_target(z, i, num_steps):
    """Algorithm 2 as printed: (z_s - (sigma_s / sigma_t) z_t) / (alpha_s - ... alpha_t)."""
    z_s = two_teacher_steps(z, i, num_steps)
    alpha_t, sigma_t = (a[:, None] for a in alpha_sigma(cosine_logsnr(i / num_steps)))
    alpha_s, sigma_s = (a[:, None] for a in alpha_sigma(cosine_logsnr((i - 1) / num_steps)))
    ratio = sigma_s / sigma_t
    return (z_s - ratio * z) / (alpha_s - ratio * alpha_t)


@pytest.mark.parametrize("num_steps", NUM_STEPS)
def test_equals_the_papers_form(num_steps, x64):
    z, i = example(num_steps, np.float64)
    target = distillation_target(teacher, z, i, num_steps, cosine_logsnr)
    # The paper's form loses about log10(num_steps) digits twice over, in float64 too.
    np.testing.assert_allclose(target, papers_target(z, i, num_steps), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("num_steps", NUM_STEPS)
def test_one_student_step_lands_where_two_teacher_steps_land(num_steps, x64):
    z, i = example(num_steps, np.float64)
    target = distillation_target(teacher, z, i, num_steps, cosine_logsnr)
    alpha_t, sigma_t = (a[:, None] for a in alpha_sigma(cosine_logsnr(i / num_steps)))
    alpha_s, sigma_s = (a[:, None] for a in alpha_sigma(cosine_logsnr((i - 1) / num_steps)))
    landed = alpha_s * target + sigma_s * (z - alpha_t * target) / sigma_t
    np.testing.assert_allclose(landed, two_teacher_steps(z, i, num_steps), rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("num_steps", [256, 1024, 4096])
def test_is_better_in_float32_than_the_papers_form(num_steps):
    z32, i = example(num_steps, np.float32)
    ours = distillation_target(teacher, z32, i, num_steps, cosine_logsnr)
    theirs = papers_target(z32, i.astype(jnp.float32), num_steps)
    with jax.enable_x64(True):
        z64 = jnp.asarray(np.asarray(z32, np.float64))
        truth = np.asarray(distillation_target(teacher, z64, i, num_steps, cosine_logsnr))
    our_error, their_error = (np.abs(np.asarray(a) - truth).max() for a in (ours, theirs))
    assert our_error < 1e-4
    assert our_error < 0.1 * their_error


@pytest.mark.parametrize("num_steps", NUM_STEPS)
def test_weight_on_the_cosine_schedule_in_closed_form(num_steps, x64):
    i = jnp.resize(jnp.arange(1.0, num_steps + 1), max(NUM_STEPS))  # one shape: compiled once
    s, m, t = (cosine_logsnr((i - d) / num_steps) for d in (1.0, 0.5, 0.0))
    sigma_s, sigma_t = alpha_sigma(s)[1], alpha_sigma(t)[1]
    w = first_step_weight(s, m, t)
    np.testing.assert_allclose(w, sigma_s / (sigma_s + sigma_t), rtol=1e-9)
    with_float32 = first_step_weight(*(jnp.asarray(a, jnp.float32) for a in (s, m, t)))
    assert with_float32.dtype == jnp.float32
    np.testing.assert_allclose(with_float32, w, rtol=2e-3)  # logSNR of 20 in float32, at 4096 steps


def test_weight_by_its_definition_on_another_schedule(x64):
    """w = sigma_s (alpha_m sigma_t - sigma_m alpha_t) / (sigma_m (alpha_s sigma_t - ...))."""
    s, m, t = np.array([4.0, 1.0, -2.0]), np.array([1.5, 0.8, -2.5]), np.array([-1.0, 0.5, -9.0])
    (a_s, s_s), (a_m, s_m), (a_t, s_t) = (alpha_sigma(jnp.asarray(x)) for x in (s, m, t))
    expected = s_s * (a_m * s_t - s_m * a_t) / (s_m * (a_s * s_t - s_s * a_t))
    np.testing.assert_allclose(first_step_weight(s, m, t), expected, rtol=1e-12)


def test_weight_falls_to_zero_with_sigma_s(x64):
    assert first_step_weight(jnp.float64(60.0), jnp.float64(2.0), jnp.float64(0.0)) < 1e-10


@pytest.mark.parametrize("num_steps", NUM_STEPS)
def test_one_student_step_lands_where_a_step_of_heun_lands(num_steps, x64):
    z, i = example(num_steps, np.float64)
    target = heun_target(teacher, z, i, num_steps, cosine_logsnr)
    alpha_t, sigma_t = (a[:, None] for a in alpha_sigma(cosine_logsnr(i / num_steps)))
    alpha_s, sigma_s = (a[:, None] for a in alpha_sigma(cosine_logsnr((i - 1) / num_steps)))
    landed = alpha_s * target + sigma_s * (z - alpha_t * target) / sigma_t
    for n in range(len(i)):
        state = samplers.SamplerState(z[n : n + 1], z[n : n + 1])
        expected = samplers.heun(teacher, state, i[n], num_steps, cosine_logsnr, None).z[0]
        got = target[n] if i[n] == 1 else landed[n]  # the last step returns x_hat
        np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("heun", 2)])
def test_a_perfect_students_chain_reaches_the_exact_flow_at_its_solvers_order(name, order, x64):
    """The student predicts the target; its N DDIM steps solve a Gaussian's flow."""
    std, z = 0.5, noise()
    alpha, sigma = alpha_sigma(jnp.float64(-20.0))
    exact = MEAN + std * (z - alpha * MEAN) / jnp.sqrt(alpha**2 * std**2 + sigma**2)

    @jax.jit
    def step(state, i, num_steps):
        def student(z, logsnr):
            every = jnp.full(len(z), i)
            x = TARGETS[name](gaussian_denoiser(std), z, every, num_steps, cosine_logsnr)
            return from_x(x, z, logsnr)

        return samplers.ddim(student, state, i, num_steps, cosine_logsnr, None)

    errors = []
    for num_steps in (128, 256, 512):
        state = samplers.SamplerState(z, z)
        for i in range(num_steps, 0, -1):
            state = step(state, jnp.int64(i), jnp.int64(num_steps))
        errors.append(np.abs(state.z - exact).max())
    np.testing.assert_allclose(np.diff(np.log2(errors)), -order, atol=0.1)


def flow_of_a_gaussian(std, z, t, s):
    """Where the probability flow takes z from t to s, and the x of one DDIM step to there."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = (alpha_sigma(cosine_logsnr(u)) for u in (t, s))
    spread_t, spread_s = (
        jnp.hypot(alpha * std, sigma) for alpha, sigma in ((alpha_t, sigma_t), (alpha_s, sigma_s))
    )
    z_s = alpha_s * MEAN + spread_s / spread_t * (z - alpha_t * MEAN)
    ratio = sigma_s / sigma_t
    return z_s, (z_s - ratio * z) / (alpha_s - ratio * alpha_t)


@pytest.mark.parametrize("i", [1, 2, 8, 9, 15, 16, 33, 64])
def test_of_a_perfect_teacher_and_average_tract_makes_the_flow_to_the_segments_end(i, x64):
    """So that is a fixed point: 64 steps into 8, and i at, next to and between segments' ends."""
    std, z = 0.5, noise()
    t, s, end = (jnp.float64(j / 64) for j in (i, i - 1, (i - 1) // 8 * 8))

    def going(start, stop):
        return lambda z, logsnr: from_x(flow_of_a_gaussian(std, z, start, stop)[1], z, logsnr)

    def nowhere(z, logsnr):  # it is not asked for anything where s is the end
        return from_x(jnp.full_like(z, 1e3), z, logsnr)

    average = going(s, end) if s > end else nowhere
    every = jnp.full(len(z), i)
    target = tract_target(going(t, s), average, z, every, (64, 8), cosine_logsnr)
    _, exact = flow_of_a_gaussian(std, z, t, end)
    np.testing.assert_allclose(target, exact, rtol=1e-8)


def test_tract_of_half_the_steps_is_halving_where_the_student_is_its_teacher(x64):
    z, i = example(64, np.float64)
    halving = distillation_target(teacher, z, i, 64, cosine_logsnr)
    tract = tract_target(teacher, teacher, z, 2 * i, (128, 64), cosine_logsnr)
    np.testing.assert_allclose(tract, halving, rtol=1e-10)


@pytest.mark.parametrize("target", TARGETS.values())
def test_no_gradient_flows_through_the_target(target):
    z, i = example(4, np.float32)

    def total(scale):
        def scaled(z, logsnr):
            return from_v(scale * z, z, logsnr)

        return target(scaled, z, i, 4, cosine_logsnr).sum()

    assert jax.grad(total)(0.7) == 0.0
