"""The match stage and guidance in the step: who is told what, and who is asked."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_distill.data.batches import Batch
from diffusion_distill.devices.sharding import make_mesh
from diffusion_distill.models.build import build_unet, init_params, make_denoiser
from diffusion_distill.models.unet import NO_LABEL
from diffusion_distill.stages import plan, student_config
from diffusion_distill.training import step as steps
from diffusion_distill.training.optimizer import make_optimizer
from diffusion_distill.training.state import init_matched
from diffusion_distill.training.step import Recipe, Round

SHAPE = (8, 8, 1)
ROUND = Round(jnp.int32(2), jnp.int32(6))


class Told(nn.Module):
    """Predicts its label plus w, and nothing that is a number without a label."""

    num_classes: int = 10
    told_guidance: bool = True

    @nn.compact
    def __call__(self, z, logsnr, labels=None, dropout_keys=None, guidance=None):
        scale = self.param("scale", nn.initializers.ones, ())
        value = jnp.where(labels == NO_LABEL, jnp.nan, 0.01 * labels)
        value = value + (0.0 if guidance is None else 0.1 * guidance)
        return jnp.broadcast_to(scale * value[:, None, None, None], z.shape)


@pytest.fixture
def config(tiny_config):
    tiny_config.diffusion.parameterization = "x"
    tiny_config.teacher.label_dropout = 0.25
    tiny_config.match.updates = 6
    tiny_config.match.guidance = (1.0, 4.0)
    return tiny_config


def batch_of(count=64):
    images = np.random.default_rng(0).integers(0, 256, (count, *SHAPE), np.uint8)
    return Batch(jnp.asarray(images), jnp.arange(count) % 10)


def drawn(recipe, count=64, step=0):
    return steps.draw(recipe, step, batch_of(count), jax.random.key(0), ROUND)


def test_a_match_stage_stands_between_the_teacher_and_the_first_round(config):
    stages = plan(config)
    assert [s.name for s in stages] == ["teacher", "match", "student_0002", "student_0001"]
    assert [s.teacher for s in stages] == [None, "teacher", "match", "student_0002"]
    assert [s.num_steps for s in stages] == [4, 4, 2, 1]
    assert len({s.rng_id for s in stages}) == 4
    config.match.updates = 0
    assert [s.name for s in plan(config)] == ["teacher", "student_0002", "student_0001"]


def test_the_teacher_alone_learns_without_some_of_its_labels(config):
    teacher, match, student, _ = plan(config)
    count, told = 4000, student_config(config)
    labels = drawn(Recipe(Told(told_guidance=False), config, teacher), count).labels
    share = np.mean(labels == NO_LABEL)
    assert abs(share - 0.25) < 5 * np.sqrt(0.25 * 0.75 / count)
    kept = labels != NO_LABEL
    np.testing.assert_array_equal(labels[kept], batch_of(count).labels[kept])
    for stage in (match, student):
        labels = drawn(Recipe(Told(), told, stage), count).labels
        np.testing.assert_array_equal(labels, batch_of(count).labels)


def test_without_label_dropout_nothing_else_is_drawn_otherwise(config):
    teacher = plan(config)[0]
    with_dropout = drawn(Recipe(Told(told_guidance=False), config, teacher))
    config.teacher.label_dropout = 0.0
    without = drawn(Recipe(Told(told_guidance=False), config, teacher))
    assert without.guidance is None
    for name in ("x", "eps", "t"):
        np.testing.assert_array_equal(getattr(with_dropout, name), getattr(without, name))


def test_w_is_drawn_for_each_example_from_the_range(config):
    _, match, student, _ = plan(config)
    for stage in (match, student):
        w = np.asarray(drawn(Recipe(Told(), student_config(config), stage), 4000).guidance)
        assert 1.0 <= w.min() < 1.01 < 3.99 < w.max() <= 4.0
        assert abs(w.mean() - 2.5) < 5 * 3 / np.sqrt(12 * 4000)


def test_a_round_hands_w_to_the_teacher_and_asks_nobody_without_a_label(config):
    """Told is NaN without a label: were a round guided again, its target would be."""
    student = plan(config)[2]
    recipe = Recipe(Told(), student_config(config), student)
    examples = drawn(recipe)
    expected = 0.01 * examples.labels + 0.1 * examples.guidance
    target = target_of(recipe, {"scale": jnp.float32(1.0)}, examples, jnp.zeros(64))
    np.testing.assert_allclose(target[:, 0, 0, 0], expected, rtol=1e-5)


def test_a_match_stage_guides_its_source_by_each_examples_w(config):
    source, params, examples, logsnr, target = matched(config, student_config(config), config)

    @jax.jit
    def x_hat(labels):
        return make_denoiser(source, params, labels, config)(examples.eps, logsnr).x

    known, without = x_hat(examples.labels), x_hat(jnp.full(8, NO_LABEL))
    alpha2 = jax.nn.sigmoid(logsnr)[:, None, None, None]
    w = examples.guidance[:, None, None, None]
    expected = alpha2 * known + (1 - alpha2) * examples.x + w * (known - without)
    assert np.abs(known - without).max() > 1e-3
    np.testing.assert_allclose(target, jnp.clip(expected, -1, 1), atol=1e-5)


def test_a_source_may_predict_something_else_and_be_another_network(config):
    config.match.guidance = ()
    source_config = config.copy_and_resolve_references()
    source_config.diffusion.parameterization = "v"
    source_config.model.channels = 16
    source, params, examples, logsnr, target = matched(config, config, source_config)
    v = jax.jit(source.apply)({"params": params}, examples.eps, logsnr, examples.labels)
    alpha, sigma = (jnp.sqrt(jax.nn.sigmoid(s * logsnr))[:, None, None, None] for s in (1, -1))
    expected = alpha**2 * (alpha * examples.eps - sigma * v) + sigma**2 * examples.x
    np.testing.assert_allclose(target, expected, atol=1e-5)


def test_before_its_first_update_a_student_that_is_told_w_is_its_teacher_to_the_bit(config):
    match = plan(config)[1]
    source, student = build_unet(config, 1, 10), build_unet(student_config(config), 1, 10)
    params = noisy(new_params(source))
    optimizer, mesh = make_optimizer(config, match), make_mesh()
    state = init_matched(student, optimizer, jax.random.key(0), SHAPE, mesh, params)
    z, logsnr = jax.random.normal(jax.random.key(2), (4, *SHAPE)), jnp.linspace(-9.0, 9.0, 4)
    labels, w = jnp.arange(4), jnp.array([0.0, 1.0, 2.5, 4.0])
    expected = jax.jit(source.apply)({"params": params}, z, logsnr, labels)
    ours = jax.jit(student.apply)({"params": state.ema_params}, z, logsnr, labels, guidance=w)
    assert np.abs(expected).max() > 0.01
    np.testing.assert_array_equal(ours, expected)


def matched(config, told, source_config):
    """What a source of random weights gives a match stage as the target of eight examples.

    Returns:
        (the source, its weights, the examples, their logSNR, their targets).
    """
    source = build_unet(source_config, 1, 10)
    params = noisy(new_params(source))
    recipe = Recipe(build_unet(told, 1, 10), told, plan(config)[1], None, source, source_config)
    examples, logsnr = drawn(recipe, 8), jnp.linspace(-4.0, 4.0, 8)
    return source, params, examples, logsnr, target_of(recipe, params, examples, logsnr)


def new_params(model):
    return jax.jit(lambda key: init_params(model, key, SHAPE))(jax.random.key(1))


def target_of(recipe, params, examples, logsnr):
    """`steps.target`, compiled."""

    @jax.jit
    def target(params, examples):
        return steps.target(recipe, params, examples, examples.eps, logsnr, ROUND)

    return target(params, examples)


def noisy(params):
    """Weights of which none is 0, as a new network's last ones are."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda p: p + jnp.float32(0.1 * rng.normal(size=p.shape)), params)
