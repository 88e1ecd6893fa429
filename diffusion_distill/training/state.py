"""What changes while a stage trains, and how it starts."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import traverse_util
from jax.sharding import Mesh

from diffusion_distill.devices.sharding import shardings, with_shardings
from diffusion_distill.models.build import init_params
from diffusion_distill.models.unet import UNet


@flax.struct.dataclass
class TrainState:
    """The state of a stage; with the config and the data, all that its future depends on."""

    step: jax.Array  # int32 [], updates made in this stage
    params: dict  # the network's weights
    ema_params: dict  # their moving average: what samples, and what the next stage starts from
    opt_state: optax.OptState  # Adam's moments

    def trees(self) -> dict[str, Any]:
        """The state as a checkpoint keeps it: the averaged weights on their own."""
        rest = {"step": self.step, "params": self.params, "opt_state": self.opt_state}
        return {"state": rest, "ema_params": self.ema_params}

    @classmethod
    def of_trees(cls, trees: dict[str, Any]) -> "TrainState":
        """The state that `trees` gave."""
        return cls(**trees["state"], ema_params=trees["ema_params"])


def abstract_state(params: dict, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Shapes, dtypes and shardings of a stage's state, from those of its weights."""
    return with_shardings(mesh, jax.eval_shape(lambda p: new_state(p, optimizer), params))


def new_state(params: dict, optimizer: optax.GradientTransformation) -> TrainState:
    """A stage's state before its first update; the average starts at the weights themselves."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema_params=jax.tree.map(jnp.copy, params),
        opt_state=optimizer.init(params),
    )


def init_teacher(
    model: UNet,
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    image_shape: tuple[int, int, int],
    mesh: Mesh,
) -> TrainState:
    """A new teacher's state, initialised in place: shapes, then shardings, then a jitted init."""

    def init(key):
        return new_state(init_params(model, key, image_shape), optimizer)

    abstract = with_shardings(mesh, jax.eval_shape(init, key))
    return jax.jit(init, out_shardings=shardings(abstract))(key)


def init_matched(
    model: UNet,
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    image_shape: tuple[int, int, int],
    mesh: Mesh,
    source_params: dict,
) -> TrainState:
    """The state of a student that is its teacher's network, but told w: the same function at first.

    Its weights are copies of source_params; those that the teacher has not are new.
    """

    def init(key, source_params):
        new = traverse_util.flatten_dict(init_params(model, key, image_shape))
        old = jax.tree.map(jnp.copy, traverse_util.flatten_dict(source_params))
        return new_state(traverse_util.unflatten_dict(new | old), optimizer)

    abstract = with_shardings(mesh, jax.eval_shape(init, key, source_params))
    return jax.jit(init, out_shardings=shardings(abstract))(key, source_params)


def init_student(
    teacher_params: dict, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """A student's state: its teacher's averaged weights, a fresh optimiser, step 0.

    The weights are copies: the state is donated to each update, the teacher must stay.
    """

    def init(params):
        # jit passes an argument that it returns through; a copy has a buffer of its own.
        return new_state(jax.tree.map(jnp.copy, params), optimizer)

    abstract = abstract_state(teacher_params, optimizer, mesh)
    return jax.jit(init, out_shardings=shardings(abstract))(teacher_params)
