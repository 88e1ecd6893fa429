"""The train step: a function (state, teacher_params, batch, key, round) -> (state, metrics).

The teacher is an argument, and what differs between rounds of distillation is traced scalars, so
that one compilation serves all of them.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax
from jax.sharding import Mesh

from diffusion_distill.data.batches import Batch, gather, to_network
from diffusion_distill.diffusion.distill import distillation_target
from diffusion_distill.diffusion.losses import WEIGHTINGS
from diffusion_distill.diffusion.process import from_x, q_sample
from diffusion_distill.models.build import make_denoiser, make_schedule
from diffusion_distill.models.unet import UNet
from diffusion_distill.training.sharding import batched, replicated
from diffusion_distill.training.stages import Stage
from diffusion_distill.training.state import TrainState


class Round(NamedTuple):
    """What tells one round of distillation from another, as int32 scalars to be traced.

    Attributes:
        num_steps: the student's sampling steps.
        updates: how many the stage makes in all, for its learning-rate schedule.
    """

    num_steps: jax.Array
    updates: jax.Array


def make_optimizer(config: ml_collections.ConfigDict, stage: Stage):
    """Clipping by the global norm, Adam, decoupled weight decay; not yet times -learning rate.

    The gradient that is clipped is that of the mean over the global batch.
    """
    train = config.train
    return optax.chain(
        optax.clip_by_global_norm(train.grad_clip_norm)
        if train.grad_clip_norm
        else optax.identity(),
        optax.scale_by_adam(b1=train.adam_b1, b2=train.adam_b2, eps=train.adam_eps),
        optax.add_decayed_weights(stage.weight_decay) if stage.weight_decay else optax.identity(),
    )


def learning_rate(
    step: jax.Array, updates: jax.Array, peak: float, warmup: int, lr_schedule: str
) -> jax.Array:
    """The learning rate of the update after `step` others, out of `updates`.

    A linear rise over `warmup` updates, times 1 ("constant") or 1 - step / updates ("linear").
    A function of the step alone: a resumed stage has the learning rate it would have had.
    """
    rise = jnp.minimum(1.0, (step + 1) / max(warmup, 1))
    fall = 1.0 - step / updates if lr_schedule == "linear" else 1.0
    return peak * rise * fall


def make_train_step(model: UNet, config: ml_collections.ConfigDict, stage: Stage) -> Callable:
    """The step of a stage: algorithm 1 of the paper for the teacher, algorithm 2 for a student.

    Args:
        model: the network, with the stage's dropout.
        config: the run's config.
        stage: used for what all rounds share; what they do not comes in as `round`.

    Returns:
        step(state, teacher_params, batch, key, round) -> (state, metrics), a pure function.
        teacher_params is None for the teacher itself. Metrics are float32 scalars: loss,
        grad_norm (before clipping), update_norm (of the change in weights), learning_rate, and
        loss_q1 to loss_q4, the loss over the examples with t in each quarter of [0, 1] (NaN where
        the batch has none there).
    """
    schedule = make_schedule(config)
    weighting = WEIGHTINGS[config.diffusion.weighting]
    optimizer = make_optimizer(config, stage)

    def times(key, batch_size, num_steps):
        """t for each example; for a student also i with t = i / num_steps."""
        if stage.teacher is None:
            return jax.random.uniform(key, (batch_size,)), None
        i = jax.random.randint(key, (batch_size,), 1, num_steps + 1)
        return i / num_steps, i

    def losses(params, teacher_params, batch, key, round):
        """The loss of each example, and its t."""
        flip_key, time_key, eps_key, dropout_key = jax.random.split(key, 4)
        x = to_network(batch.images, flip_key, config.data.random_flip)
        t, i = times(time_key, x.shape[0], round.num_steps)
        logsnr = schedule(t)
        z = q_sample(x, jax.random.normal(eps_key, x.shape), logsnr)
        if teacher_params is not None:
            teacher = make_denoiser(model, teacher_params, batch.labels, config)
            x = distillation_target(teacher, z, i, round.num_steps, schedule)
        denoiser = make_denoiser(
            model, params, batch.labels, config, dropout_key if stage.dropout else None
        )
        return weighting(from_x(x, z, logsnr), denoiser(z, logsnr)), t

    def step(state: TrainState, teacher_params, batch: Batch, key: jax.Array, round: Round):
        key = jax.random.fold_in(key, state.step)

        def mean_loss(params):
            loss, t = losses(params, teacher_params, batch, key, round)
            return loss.mean(), (loss, t)

        (loss, (each, t)), grads = jax.value_and_grad(mean_loss, has_aux=True)(state.params)
        rate = learning_rate(
            state.step, round.updates, stage.learning_rate, stage.warmup, stage.lr_schedule
        )
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = jax.tree.map(lambda p, u: p - rate * u, state.params, updates)
        decay = stage.ema_decay
        ema_params = jax.tree.map(
            lambda e, p: decay * e + (1.0 - decay) * p, state.ema_params, params
        )
        metrics = {
            "loss": loss,
            "grad_norm": optax.tree.norm(grads),
            "update_norm": rate * optax.tree.norm(updates),
            "learning_rate": rate,
            **loss_by_quarter(each, t),
        }
        return TrainState(state.step + 1, params, ema_params, opt_state), metrics

    return step


def loss_by_quarter(loss: jax.Array, t: jax.Array) -> dict[str, jax.Array]:
    """Mean loss over the examples whose t lies in each quarter of [0, 1]; t = 1 is in the last.

    Args:
        loss, t: [B].

    Returns:
        loss_q1 to loss_q4; NaN, "no value", for a quarter without an example.
    """
    quarter = jnp.minimum(jnp.floor(t * 4.0), 3.0)
    result = {}
    for q in range(4):
        inside = quarter == q
        result[f"loss_q{q + 1}"] = jnp.sum(jnp.where(inside, loss, 0.0)) / jnp.sum(inside)
    return result


def make_update(
    model: UNet, config: ml_collections.ConfigDict, stage: Stage, mesh: Mesh
) -> Callable:
    """The compiled step.

    Returns:
        update(state, teacher_params, data, rows, key, round) -> (state, metrics), which makes one
        update for each row, and returns metrics of shape [K]. `data` is a resident data set and
        rows are int32 indices [K, B] into it; or `data` is None and rows are a Batch with a
        leading axis K (training/feed.py). The state is donated. Where K is 1 there is no loop in
        the program: XLA on CPU runs convolutions inside one about 20 times slower.
    """
    step = make_train_step(model, config, stage)

    def update(state, teacher_params, data, rows, key, round):
        def one(state, row):
            batch = row if data is None else gather(data, row)
            batch = jax.lax.with_sharding_constraint(batch, batched(mesh))
            return step(state, teacher_params, batch, key, round)

        if jax.tree.leaves(rows)[0].shape[0] == 1:
            state, metrics = one(state, jax.tree.map(lambda r: r[0], rows))
            return state, jax.tree.map(lambda m: m[None], metrics)
        return jax.lax.scan(one, state, rows)

    whole, rows = replicated(mesh), batched(mesh, leading=1)
    return jax.jit(
        update,
        in_shardings=(whole, whole, whole, rows, whole, whole),
        out_shardings=whole,
        donate_argnums=0,
    )
