"""A batch computed in parts, one after another, to save memory: config.runtime.accumulation.

The noise and the dropout of each example are the same as in the whole batch, and so, but for
rounding, is the update.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_distill.data.batches import Batch
from diffusion_distill.devices import compiler
from diffusion_distill.devices.sharding import batched, place, replicated
from diffusion_distill.training.state import TrainState
from diffusion_distill.training.step import (
    Examples,
    Recipe,
    Round,
    apply,
    draw,
    gradient,
    target_weights,
)


def accumulated_step(
    recipe: Recipe,
    state: TrainState,
    teacher_params: dict | None,
    batch: Batch,
    key: jax.Array,
    this_round: Round,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """As `train_step`, with the parts of the batch in a loop of one program."""
    count = recipe.config.runtime.accumulation
    examples = split(draw(recipe, state.step, batch, key, this_round), count)
    taught_by = target_weights(recipe, state, teacher_params)

    def add(total, part):
        grads, losses = gradient(recipe, state.params, taught_by, part, this_round)
        return jax.tree.map(lambda a, g: a + g / count, total, grads), losses

    zeros = jax.tree.map(jnp.zeros_like, state.params)
    grads, losses = jax.lax.scan(add, zeros, examples)
    return apply(recipe, state, grads, losses.reshape(-1), examples.t.reshape(-1), this_round)


def split(examples: Examples, count: int) -> Examples:
    """Examples [B, ...] as `count` parts [count, B / count, ...].

    Part k has the examples k, k + count, ...: each device, which holds neighbours, then has its
    share of every part.
    """
    return jax.tree.map(lambda a: jnp.moveaxis(a.reshape(-1, count, *a.shape[1:]), 1, 0), examples)


def update_in_calls(
    recipe: Recipe, batch_of: Callable, state_shardings, weight_shardings
) -> Callable:
    """`make_update` with each part of a batch, and what is before and after, a call of its own.

    For CPUs, where XLA runs convolutions inside a loop about 20 times slower than outside.

    Args:
        batch_of: (data, pick) -> Batch.
        state_shardings, weight_shardings: of the state, and of one tree of weights.
    """
    count = recipe.config.runtime.accumulation
    whole, over_parts = replicated(recipe.mesh), batched(recipe.mesh, leading=1)
    in_place = functools.partial(
        jax.jit, donate_argnums=0, compiler_options=compiler.options("cpu")
    )

    @functools.partial(jax.jit, out_shardings=over_parts)
    def draw_parts(step, data, picks, k, key, this_round):
        batch = batch_of(data, jax.tree.map(lambda p: p[k], picks))
        return split(draw(recipe, step, batch, key, this_round), count)

    @functools.partial(jax.jit, out_shardings=(weight_shardings, over_parts))
    def start(params, t):
        return jax.tree.map(jnp.zeros_like, params), jnp.zeros_like(t)

    @functools.partial(in_place, out_shardings=(weight_shardings, over_parts))
    def add(sums, params, teacher_params, examples, k, this_round):
        total, losses = sums
        part = jax.tree.map(lambda a: a[k], examples)
        grads, part_losses = gradient(recipe, params, teacher_params, part, this_round)
        total = jax.tree.map(lambda a, g: a + g / count, total, grads)
        return total, losses.at[k].set(part_losses)

    @functools.partial(in_place, out_shardings=(state_shardings, whole))
    def finish(state, grads, losses, t, this_round):
        return apply(recipe, state, grads, losses.reshape(-1), t.reshape(-1), this_round)

    @functools.partial(jax.jit, out_shardings=whole)
    def stack(metrics):
        return jax.tree.map(lambda *m: jnp.stack(m), *metrics)

    def numbers(size):
        return [place(np.int32(k), whole) for k in range(size)]

    def update(state, teacher_params, data, picks, key, this_round):
        metrics = []
        for n in numbers(jax.tree.leaves(picks)[0].shape[0]):
            examples = draw_parts(state.step, data, picks, n, key, this_round)
            taught_by = target_weights(recipe, state, teacher_params)
            sums = start(state.params, examples.t)
            for k in numbers(count):
                sums = add(sums, state.params, taught_by, examples, k, this_round)
            state, its_metrics = finish(state, *sums, examples.t, this_round)
            metrics.append(its_metrics)
        return state, stack(metrics)

    return update
