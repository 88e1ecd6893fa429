"""The train step: a function (state, teacher_params, batch, key, this_round) -> (state, metrics).

Algorithm 1 of Salimans & Ho 2022 for the teacher, algorithm 2 for a student: `draw` what an update
needs, the `gradient` of the `loss`, and `apply` it. The teacher is an argument, and what differs
between rounds of distillation is traced scalars, so that one compilation serves all of them (a
first round by Heun's method has its own).
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from diffusion_distill.data.batches import Batch, to_network
from diffusion_distill.diffusion.distill import TARGETS, tract_target
from diffusion_distill.diffusion.losses import WEIGHTINGS
from diffusion_distill.diffusion.match import match_target
from diffusion_distill.diffusion.process import from_x, q_sample
from diffusion_distill.models.build import (
    make_denoiser,
    make_schedule,
    ready_weights,
    with_and_without_labels,
)
from diffusion_distill.models.unet import NO_LABEL, UNet
from diffusion_distill.stages import Stage
from diffusion_distill.training.optimizer import global_norm, learning_rate, make_optimizer
from diffusion_distill.training.state import TrainState


class Round(NamedTuple):
    """What tells one round of distillation from another, as int32 scalars to be traced."""

    num_steps: jax.Array  # the student's sampling steps
    updates: jax.Array  # how many the stage makes in all, for its learning-rate schedule
    divides_by: jax.Array | None = None  # the teacher's steps over the student's, for TRACT

    @classmethod
    def of(cls, stage: Stage) -> "Round":
        """That of a stage."""
        divides_by = np.int32(stage.divides_by) if stage.solver == "tract" else None
        return cls(np.int32(stage.num_steps), np.int32(stage.updates), divides_by)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What a stage's step is made of."""

    model: UNet  # the network, with the stage's dropout
    config: ConfigDict  # the run's, with the model and diffusion of this network
    stage: Stage  # used for what all rounds share; what they do not comes in as `this_round`
    mesh: Mesh | None = None  # the devices; None where nothing is split over any
    # of a match stage, the network that it learns from, and its config; in a round they are as here
    source_model: UNet | None = None
    source_config: ConfigDict | None = None


class Examples(NamedTuple):
    """The examples of one update and all that is drawn for them, each with a leading axis B."""

    x: jax.Array  # images in [-1, 1], [B, H, W, C]
    labels: jax.Array  # [B]; NO_LABEL where it is left out
    eps: jax.Array  # noise, of x's shape
    t: jax.Array  # times, [B]
    # in a round, t = i / num_steps, or for TRACT over the teacher's; None where t is continuous
    i: jax.Array | None
    dropout_keys: jax.Array | None  # [B]; None without dropout
    guidance: jax.Array | None  # w of each, [B]; None where the network is not told it


def train_step(
    recipe: Recipe,
    state: TrainState,
    teacher_params: dict | None,
    batch: Batch,
    key: jax.Array,
    this_round: Round,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update by the whole batch at once. A pure function.

    Args:
        teacher_params: averaged weights of the stage that it learns from; None for the teacher.
        key: of the stage's randomness; the state's step is folded in.

    Returns:
        The state after it, and metrics, float32 []: loss, grad_norm (before clipping), update_norm
        (of the change in weights), learning_rate, and those of `loss_by_quarter`.
    """
    examples = draw(recipe, state.step, batch, key, this_round)
    taught_by = target_weights(recipe, state, teacher_params)
    grads, losses = gradient(recipe, state.params, taught_by, examples, this_round)
    return apply(recipe, state, grads, losses, examples.t, this_round)


def target_weights(recipe: Recipe, state: TrainState, teacher_params: dict | None):
    """The weights that a target is made with: the teacher's; for TRACT (teacher's, average)."""
    is_tract = recipe.stage.solver == "tract"
    return (teacher_params, state.ema_params) if is_tract else teacher_params


def draw(
    recipe: Recipe, step: jax.Array, batch: Batch, key: jax.Array, this_round: Round
) -> Examples:
    """The examples of an update; `step` counts the stage's updates before it.

    Times are uniform in [0, 1] for the teacher and the match stage, uniform over 1/N, 2/N, ..., 1
    for a student of N steps, for TRACT over its teacher's. The teacher's labels are left out with
    probability teacher.label_dropout; w is uniform over the network's range.
    """
    keys = jax.random.split(jax.random.fold_in(key, step), 6)  # the first four are those of four
    flip_key, time_key, eps_key, dropout_key, label_key, guidance_key = keys
    x = to_network(batch.images, flip_key, recipe.config.data.random_flip)
    size = x.shape[0]
    if recipe.stage.knows_all_times:
        t, i = jax.random.uniform(time_key, (size,)), None
    else:
        grid = this_round.num_steps
        if recipe.stage.solver == "tract":
            grid *= this_round.divides_by
        i = jax.random.randint(time_key, (size,), 1, grid + 1)
        t = i / grid
    eps = jax.random.normal(eps_key, x.shape)
    dropout_keys = jax.random.split(dropout_key, size) if recipe.stage.dropout else None
    labels, guidance, share = batch.labels, None, recipe.config.teacher.label_dropout
    if share and not recipe.stage.has_teacher:
        left_out = jax.random.bernoulli(label_key, share, (size,))
        labels = jnp.where(left_out, NO_LABEL, labels)
    if recipe.model.told_guidance:
        low, high = recipe.config.model.guidance
        guidance = jax.random.uniform(guidance_key, (size,), minval=low, maxval=high)
    return Examples(x, labels, eps, t, i, dropout_keys, guidance)


def loss(
    recipe: Recipe, params: dict, taught_by, examples: Examples, this_round: Round
) -> tuple[jax.Array, jax.Array]:
    """(mean loss of the examples, their losses [B]): the weighted error in x.

    The target is the image itself for the teacher, and `target` for whoever learns from another.

    Args:
        taught_by: of `target_weights`.
    """
    config = recipe.config
    logsnr = make_schedule(config)(examples.t)
    z = q_sample(examples.x, examples.eps, logsnr)
    x = examples.x
    if taught_by is not None:
        x = target(recipe, taught_by, examples, z, logsnr, this_round)
    params = ready_weights(params, config.model.dtype, recipe.mesh)
    bound = params, examples.labels, config, examples.dropout_keys
    denoiser = make_denoiser(recipe.model, *bound, examples.guidance)
    weighting = WEIGHTINGS[config.diffusion.weighting]
    losses = weighting(from_x(x, z, logsnr), denoiser(z, logsnr))
    return losses.mean(), losses


def target(
    recipe: Recipe,
    taught_by,
    examples: Examples,
    z: jax.Array,
    logsnr: jax.Array,
    this_round: Round,
) -> jax.Array:
    """The x that a student learns for z [B, H, W, C]: of TARGETS in a round, or `match_target`.

    In a round the teacher is told w as the student is: what was guided once is not guided again.
    """
    labels, w, num_steps = examples.labels, examples.guidance, this_round.num_steps
    if not recipe.stage.is_match:
        schedule = make_schedule(recipe.config)

        def known_to(params):
            params = ready_weights(params, recipe.config.model.dtype, recipe.mesh)
            return make_denoiser(recipe.model, params, labels, recipe.config, guidance=w)

        if recipe.stage.solver == "tract":
            steps = num_steps * this_round.divides_by, num_steps
            return tract_target(*map(known_to, taught_by), z, examples.i, steps, schedule)
        distilled = TARGETS[recipe.stage.solver]
        return distilled(known_to(taught_by), z, examples.i, num_steps, schedule)
    params = ready_weights(taught_by, recipe.source_config.model.dtype, recipe.mesh)
    bound = recipe.source_model, params, labels, recipe.source_config
    if w is None:
        return match_target(examples.x, make_denoiser(*bound)(z, logsnr).x, logsnr)
    known, without = with_and_without_labels(*bound)(z, logsnr)
    return match_target(examples.x, known.x, logsnr, without.x, w)


def gradient(
    recipe: Recipe, params: dict, taught_by, examples: Examples, this_round: Round
) -> tuple[dict, jax.Array]:
    """(gradient of the mean loss by params, losses [B]); see `loss`."""
    of = functools.partial(loss, recipe)
    return jax.grad(of, has_aux=True)(params, taught_by, examples, this_round)


def apply(
    recipe: Recipe,
    state: TrainState,
    grads: dict,
    losses: jax.Array,
    t: jax.Array,
    this_round: Round,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """(the state after the update that a gradient makes, its metrics); see `train_step`."""
    stage = recipe.stage
    optimizer = make_optimizer(recipe.config, stage)
    rate = learning_rate(
        state.step, this_round.updates, stage.learning_rate, stage.warmup, stage.lr_schedule
    )
    change, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = jax.tree.map(lambda p, c: p - rate * c, state.params, change)
    # decay * ema_params + (1 - decay) * params: in this order it is rounded as it always was.
    ema_params = optax.incremental_update(state.ema_params, params, stage.ema_decay)
    metrics = {
        "loss": losses.mean(),
        "grad_norm": global_norm(grads),
        "update_norm": rate * global_norm(change),
        "learning_rate": rate,
        **loss_by_quarter(losses, t),
    }
    return TrainState(state.step + 1, params, ema_params, opt_state), metrics


def loss_by_quarter(losses: jax.Array, t: jax.Array) -> dict[str, jax.Array]:
    """loss_q1 to loss_q4, the mean of losses [B] with t [B] in each quarter of [0, 1]; examples_q1
    to examples_q4, how many there are.

    t = 1 is in the last. The mean of none is 0: NaN would end a run under JAX_DEBUG_NANS.
    """
    quarter = jnp.minimum(jnp.floor(t * 4.0), 3.0)
    result = {}
    for q in range(4):
        inside = quarter == q
        count = jnp.sum(inside)
        total = jnp.sum(jnp.where(inside, losses, 0.0))
        result[f"loss_q{q + 1}"] = total / jnp.maximum(count, 1)
        result[f"examples_q{q + 1}"] = count
    return result
