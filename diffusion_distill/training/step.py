"""The train step: a function (state, teacher_params, batch, key, round) -> (state, metrics).

The teacher is an argument, and what differs between rounds of distillation is traced scalars, so
that one compilation serves all of them.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from jax.sharding import Mesh

from diffusion_distill.data.batches import Batch, gather, to_network
from diffusion_distill.devices import compiler
from diffusion_distill.devices.sharding import batched, place, replicated, shardings
from diffusion_distill.diffusion.distill import distillation_target
from diffusion_distill.diffusion.losses import WEIGHTINGS
from diffusion_distill.diffusion.process import from_x, q_sample
from diffusion_distill.models.build import make_denoiser, make_schedule
from diffusion_distill.models.layers import materialize
from diffusion_distill.models.unet import UNet
from diffusion_distill.stages import Stage
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
        clip_by_global_norm(train.grad_clip_norm) if train.grad_clip_norm else optax.identity(),
        optax.scale_by_adam(b1=train.adam_b1, b2=train.adam_b2, eps=train.adam_eps),
        optax.add_decayed_weights(stage.weight_decay) if stage.weight_decay else optax.identity(),
    )


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
    """optax.clip_by_global_norm, by the norm of `global_norm`."""

    def update(updates, state, params=None):
        del params
        norm = global_norm(updates)
        return jax.tree.map(
            lambda u: jnp.where(norm < max_norm, u, (u / norm) * max_norm), updates
        ), state

    return optax.GradientTransformation(optax.init_empty_state, update)


def global_norm(tree) -> jax.Array:
    """The root of the sum of all squares, summed over each last axis first.

    In one go XLA on CPU takes as long for the norm of a network's gradient as for Adam.
    """
    leaves = map(jnp.atleast_1d, jax.tree.leaves(tree))
    squares = (materialize(jnp.square(x).sum(axis=-1)) for x in leaves)
    return jnp.sqrt(sum(s.sum() for s in squares))


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


class Examples(NamedTuple):
    """The examples of one update and all that is drawn for them, each with a leading axis B.

    Attributes:
        x: images in [-1, 1], [B, H, W, C].
        labels: [B].
        eps: noise, of x's shape.
        t: times, [B].
        i: for a student, t = i / num_steps; None for the teacher.
        dropout_keys: [B]; None without dropout.
    """

    x: jax.Array
    labels: jax.Array
    eps: jax.Array
    t: jax.Array
    i: jax.Array | None
    dropout_keys: jax.Array | None


class Parts(NamedTuple):
    """The train step in pure functions; see `make_parts`."""

    draw: Callable
    loss: Callable
    gradient: Callable
    apply: Callable


def make_parts(
    model: UNet, config: ml_collections.ConfigDict, stage: Stage, mesh: Mesh | None = None
) -> Parts:
    """The step of a stage in parts, between which a batch may be split.

    With a mesh, weights that are split over its devices are gathered before the network uses them.
    Left to itself, XLA's partitioner splits some activations by channels where it finds kernels
    split so, and sends them to and fro, which costs more than the weights.

    Returns:
        draw(step, batch, key, round) -> Examples, where step counts the stage's updates;
        loss(params, teacher_params, examples, round) -> (mean loss of the examples, their losses
        [B]); gradient, of the same arguments -> (gradient of the mean loss, losses); and
        apply(state, gradient, losses, t, round) -> (state, metrics).
    """
    schedule = make_schedule(config)
    weighting = WEIGHTINGS[config.diffusion.weighting]
    optimizer = make_optimizer(config, stage)

    def whole(params):
        return (
            params if mesh is None else jax.lax.with_sharding_constraint(params, replicated(mesh))
        )

    def draw(step, batch: Batch, key: jax.Array, round: Round) -> Examples:
        keys = jax.random.split(jax.random.fold_in(key, step), 4)
        flip_key, time_key, eps_key, dropout_key = keys
        x = to_network(batch.images, flip_key, config.data.random_flip)
        size = x.shape[0]
        if stage.teacher is None:
            t, i = jax.random.uniform(time_key, (size,)), None
        else:
            i = jax.random.randint(time_key, (size,), 1, round.num_steps + 1)
            t = i / round.num_steps
        eps = jax.random.normal(eps_key, x.shape)
        dropout_keys = jax.random.split(dropout_key, size) if stage.dropout else None
        return Examples(x, batch.labels, eps, t, i, dropout_keys)

    def loss(params, teacher_params, examples: Examples, round: Round):
        logsnr = schedule(examples.t)
        z = q_sample(examples.x, examples.eps, logsnr)
        x = examples.x
        if teacher_params is not None:
            teacher = make_denoiser(model, whole(teacher_params), examples.labels, config)
            x = distillation_target(teacher, z, examples.i, round.num_steps, schedule)
        denoiser = make_denoiser(
            model, whole(params), examples.labels, config, examples.dropout_keys
        )
        losses = weighting(from_x(x, z, logsnr), denoiser(z, logsnr))
        return losses.mean(), losses

    def apply(state: TrainState, grads, losses: jax.Array, t: jax.Array, round: Round):
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
            "loss": losses.mean(),
            "grad_norm": global_norm(grads),
            "update_norm": rate * global_norm(updates),
            "learning_rate": rate,
            **loss_by_quarter(losses, t),
        }
        return TrainState(state.step + 1, params, ema_params, opt_state), metrics

    return Parts(draw, loss, jax.grad(loss, has_aux=True), apply)


def make_train_step(
    model: UNet, config: ml_collections.ConfigDict, stage: Stage, mesh: Mesh | None = None
) -> Callable:
    """The step of a stage: algorithm 1 of the paper for the teacher, algorithm 2 for a student.

    With config.runtime.accumulation the batch is computed in so many parts, one after another; the
    noise and the dropout of each example are the same, and so, but for rounding, is the result.

    Args:
        model: the network, with the stage's dropout.
        config: the run's config.
        stage: used for what all rounds share; what they do not comes in as `round`.
        mesh: see `make_parts`.

    Returns:
        step(state, teacher_params, batch, key, round) -> (state, metrics), a pure function.
        teacher_params is None for the teacher itself. Metrics are float32 scalars: loss,
        grad_norm (before clipping), update_norm (of the change in weights), learning_rate, and
        loss_q1 to loss_q4, the loss over the examples with t in each quarter of [0, 1] (NaN where
        the batch has none there).
    """
    parts, count = make_parts(model, config, stage, mesh), config.runtime.accumulation

    def step(state: TrainState, teacher_params, batch: Batch, key: jax.Array, round: Round):
        examples = parts.draw(state.step, batch, key, round)
        if count == 1:
            grads, losses = parts.gradient(state.params, teacher_params, examples, round)
            return parts.apply(state, grads, losses, examples.t, round)

        def add(total, part):
            grads, losses = parts.gradient(state.params, teacher_params, part, round)
            return jax.tree.map(lambda a, g: a + g / count, total, grads), losses

        zeros = jax.tree.map(jnp.zeros_like, state.params)
        examples = split(examples, count)
        grads, losses = jax.lax.scan(add, zeros, examples)
        return parts.apply(state, grads, losses.reshape(-1), examples.t.reshape(-1), round)

    return step


def split(examples: Examples, count: int) -> Examples:
    """Examples [B, ...] as `count` parts [count, B / count, ...].

    Part k has the examples k, k + count, ...: each device, which holds neighbours, then has its
    share of every part.
    """
    return jax.tree.map(lambda a: jnp.moveaxis(a.reshape(-1, count, *a.shape[1:]), 1, 0), examples)


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
    model: UNet,
    config: ml_collections.ConfigDict,
    stage: Stage,
    mesh: Mesh,
    abstract: TrainState | None = None,
    platform: str | None = None,
) -> Callable:
    """The compiled step.

    Args:
        model, config, stage: see `make_train_step`.
        mesh: the devices.
        abstract: of `abstract_state`, for its shardings; None where all is replicated.
        platform: "cpu", "gpu" or "tpu": whose form the program has; None for the mesh's own.

    Returns:
        update(state, teacher_params, data, rows, key, round) -> (state, metrics), which makes one
        update for each row, and returns metrics of shape [K]. `data` is a resident data set and
        rows are int32 indices [K, B] into it; or `data` is None and rows are a Batch with a
        leading axis K (training/feed.py). The state is donated. Where K is 1 there is no loop in
        the program: XLA on CPU runs convolutions inside one about 20 times slower. For the same
        reason the parts of an accumulated batch are separate calls there.
    """
    whole, rows = replicated(mesh), batched(mesh, leading=1)
    state_shardings = whole if abstract is None else shardings(abstract)
    weights = whole if abstract is None else state_shardings.ema_params

    def batch_of(data, row) -> Batch:
        batch = row if data is None else gather(data, row)
        return jax.lax.with_sharding_constraint(batch, batched(mesh))

    platform = platform or mesh.devices.flat[0].platform
    gathered = mesh if mesh.shape["fsdp"] > 1 else None
    if config.runtime.accumulation > 1 and platform == "cpu":
        parts = make_parts(model, config, stage, gathered)
        return _update_in_calls(parts, config, batch_of, mesh, state_shardings, weights)
    step = make_train_step(model, config, stage, gathered)

    def update(state, teacher_params, data, rows, key, round):
        def one(state, row):
            return step(state, teacher_params, batch_of(data, row), key, round)

        if jax.tree.leaves(rows)[0].shape[0] == 1:
            state, metrics = one(state, jax.tree.map(lambda r: r[0], rows))
            return state, jax.tree.map(lambda m: m[None], metrics)
        return jax.lax.scan(one, state, rows)

    return jax.jit(
        update,
        in_shardings=(
            state_shardings,
            weights if stage.teacher else None,
            whole,
            rows,
            whole,
            whole,
        ),
        out_shardings=(state_shardings, whole),
        donate_argnums=0,
        compiler_options=compiler.options(platform),
    )


def _update_in_calls(
    parts: Parts, config, batch_of: Callable, mesh: Mesh, state_shardings, weights
) -> Callable:
    """`make_update` with each part of a batch, and what is before and after, a call of its own."""
    count = config.runtime.accumulation
    whole, split_rows = replicated(mesh), batched(mesh, leading=1)

    @functools.partial(jax.jit, out_shardings=split_rows)
    def draw(step, data, rows, k, key, round):
        batch = batch_of(data, jax.tree.map(lambda r: r[k], rows))
        return split(parts.draw(step, batch, key, round), count)

    @functools.partial(jax.jit, out_shardings=(weights, split_rows))
    def start(params, t):
        return jax.tree.map(jnp.zeros_like, params), jnp.zeros_like(t)

    @functools.partial(
        jax.jit,
        out_shardings=(weights, split_rows),
        donate_argnums=(0, 1),
        compiler_options=compiler.options("cpu"),
    )
    def add(total, losses, params, teacher_params, examples, k, round):
        part = jax.tree.map(lambda a: a[k], examples)
        grads, part_losses = parts.gradient(params, teacher_params, part, round)
        total = jax.tree.map(lambda a, g: a + g / count, total, grads)
        return total, losses.at[k].set(part_losses)

    @functools.partial(
        jax.jit,
        out_shardings=(state_shardings, whole),
        donate_argnums=0,
        compiler_options=compiler.options("cpu"),
    )
    def apply(state, grads, losses, t, round):
        return parts.apply(state, grads, losses.reshape(-1), t.reshape(-1), round)

    @functools.partial(jax.jit, out_shardings=whole)
    def stack(metrics):
        return jax.tree.map(lambda *m: jnp.stack(m), *metrics)

    def numbers(size):
        return [place(np.int32(k), whole) for k in range(size)]

    def update(state, teacher_params, data, rows, key, round):
        metrics = []
        for row in numbers(jax.tree.leaves(rows)[0].shape[0]):
            examples = draw(state.step, data, rows, row, key, round)
            grads, losses = start(state.params, examples.t)
            for k in numbers(count):
                grads, losses = add(grads, losses, state.params, teacher_params, examples, k, round)
            state, row_metrics = apply(state, grads, losses, examples.t, round)
            metrics.append(row_metrics)
        return state, stack(metrics)

    return update
