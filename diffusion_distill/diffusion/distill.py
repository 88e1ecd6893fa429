"""Targets of progressive distillation: what takes a student in one step where its teacher goes.

Those of TARGETS have one signature: target(teacher, z_t, i, num_steps, logsnr_fn) -> x [B, ...].
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from diffusion_distill.diffusion.process import Denoiser, alpha_sigma_like
from diffusion_distill.diffusion.schedule import angle


def first_step_weight(logsnr_s: jax.Array, logsnr_m: jax.Array, logsnr_t: jax.Array) -> jax.Array:
    """The share w of the teacher's first prediction in the student's target, for s < m < t.

    The teacher goes t -> m -> s by DDIM, predicting x1 at t and x2 at m. A DDIM step to s with a
    prediction x made at t is, with eps = (z_t - alpha_t x) / sigma_t,

        z_s = (sigma_s / sigma_t) z_t + (alpha_s - (sigma_s / sigma_t) alpha_t) x
            = (sigma_s / sigma_t) z_t + sigma_s (R_s - R_t) x,        R = alpha / sigma.

    Two steps chain to

        z_s = (sigma_s / sigma_t) z_t + sigma_s (R_m - R_t) x1 + sigma_s (R_s - R_m) x2,

    and one step with x_target gives the same z_s when

        x_target = w x1 + (1 - w) x2,        w = (R_m - R_t) / (R_s - R_t).

    This is the paper's x_target = (z_s - (sigma_s / sigma_t) z_t) / (alpha_s - (sigma_s / sigma_t)
    alpha_t) (algorithm 2) with the differences of nearly equal images done on paper: there they
    leave rounding errors times the number of steps, here w only mixes two images. The differences
    of R are written with expm1, R = exp(logSNR / 2):

        w = exp((l_m - l_s) / 2) expm1((l_t - l_m) / 2) / expm1((l_t - l_s) / 2).

    In float32 at 4096 steps this has an error of at most 5e-4, the rounding of logSNR itself over
    1 / 4096; in the target it counts times x1 - x2, which is as small as a step.

    It holds for any schedule. On the cosine schedule with m half-way it is
    sigma_s / (sigma_s + sigma_t).

    Args:
        logsnr_s, logsnr_m, logsnr_t: logSNR in nats at the three times, logsnr_s the largest.

    Returns:
        w in (0, 1), of the arguments' shape. It falls to 0, target x2, as sigma_s falls to 0.
    """
    ratio = jnp.expm1(0.5 * (logsnr_t - logsnr_m)) / jnp.expm1(0.5 * (logsnr_t - logsnr_s))
    return jnp.exp(0.5 * (logsnr_m - logsnr_s)) * ratio


def distillation_target(
    teacher: Denoiser,
    z_t: jax.Array,
    i: jax.Array,
    num_steps: jax.Array,
    logsnr_fn: Callable[[jax.Array], jax.Array],
) -> jax.Array:
    """The x that takes a student of num_steps steps where two steps of its teacher go.

    With t = i / num_steps the teacher steps t -> t - 1 / (2 num_steps) -> t - 1 / num_steps
    (algorithm 2 of Salimans & Ho 2022; the target as a weighted average: `first_step_weight`).
    As in the paper, the last step (i = 1) is no special case: its target lands on z_0, where the
    cut schedule leaves sigma_0 = 4.5e-5 and not 0.

    Args:
        teacher: its denoiser. Not clipped: clipping belongs to sampling.
        z_t: noisy images at time i / num_steps, [B, ...].
        i: integers in 1..num_steps, [B].
        num_steps: the student's number of steps, a scalar; may be traced.
        logsnr_fn: the schedule, from time in [0, 1] to logSNR.

    Returns:
        x_target, [B, ...]. No gradient flows through it.
    """
    i = i.astype(jnp.promote_types(z_t.dtype, jnp.float32))  # bfloat16 counts to 256 only
    logsnr_t = logsnr_fn(i / num_steps)
    logsnr_m = logsnr_fn((i - 0.5) / num_steps)
    logsnr_s = logsnr_fn((i - 1.0) / num_steps)
    return _two_as_one(teacher, teacher, z_t, (logsnr_s, logsnr_m, logsnr_t))


def _two_as_one(
    first: Denoiser, second: Denoiser, z_t: jax.Array, logsnrs: tuple[jax.Array, ...]
) -> jax.Array:
    """The x that goes in one DDIM step from t to s where `first` goes to m and `second` from m on.

    logsnrs: at s, m and t, [B] each, as for `first_step_weight`.
    """
    _, logsnr_m, logsnr_t = logsnrs
    one = first(z_t, logsnr_t)
    alpha_m, sigma_m = alpha_sigma_like(logsnr_m, z_t)
    z_m = alpha_m * one.x + sigma_m * one.eps
    two = second(z_m, logsnr_m)
    w = first_step_weight(*logsnrs)
    w = w.reshape(w.shape + (1,) * (z_t.ndim - w.ndim))
    return jax.lax.stop_gradient(w * one.x + (1.0 - w) * two.x)


def tract_target(
    teacher: Denoiser,
    average: Denoiser,
    z_t: jax.Array,
    i: jax.Array,
    steps: tuple[jax.Array, jax.Array],
    logsnr_fn: Callable[[jax.Array], jax.Array],
) -> jax.Array:
    """The x that takes a student from t to the end of its segment (TRACT; Berthelot et al. 2023).

    A teacher of M steps is distilled into a student of N at once. The student's N steps are
    segments of time, each of M / N steps of the teacher. From t = i / M, anywhere in a segment, the
    teacher makes one DDIM step to (i - 1) / M, and from there the student's own running average
    jumps to the segment's end; where the teacher's step ends the segment there is nothing to jump.

    Args:
        teacher: its denoiser, asked at t.
        average: the student's denoiser with its averaged weights.
        z_t: noisy images at time i / M, [B, ...].
        i: integers in 1..M, [B].
        steps: (M, N), scalars, M a multiple of N; may be traced.
        logsnr_fn: the schedule, from time in [0, 1] to logSNR.

    Returns:
        x_target, [B, ...]. No gradient flows through it.
    """
    teacher_steps, num_steps = steps
    each = teacher_steps // num_steps
    end = (i - 1) // each * each
    dtype = jnp.promote_types(z_t.dtype, jnp.float32)  # bfloat16 counts to 256 only
    times = (j.astype(dtype) / teacher_steps for j in (end, i - 1, i))
    return _two_as_one(teacher, average, z_t, tuple(logsnr_fn(t) for t in times))


def heun_target(
    teacher: Denoiser,
    z_t: jax.Array,
    i: jax.Array,
    num_steps: jax.Array,
    logsnr_fn: Callable[[jax.Array], jax.Array],
) -> jax.Array:
    """The x that takes a student of num_steps steps where one step of Heun's method goes.

    That is a step of the sampler `heun`, of second order where the two DDIM steps of
    `distillation_target` are of first, with as many evaluations. It asks the teacher about times
    that are no step of a student, so it is for a teacher that knows all times. With x1 and v_ddim
    the prediction at t as x and as v turned to s, v2 the prediction as v where DDIM arrives at s,
    and delta = phi_t - phi_s the step's length, the sampler's

        z_s = z_ddim - delta / 2 (v2 - v_ddim)

    is one DDIM step, cos(delta) z_t - sin(delta) v, with

        v = v1 + delta / (2 sin(delta)) (v2 - v_ddim),   x_target = alpha_t z_t - sigma_t v
          = x1 - sigma_t delta / (2 sin(delta)) (v2 - v_ddim).

    As in the sampler, the last step (i = 1) is DDIM's alone: its target is x1.

    Args, Returns: see `distillation_target`.
    """
    i = i.astype(jnp.promote_types(z_t.dtype, jnp.float32))  # bfloat16 counts to 256 only
    logsnr_t, logsnr_s = logsnr_fn(i / num_steps), logsnr_fn((i - 1.0) / num_steps)
    first = teacher(z_t, logsnr_t)
    alpha_s, sigma_s = alpha_sigma_like(logsnr_s, z_t)
    z_ddim = alpha_s * first.x + sigma_s * first.eps
    v_ddim = alpha_s * first.eps - sigma_s * first.x
    change = teacher(z_ddim, logsnr_s).v - v_ddim
    delta = angle(logsnr_t) - angle(logsnr_s)
    gain = jnp.where(i == 1, 0.0, delta / (2.0 * jnp.sin(delta)))
    _, sigma_t = alpha_sigma_like(logsnr_t, z_t)
    gain = sigma_t * gain.reshape(gain.shape + (1,) * (z_t.ndim - gain.ndim))
    return jax.lax.stop_gradient(first.x - gain * change)


# By `distill.first_round_solver`: what solves the teacher's flow over a student's step.
TARGETS: dict[str, Callable[..., jax.Array]] = {"ddim": distillation_target, "heun": heun_target}
