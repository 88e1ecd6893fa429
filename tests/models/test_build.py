"""Weights that are cast before the network casts them: the same output, to the bit."""

import dataclasses
import functools
import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from diffusion_distill import run as runs
from diffusion_distill.data.batches import Batch
from diffusion_distill.devices import compiler
from diffusion_distill.devices.sharding import make_mesh
from diffusion_distill.models.build import build_unet, compute_weights
from diffusion_distill.stages import plan
from diffusion_distill.terminal.stop import StopSignal
from diffusion_distill.training.optimizer import make_optimizer
from diffusion_distill.training.state import init_student
from diffusion_distill.training.step import Recipe, Round, draw, loss
from diffusion_distill.training.update import make_update
from tests.models.test_unet import SMALL, inputs, random_params

BFLOAT16 = dataclasses.replace(SMALL, dtype=jnp.bfloat16)


def equal_bits(a, b):
    return np.array_equal(np.asarray(a).view(np.uint32), np.asarray(b).view(np.uint32))


@pytest.mark.parametrize("resample_blocks", [True, False])
@pytest.mark.usefixtures("optimized")  # as LLVM may round the two programs differently
def test_weights_are_cast_where_it_changes_nothing_and_nowhere_else(resample_blocks):
    """With labels, attention and shortcuts; each weight that is kept would change the output."""
    attention = BFLOAT16.attention_resolutions if resample_blocks else ()
    model = dataclasses.replace(
        BFLOAT16, resample_blocks=resample_blocks, attention_resolutions=attention
    )
    params = random_params(model, *inputs())["params"]
    apply = jax.jit(lambda p: model.apply({"params": p}, *inputs()))
    expected = apply(params)
    cast = compute_weights(params, jnp.bfloat16)
    assert equal_bits(apply(cast), expected)
    leaves = traverse_util.flatten_dict(cast)
    kept = {path for path, leaf in leaves.items() if leaf.dtype == jnp.float32}
    assert {leaves[path].dtype for path in leaves.keys() - kept} == {jnp.dtype(jnp.bfloat16)}
    assert sum(leaves[path].size for path in kept) < 0.1 * sum(x.size for x in leaves.values())
    original = traverse_util.flatten_dict(params)
    for path in kept:
        rounded = np.asarray(original[path]).astype(jnp.bfloat16).astype(np.float32)
        changed = traverse_util.unflatten_dict(original | {path: rounded})
        assert not equal_bits(apply(changed), expected), path


def test_float32_weights_are_themselves():
    params = random_params(SMALL, *inputs())["params"]
    same = jax.tree.map(lambda a, b: a is b, params, compute_weights(params, "float32"))
    assert jax.tree.all(same)


@pytest.fixture
def student(tiny_config):
    """(recipe of a student in bfloat16, its teacher's random weights, a batch, key, round)."""
    tiny_config.model.dtype = "bfloat16"
    tiny_config.model.attention_resolutions = (8,)
    model = build_unet(tiny_config, 1, 10)
    teacher = random_params(model, *inputs(channels=1, classes=10))["params"]
    rng = np.random.default_rng(0)
    batch = Batch(rng.integers(0, 256, (16, 8, 8, 1), np.uint8), np.arange(16) % 10)
    recipe = Recipe(model, tiny_config, plan(tiny_config)[1], make_mesh())
    return recipe, teacher, batch, jax.random.key(0), Round(jnp.int32(2), jnp.int32(6))


@pytest.mark.slow
@pytest.mark.usefixtures("optimized")
def test_a_students_loss_has_the_same_bits_with_a_teacher_that_was_cast(student):
    recipe, teacher, *rest, this_round = student
    examples = draw(recipe, 0, *rest, this_round)

    @functools.partial(jax.jit, compiler_options=compiler.options("cpu"))
    def of(params, teacher_params, examples):
        return loss(recipe, params, teacher_params, examples, this_round)[1]

    cast = compute_weights(teacher, "bfloat16")
    losses, others = (of(teacher, weights, examples) for weights in (teacher, cast))
    assert np.all(losses > 0)
    np.testing.assert_array_equal(losses, others)


@pytest.mark.slow
@pytest.mark.usefixtures("optimized")
def test_a_students_step_has_the_same_bits_with_a_teacher_that_was_cast(student):
    """The compiled update, of a network with random weights: no part of its state differs."""
    recipe, teacher, batch, key, this_round = student
    update, batches = make_update(recipe), jax.tree.map(lambda a: a[None], batch)

    def after(teacher_params):
        state = init_student(teacher, make_optimizer(recipe.config, recipe.stage), recipe.mesh)
        return update(state, teacher_params, None, batches, key, this_round)

    state, metrics = after(teacher)
    other_state, other_metrics = after(compute_weights(teacher, "bfloat16"))
    assert np.all(metrics["grad_norm"] > 0)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(other_state), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(metrics["loss"], other_metrics["loss"])


def test_runtimes_choices_reach_the_network(tiny_config):
    runtime = tiny_config.runtime
    for chosen in (False, True):
        runtime.pixel_pairs = runtime.remat = runtime.fused_attention = chosen
        model = build_unet(tiny_config, 1, 10)
        assert {model.pixel_pairs, model.remat, model.fused_attention} == {chosen}


def test_a_run_keeps_a_students_teacher_in_what_it_computes_in(tiny_config, tmp_path, monkeypatch):
    """And no other copy: the state is four times the weights, the teacher half of them.

    Just before its first update, which is not made: a stage ends as it started.
    """
    seen = {}

    def floats():
        gc.collect()
        live = [a for a in jax.live_arrays() if jnp.issubdtype(a.dtype, jnp.floating)]
        return sum(a.nbytes for a in live)

    def train(job, state, recorder, stop):
        weights = sum(x.nbytes for x in jax.tree.leaves(state.params))
        dtypes = [leaf.dtype.name for leaf in jax.tree.leaves(job.teacher_params)]
        seen[job.stage.name] = dtypes, (floats() - before) / weights
        with recorder:
            return state

    monkeypatch.setattr(runs, "train", train)
    monkeypatch.setattr(runs, "_measure", lambda *arguments: None)
    tiny_config.model.dtype = "bfloat16"
    setup, before = runs.check(tiny_config, tmp_path / "run"), floats()
    runs.run_chain(setup, runs.Programs(setup), StopSignal())
    assert seen.pop("teacher")[0] == []
    assert seen.keys() == {"student_0002", "student_0001"}
    for dtypes, held in seen.values():
        assert dtypes.count("bfloat16") > len(dtypes) / 2
        assert held < 4.6
