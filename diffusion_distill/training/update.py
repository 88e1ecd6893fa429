"""The compiled step: several updates in one call, each array in its place."""

import functools
from collections.abc import Callable

import jax

from diffusion_distill.data.batches import Batch, gather
from diffusion_distill.devices import compiler
from diffusion_distill.devices.sharding import batched, replicated, shardings
from diffusion_distill.training.accumulation import accumulated_step, update_in_calls
from diffusion_distill.training.state import TrainState
from diffusion_distill.training.step import Recipe, train_step


def make_update(
    recipe: Recipe, abstract: TrainState | None = None, platform: str | None = None
) -> Callable:
    """The compiled step, as a call that makes several updates.

    Args:
        abstract: of `abstract_state`, for its shardings; None where all is replicated.
        platform: "cpu", "gpu" or "tpu": whose form the program has; None for the mesh's own.

    Returns:
        update(state, teacher_params, data, picks, key, this_round) -> (state, metrics), which makes
        one update for each pick, and returns metrics of shape [K]. `data` is a resident data set
        and picks are int32 indices [K, B] into it; or `data` is None and picks are a Batch with a
        leading axis K (training/feed.py). The state is donated. Where K is 1 there is no loop in
        the program: XLA on CPU runs convolutions inside one about 20 times slower. For the same
        reason the parts of an accumulated batch are separate calls there.
    """
    mesh = recipe.mesh
    whole, over_batch = replicated(mesh), batched(mesh, leading=1)
    state_shardings = whole if abstract is None else shardings(abstract)
    weight_shardings = whole if abstract is None else state_shardings.ema_params

    def batch_of(data, pick) -> Batch:
        batch = pick if data is None else gather(data, pick)
        return jax.lax.with_sharding_constraint(batch, batched(mesh))

    platform = platform or mesh.devices.flat[0].platform
    in_parts = recipe.config.runtime.accumulation > 1
    if in_parts and platform == "cpu":
        return update_in_calls(recipe, batch_of, state_shardings, weight_shardings)
    step = functools.partial(accumulated_step if in_parts else train_step, recipe)

    def update(state, teacher_params, data, picks, key, this_round):
        def one(state, pick):
            return step(state, teacher_params, batch_of(data, pick), key, this_round)

        if jax.tree.leaves(picks)[0].shape[0] == 1:
            state, metrics = one(state, jax.tree.map(lambda p: p[0], picks))
            return state, jax.tree.map(lambda m: m[None], metrics)
        return jax.lax.scan(one, state, picks)

    # A match stage may learn from another network, which comes with shardings of its own.
    teacher_shardings = None if recipe.stage.knows_all_times else weight_shardings
    return jax.jit(
        update,
        in_shardings=(state_shardings, teacher_shardings, whole, over_batch, whole, whole),
        out_shardings=(state_shardings, whole),
        donate_argnums=0,
        compiler_options=compiler.options(platform),
    )
