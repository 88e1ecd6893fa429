"""Networks small enough to be followed by hand, and what a step of theirs takes."""

import functools

import flax.linen as nn
import jax.numpy as jnp

from diffusion_distill.data.batches import Batch
from diffusion_distill.models.unet import dropout
from diffusion_distill.stages import plan
from diffusion_distill.training.accumulation import accumulated_step
from diffusion_distill.training.step import Recipe, train_step


class Toy(nn.Module):
    """As small as a network can be: its output is one learned number for every pixel."""

    num_classes: int = 0
    told_guidance: bool = False

    @nn.compact
    def __call__(self, z, logsnr, labels=None, dropout_keys=None):
        level = self.param("level", nn.initializers.constant(0.3), ())
        return jnp.full_like(z, level)


class Small(Toy):
    """Sees all that a network is given: image, time, label, and keys of dropout."""

    @nn.compact
    def __call__(self, z, logsnr, labels=None, dropout_keys=None):
        h = nn.Dense(8, name="in")(jnp.concatenate([z, z * logsnr[:, None, None, None]], -1))
        h = nn.swish(h + nn.Embed(10, 8, name="label")(labels)[:, None, None])
        h = h if dropout_keys is None else dropout(h, 0.3, dropout_keys, "h")
        return nn.Dense(1, name="out")(h)


def batch_of(value, count=16):
    images = jnp.full((count, 2, 2, 1), value, jnp.uint8)
    return Batch(images, jnp.zeros(count, jnp.int32))


def step_of(model, config, stage):
    """(state, teacher_params, batch, key, this_round) -> (state, metrics)."""
    in_parts = config.runtime.accumulation > 1
    return functools.partial(
        accumulated_step if in_parts else train_step, Recipe(model, config, stage)
    )


def toy_stages(tiny_config):
    tiny_config.diffusion.parameterization = "x"
    tiny_config.diffusion.weighting = "constant"
    teacher, student, *_ = plan(tiny_config)
    return teacher, student
