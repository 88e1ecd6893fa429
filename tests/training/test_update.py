"""The compiled update: several steps in one call, a batch in parts, what is donated."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_distill.data.batches import Batch
from diffusion_distill.devices.sharding import make_mesh
from diffusion_distill.models.build import (
    build_unet,
    init_params,
)
from diffusion_distill.stages import plan
from diffusion_distill.training.optimizer import make_optimizer
from diffusion_distill.training.state import init_student, init_teacher, new_state
from diffusion_distill.training.step import Recipe, Round
from diffusion_distill.training.update import make_update
from tests.training.networks import Small, Toy, step_of, toy_stages


def data_and_rows():
    """64 images with labels, and which of them four updates read."""
    rng = np.random.default_rng(0)
    data = Batch(
        jnp.asarray(rng.integers(0, 256, (64, 8, 8, 1), np.uint8)),
        jnp.asarray(rng.integers(0, 10, 64, np.int32)),
    )
    return data, jnp.asarray(rng.integers(0, 64, (4, 16), np.int32))


GOLDEN_LOSS = [0.6251969, 0.6829529, 0.7673150]
GOLDEN_GRAD_NORM = [0.7674357, 0.6097873, 0.6357601]


def test_real_steps_give_what_they_gave_when_written(tiny_config):
    """A pin, not a truth, on data, noise, network, loss and optimiser: change it knowingly.

    And where a network of two resolutions is trained.
    """
    tiny_config.model.channel_multipliers = (1, 1)
    stage, mesh, (data, rows) = plan(tiny_config)[0], make_mesh(), data_and_rows()
    key, this_round = jax.random.key(1), Round(jnp.int32(4), jnp.int32(12))
    model, optimizer = build_unet(tiny_config, 1, 10), make_optimizer(tiny_config, stage)
    update = make_update(Recipe(model, tiny_config, stage, mesh))
    state = init_teacher(model, optimizer, jax.random.key(0), (8, 8, 1), mesh)
    losses, norms = [], []
    for row in rows[:3]:
        state, metrics = update(state, None, data, row[None], key, this_round)
        losses.append(float(metrics["loss"][0]))
        norms.append(float(metrics["grad_norm"][0]))
    np.testing.assert_allclose(losses, GOLDEN_LOSS, rtol=1e-4)
    np.testing.assert_allclose(norms, GOLDEN_GRAD_NORM, rtol=1e-3)


@pytest.mark.parametrize("real", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_several_updates_in_one_call_are_the_updates_one_by_one(tiny_config, real):
    """Of a small network; and of the U-Net."""
    stage, mesh, (data, rows) = plan(tiny_config)[0], make_mesh(), data_and_rows()
    model = build_unet(tiny_config, 1, 10) if real else Small(num_classes=10)
    update = make_update(Recipe(model, tiny_config, stage, mesh))
    optimizer, key = make_optimizer(tiny_config, stage), jax.random.key(0)

    def call(state, indices):
        this_round = Round(jnp.int32(4), jnp.int32(12))
        return update(state, None, data, indices, jax.random.key(1), this_round)

    one, losses = init_teacher(model, optimizer, key, (8, 8, 1), mesh), []
    for row in rows:
        one, metrics = call(one, row[None])
        losses.append(metrics["loss"][0])
    several, metrics = call(init_teacher(model, optimizer, key, (8, 8, 1), mesh), rows)
    assert metrics["loss"].shape == (4,)
    np.testing.assert_allclose(metrics["loss"], losses, rtol=1e-5)
    # Adam turns rounding in a gradient near 0 into a part of the learning rate, 2e-3 at most.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), several.params, one.params
    )
    assert several.step == one.step == 4


@pytest.mark.parametrize(
    ("which", "divide_by"), [(0, 2), (1, 2), (1, 4)], ids=["teacher", "student", "tract"]
)
def test_a_batch_in_parts_gives_the_update_of_the_whole_batch(tiny_config, which, divide_by):
    """With dropout, in both ways: parts in one program, and parts in calls of their own."""

    tiny_config.train.adam_eps = 1e-3  # large, so that a gradient near 0 stays a small step
    tiny_config.teacher.dropout = tiny_config.distill.dropout = 0.3
    tiny_config.runtime.updates_per_call = 2
    tiny_config.distill.divide_by = divide_by
    stage, mesh = plan(tiny_config)[which], make_mesh()
    model, rng = Small(num_classes=10), np.random.default_rng(0)
    params = init_params(model, jax.random.key(0), (8, 8, 1))
    teacher_params = jax.tree.map(lambda p: p * 0.9, params) if stage.has_teacher else None
    data = Batch(rng.integers(0, 256, (64, 8, 8, 1), np.uint8), rng.integers(0, 10, 64, np.int32))
    rows, this_round = rng.integers(0, 64, (2, 16), np.int32), Round.of(stage)
    key = jax.random.key(1)

    def in_calls(parts):
        tiny_config.runtime.accumulation = parts
        update = make_update(Recipe(model, tiny_config, stage, mesh))
        state = new_state(params, make_optimizer(tiny_config, stage))
        return update(jax.tree.map(jnp.copy, state), teacher_params, data, rows, key, this_round)

    def in_one_program(parts):
        tiny_config.runtime.accumulation = parts
        step = jax.jit(step_of(model, tiny_config, stage))
        state = new_state(params, make_optimizer(tiny_config, stage))
        metrics = []
        for row in rows:
            state, row_metrics = step(
                state, teacher_params, Batch(data.images[row], data.labels[row]), key, this_round
            )
            metrics.append(row_metrics)
        return state, jax.tree.map(lambda *m: jnp.stack(m), *metrics)

    state, metrics = in_one_program(1)
    for other_state, other_metrics in (in_calls(4), in_one_program(4)):
        for name in metrics:
            np.testing.assert_allclose(other_metrics[name], metrics[name], rtol=1e-4, atol=1e-6)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), other_state, state)


def test_the_state_is_donated_and_the_teacher_is_not(tiny_config):
    mesh = make_mesh()
    teacher_params = {"level": jax.device_put(jnp.float32(0.2))}
    _, student = toy_stages(tiny_config)
    state = init_student(teacher_params, make_optimizer(tiny_config, student), mesh)
    update = make_update(Recipe(Toy(), tiny_config, student, mesh))
    data = Batch(jnp.zeros((8, 2, 2, 1), jnp.uint8), jnp.zeros(8, jnp.int32))
    indices = jnp.zeros((1, 4), jnp.int32)
    this_round = Round(jnp.int32(2), jnp.int32(6))
    after, _ = update(state, teacher_params, data, indices, jax.random.key(0), this_round)
    assert state.params["level"].is_deleted()
    assert teacher_params["level"] == pytest.approx(0.2)
    assert np.isfinite(after.params["level"])
