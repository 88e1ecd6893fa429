"""The optimiser: what a gradient does to the weights, and how fast."""

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from diffusion_distill.models.layers import materialize
from diffusion_distill.stages import Stage


def make_optimizer(config: ConfigDict, stage: Stage) -> optax.GradientTransformation:
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
