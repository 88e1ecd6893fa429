"""diffusers' network as a module of ours. interop/test_diffusers.py has that its numbers agree."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_distill.config import base
from diffusion_distill.errors import UserError
from diffusion_distill.models.build import build_unet, compute_weights
from tests.models.test_build import equal_bits
from tests.models.test_unet import random_params


def small(num_classes=3, **fields):
    """A network of 8 and 16 channels with labels, for 8x8 pixels."""
    config = base()
    config.model.architecture, config.model.class_conditional = "unet2d", bool(num_classes)
    config.unet2d.update(
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        num_class_embeds=num_classes,
        **fields,
    )
    return build_unet(config, 1, 0)


def inputs(labels=(0, 2)):
    z = jax.random.normal(jax.random.key(0), (2, 8, 8, 1))
    return z, jnp.array([3.0, -4.0]), jnp.array(labels)


def test_weights_that_are_cast_beforehand_change_no_bit():
    model = small(time_embedding_type="learned", resnet_time_scale_shift="scale_shift")
    model = dataclasses.replace(model, dtype=jnp.bfloat16)
    params = random_params(model, *inputs())["params"]
    apply = jax.jit(lambda p: model.apply({"params": p}, *inputs()))
    cast = compute_weights(params, jnp.bfloat16)
    assert equal_bits(apply(cast), apply(params))
    kept = sum(x.size for x in jax.tree.leaves(cast) if x.dtype == jnp.float32)
    table = params["time_proj"]["embedding"].size
    assert kept - table < 0.1 * sum(x.size for x in jax.tree.leaves(cast))


def test_an_unknown_label_is_none_and_recomputing_changes_nothing():
    model = small()
    params = random_params(model, *inputs())
    apply = jax.jit(model.apply)
    none = apply(params, *inputs((-1, 3)))
    zeroed = params["params"]["class_embedding"] | {"kernel": jnp.zeros((3, 32))}
    without = {"params": params["params"] | {"class_embedding": zeroed}}
    np.testing.assert_allclose(apply(without, *inputs()), none, atol=1e-6)
    again = jax.jit(dataclasses.replace(model, remat=True).apply)(params, *inputs((-1, 3)))
    np.testing.assert_allclose(again, none, atol=1e-6)


@pytest.mark.parametrize(
    ("fields", "shape", "labels", "message"),
    [
        ({}, (2, 9, 8, 1), True, "images of 9x8 pixels do not halve 1 times"),
        ({"attention_head_dim": 5}, (2, 8, 8, 1), True, "8 channels are no multiple of attention_"),
        ({}, (2, 8, 8, 1), False, "a network of 3 labels; none were given"),
        ({"num_classes": 0}, (2, 8, 8, 1), True, "a network of 0 labels; some were given"),
    ],
)
def test_what_does_not_fit_is_refused(fields, shape, labels, message):
    given = jnp.zeros(2, jnp.int32) if labels else None
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(
            small(**fields).init, jax.random.key(0), jnp.zeros(shape), jnp.zeros(2), given
        )


def test_more_labels_than_it_knows_are_refused():
    config = base()
    config.model.architecture, config.model.class_conditional = "unet2d", True
    config.unet2d.num_class_embeds = 3
    with pytest.raises(UserError, match="num_class_embeds is 3; the data has 4 labels"):
        build_unet(config, 1, 4)
