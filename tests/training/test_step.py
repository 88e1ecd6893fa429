"""The train step: its parts against numpy, and properties of the whole."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh

from diffusion_distill.data.batches import Batch
from diffusion_distill.devices.sharding import make_mesh
from diffusion_distill.diffusion.distill import TARGETS, tract_target
from diffusion_distill.diffusion.process import q_sample
from diffusion_distill.diffusion.samplers import SAMPLERS, sample
from diffusion_distill.models.build import (
    abstract_params,
    build_unet,
    compute_weights,
    init_params,
    make_denoiser,
    make_schedule,
)
from diffusion_distill.stages import plan
from diffusion_distill.training import step as steps
from diffusion_distill.training.optimizer import learning_rate, make_optimizer
from diffusion_distill.training.state import abstract_state, new_state
from diffusion_distill.training.step import Recipe, Round
from tests.training.networks import Small, Toy, batch_of, step_of, toy_stages


def test_learning_rate_by_hand():
    def rate(step, **changes):
        settings = dict(updates=100, peak=2.0, warmup=10, lr_schedule="linear") | changes
        return float(learning_rate(jnp.int32(step), **settings))

    assert rate(0) == pytest.approx(2.0 * 0.1)
    assert rate(4) == pytest.approx(2.0 * 0.5 * 0.96)
    assert rate(50) == pytest.approx(1.0)
    assert rate(99) == pytest.approx(0.02)
    assert rate(0, warmup=0) == pytest.approx(2.0)
    assert [rate(s, lr_schedule="constant") for s in (9, 50, 99)] == pytest.approx([2.0] * 3)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_optimiser_is_clipped_adamw(tiny_config, weight_decay):
    """Five updates in numpy: clip to norm 1, Adam with bias correction, decoupled decay."""
    tiny_config.teacher.weight_decay = weight_decay
    stage = plan(tiny_config)[0]
    optimizer = make_optimizer(tiny_config, stage)
    rng = np.random.default_rng(0)
    p = rng.normal(size=7)
    params, m, v = {"a": jnp.float32(p[:3]), "b": jnp.float32(p[3:])}, 0.0, 0.0
    state = optimizer.init(params)
    for n in range(1, 6):
        g = rng.normal(size=7) * (3.0 if n < 4 else 0.1)
        grads = {"a": jnp.float32(g[:3]), "b": jnp.float32(g[3:])}
        updates, state = optimizer.update(grads, state, params)
        params = jax.tree.map(lambda p, u: p - 0.01 * u, params, updates)
        g = g * min(1.0, 1.0 / np.linalg.norm(g))
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        adam = (m / (1 - 0.9**n)) / (np.sqrt(v / (1 - 0.999**n)) + 1e-8)
        p = p - 0.01 * (adam + weight_decay * p)
    np.testing.assert_allclose(np.concatenate([params["a"], params["b"]]), p, rtol=1e-4)


def test_a_step_moves_weights_and_average_as_it_says(tiny_config):
    teacher, _ = toy_stages(tiny_config)
    optimizer = make_optimizer(tiny_config, teacher)
    state = new_state({"level": jnp.float32(0.3)}, optimizer)
    this_round = Round(jnp.int32(4), jnp.int32(teacher.updates))
    step = step_of(Toy(), tiny_config, teacher)
    after, metrics = step(state, None, batch_of(255), jax.random.key(0), this_round)
    # x is 1 and the prediction 0.3, at every t: the loss is 0.49 and its gradient -1.4.
    assert metrics["loss"] == pytest.approx(0.49, rel=1e-5)
    assert metrics["grad_norm"] == pytest.approx(1.4, rel=1e-5)
    rate = float(learning_rate(0, teacher.updates, teacher.learning_rate, teacher.warmup, "linear"))
    assert metrics["learning_rate"] == pytest.approx(rate)
    # Adam's first step is the learning rate, whatever the gradient.
    assert after.params["level"] == pytest.approx(0.3 + rate, rel=1e-5)
    assert metrics["update_norm"] == pytest.approx(rate, rel=1e-4)
    decay = teacher.ema_decay
    assert after.ema_params["level"] == pytest.approx(0.3 + (1 - decay) * rate, rel=1e-6)
    assert after.step == 1


def test_loss_by_quarter():
    loss, t = jnp.float32([1, 3, 5, 7]), jnp.float32([0.0, 0.2, 0.75, 1.0])
    got = steps.loss_by_quarter(loss, t)
    assert (got["loss_q1"], got["loss_q4"]) == (2.0, 6.0)
    assert [got[f"examples_q{q}"] for q in (1, 2, 3, 4)] == [2, 0, 0, 2]
    assert not any(np.isnan(value) for value in got.values())


def test_noise_and_times_differ_from_step_to_step(tiny_config):
    tiny_config.diffusion.weighting = "snr"
    teacher = plan(tiny_config)[0]
    step = step_of(Toy(), tiny_config, teacher)
    state = new_state({"level": jnp.float32(0.3)}, make_optimizer(tiny_config, teacher))
    this_round = Round(jnp.int32(4), jnp.int32(12))

    def loss(number, key=0):
        at = state.replace(step=jnp.int32(number))
        return float(step(at, None, batch_of(200), jax.random.key(key), this_round)[1]["loss"])

    assert loss(0) == loss(0)
    assert len({loss(0), loss(1), loss(2), loss(0, key=1)}) == 4


@pytest.mark.parametrize("num_steps", [1, 2, 4096])
def test_a_student_of_a_perfect_teacher_has_nothing_to_learn(tiny_config, num_steps):
    """Data that is one point, known to the teacher: its target is that point at any step."""
    tiny_config.diffusion.parameterization = "x"
    _, student = toy_stages(tiny_config)
    step = step_of(Toy(), tiny_config, student)
    params = {"level": jnp.float32(1.0)}
    state = new_state(params, make_optimizer(tiny_config, student))
    this_round = Round(jnp.int32(num_steps), jnp.int32(6))
    _, metrics = step(state, params, batch_of(255), jax.random.key(0), this_round)
    assert metrics["loss"] < 1e-10


@pytest.mark.parametrize("solver", [*TARGETS, "tract"])
def test_a_student_learns_the_target_of_its_rounds_solver(tiny_config, solver):
    """Its losses are the squared errors from that target."""
    _, student = toy_stages(tiny_config)
    student = dataclasses.replace(student, num_steps=2, solver=solver, divides_by=4)
    model, key, this_round = Small(num_classes=10), jax.random.key(0), Round.of(student)
    batch, recipe = batch_of(100), Recipe(model, tiny_config, student)
    params = model.init(key, jnp.ones((1, 2, 2, 1)), jnp.zeros(1), jnp.zeros(1, int))["params"]
    average = jax.tree.map(lambda p: 0.9 * p, params)
    state = new_state(params, make_optimizer(tiny_config, student))
    state = dataclasses.replace(state, ema_params=average)
    examples = steps.draw(recipe, 0, batch, key, this_round)
    taught_by = steps.target_weights(recipe, state, params)
    _, losses = steps.loss(recipe, params, taught_by, examples, this_round)
    schedule = make_schedule(tiny_config)
    z = q_sample(examples.x, examples.eps, schedule(examples.t))
    denoiser, averages = (
        make_denoiser(model, p, batch.labels, tiny_config) for p in (params, average)
    )
    if solver == "tract":
        assert set(np.unique(examples.i)) <= set(range(1, 9)) and examples.i.max() > 2
        np.testing.assert_allclose(examples.t, examples.i / 8)
        target = tract_target(denoiser, averages, z, examples.i, (8, 2), schedule)
    else:
        target = TARGETS[solver](denoiser, z, examples.i, 2, schedule)
    error = target - denoiser(z, schedule(examples.t)).x
    np.testing.assert_allclose(losses, jnp.square(error).mean((1, 2, 3)), rtol=1e-5)
    assert losses.max() > 1e-3


def test_split_weights_of_all_who_teach_are_cast_before_they_are_gathered(tiny_config):
    """TRACT's average, too, which is kept in float32."""
    tiny_config.model.dtype, mesh = "bfloat16", AbstractMesh((1, 2), ("data", "fsdp"))
    student = next(stage for stage in plan(tiny_config) if stage.has_teacher)
    student = dataclasses.replace(student, solver="tract", divides_by=2)
    model, this_round = build_unet(tiny_config, 1, 10), Round.of(student)
    recipe = Recipe(model, tiny_config, student, mesh)
    params = jax.eval_shape(lambda: init_params(model, jax.random.key(0), (8, 8, 1)))
    teacher = jax.eval_shape(lambda p: compute_weights(p, jnp.bfloat16), params)

    def losses(params, teacher, average, key):
        batch = Batch(jnp.zeros((4, 8, 8, 1), jnp.uint8), jnp.zeros(4, jnp.int32))
        examples = steps.draw(recipe, 0, batch, key, this_round)
        return steps.loss(recipe, params, (teacher, average), examples, this_round)

    jaxpr = jax.make_jaxpr(losses)(params, teacher, params, jax.random.key(0)).jaxpr
    gathered = [
        equation.invars[0].aval.dtype
        for equation in jaxpr.eqns
        if equation.primitive.name == "sharding_constraint"
    ]
    once = [leaf.dtype for leaf in jax.tree.leaves(teacher)]
    assert sorted(map(str, gathered)) == sorted(map(str, 3 * once))  # teacher, average, student


def test_a_student_learns_its_teacher_and_not_the_data(tiny_config):
    _, student = toy_stages(tiny_config)
    step = jax.jit(step_of(Toy(), tiny_config, student))
    state = new_state({"level": jnp.float32(0.3)}, make_optimizer(tiny_config, student))
    teacher_params, this_round = {"level": jnp.float32(0.2)}, Round(jnp.int32(2), jnp.int32(400))
    for _ in range(400):
        state, _ = step(state, teacher_params, batch_of(255), jax.random.key(0), this_round)
    assert state.params["level"] == pytest.approx(0.2, abs=2e-3)
    assert teacher_params["level"] == pytest.approx(0.2)


def test_labels_reach_teacher_and_student_in_a_students_step(tiny_config):
    """Each network alone knows labels, by weights that are not 0; the loss must tell."""
    student = plan(tiny_config)[1]
    model = build_unet(tiny_config, 1, 10)
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: init_params(model, jax.random.key(0), (8, 8, 1)))
    knows = jax.tree.map(lambda s: jnp.float32(0.2 * rng.normal(size=s.shape)), shapes)
    ignores = knows | {"class_emb": jax.tree.map(jnp.zeros_like, knows["class_emb"])}
    recipe, key = Recipe(model, tiny_config, student), jax.random.key(0)
    images = jnp.asarray(rng.integers(0, 256, (4, 8, 8, 1), np.uint8))
    this_round = Round(jnp.int32(2), jnp.int32(6))

    @jax.jit
    def loss(params, teacher_params, label):
        examples = steps.draw(recipe, 0, Batch(images, jnp.full(4, label)), key, this_round)
        return steps.loss(recipe, params, teacher_params, examples, this_round)[0]

    assert loss(knows, ignores, 1) != loss(knows, ignores, 2)
    assert loss(ignores, knows, 1) != loss(ignores, knows, 2)
    assert loss(ignores, ignores, 1) == loss(ignores, ignores, 2)


@pytest.mark.parametrize("kind", ["x", "eps", "v", "both"])
def test_every_parameterization_has_a_step_and_a_sampler(tiny_config, kind):
    """Shapes fit from the config to the updated state and to the image, for teacher and student."""
    tiny_config.diffusion.parameterization = kind
    model, mesh = build_unet(tiny_config, 3, 10), make_mesh()
    assert model.out_channels == (6 if kind == "both" else 3)
    batch = Batch(jnp.zeros((4, 8, 8, 3), jnp.uint8), jnp.zeros(4, jnp.int32))
    this_round = Round(jnp.int32(2), jnp.int32(6))
    for stage in plan(tiny_config)[:2]:
        optimizer = make_optimizer(tiny_config, stage)
        state = abstract_state(abstract_params(model, (8, 8, 3), mesh), optimizer, mesh)
        teacher_params = state.ema_params if stage.has_teacher else None
        step = step_of(model, tiny_config, stage)
        after, metrics = jax.eval_shape(
            step, state, teacher_params, batch, jax.random.key(0), this_round
        )
        assert jax.tree.map(lambda s: s.shape, after) == jax.tree.map(lambda s: s.shape, state)
        assert metrics["loss"].shape == ()

    def images(params, z):
        denoiser = make_denoiser(model, params, batch.labels, tiny_config)
        return sample(SAMPLERS["ddim"], denoiser, z, 1, make_schedule(tiny_config), jnp.zeros_like)

    z = jax.ShapeDtypeStruct((4, 8, 8, 3), jnp.float32)
    assert jax.eval_shape(images, state.params, z).shape == z.shape
