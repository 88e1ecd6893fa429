"""The programs of a run: its updates and its sampler, for devices that need not be there."""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_collections
from jax.sharding import Mesh

from diffusion_distill.data.batches import Batch
from diffusion_distill.devices.sharding import batched, replicated, rounded_up, with_shardings
from diffusion_distill.errors import UserError
from diffusion_distill.generate import make_sample_fn
from diffusion_distill.models.build import abstract_params, build_unet, compute_weights
from diffusion_distill.plan.describe import Data
from diffusion_distill.stages import Stage
from diffusion_distill.training.feed import RESIDENT
from diffusion_distill.training.loop import updates_per_call
from diffusion_distill.training.optimizer import make_optimizer
from diffusion_distill.training.state import abstract_state
from diffusion_distill.training.step import Recipe, Round
from diffusion_distill.training.update import make_update

_PLATFORM = "accelerator"  # any but "cpu", whose programs have another form


@dataclasses.dataclass(frozen=True)
class Program:
    """A program of a run.

    Its cost is counted in units: one update, or one sampling step of a batch.

    Attributes:
        name: "teacher" and "student" for updates, "sampler".
        images: the global batch of one unit.
        units: how many one call makes; 1 for the sampler.
        function: the program, made by jax.jit.
        arguments: what it is called with: ShapeDtypeStructs with their shardings.
    """

    name: str
    images: int
    units: int
    function: Callable
    arguments: tuple

    def argument_bytes(self) -> int:
        """Bytes of the arguments on one device, without the compiler's padding."""
        return sum(
            math.prod(a.sharding.shard_shape(a.shape)) * a.dtype.itemsize
            for a in jax.tree.leaves(self.arguments)
        )


def program_of(stage: Stage) -> str:
    """The name of the program that makes a stage's updates: all students share one."""
    return "teacher" if stage.teacher is None else "student"


def programs(
    config: ml_collections.ConfigDict, stages: list[Stage], data: Data, mesh: Mesh
) -> list[Program]:
    """The updates that a config's stages need, and its sampler last, as on an accelerator.

    A teacher that is not trained here has no update.

    Raises:
        UserError: the network does not fit the data.
    """
    config = config.copy_and_resolve_references()
    config.runtime.sampler_loop = "inside"
    trained = {program_of(stage): stage for stage in stages if stage.updates}
    updates = [_update(name, config, stage, data, mesh) for name, stage in trained.items()]
    return [*updates, _sampler(config, data, mesh)]


def _update(name: str, config, stage: Stage, data: Data, mesh: Mesh) -> Program:
    count = updates_per_call(config, _PLATFORM)
    model, params = _network(config, data, mesh, stage.dropout)
    resident, rows = _batches(config, data, count, mesh)
    number = _array((), jnp.int32, replicated(mesh))
    abstract = abstract_state(params, make_optimizer(config, stage), mesh)
    arguments = (
        abstract,
        _teacher(params, model.dtype, mesh) if stage.teacher else None,
        resident,
        rows,
        _array((), _key_dtype(), replicated(mesh)),
        Round(number, number),
    )
    function = make_update(Recipe(model, config, stage, mesh), abstract, _PLATFORM)
    return Program(name, config.train.batch_size, count, function, arguments)


def _sampler(config, data: Data, mesh: Mesh) -> Program:
    size = rounded_up(config.runtime.sampler_batch_size, mesh)
    model, params = _network(config, data, mesh)
    rows = batched(mesh)
    arguments = (
        params,
        _array((size, *data.image_shape), jnp.float32, rows),
        _array((size,), _key_dtype(), rows),
        _array((size,), jnp.int32, rows),
        _array((), jnp.int32, replicated(mesh)),
    )
    function = jax.jit(make_sample_fn(model, config, "ddim", mesh, _PLATFORM))
    return Program("sampler", size, 1, function, arguments)


def _network(config, data: Data, mesh: Mesh, dropout: float = 0.0):
    """The network and its abstract weights."""
    try:
        model = build_unet(config, data.image_shape[-1], data.num_classes, dropout)
        return model, abstract_params(model, data.image_shape, mesh)
    except ValueError as error:
        raise UserError(f"config.model does not fit the data: {error}") from error


def _teacher(params: dict, dtype, mesh: Mesh) -> dict:
    """A teacher's abstract weights, as main.py gives them to a student's update."""
    return with_shardings(mesh, jax.eval_shape(lambda p: compute_weights(p, dtype), params))


def _batches(config, data: Data, count: int, mesh: Mesh):
    """`data` and `rows` of `count` updates, as training/feed.py makes them."""

    def images_and_labels(shape, sharding):
        images = _array((*shape, *data.image_shape), jnp.uint8, sharding)
        return Batch(images, _array(shape, jnp.int32, sharding))

    on_device, shape = config.runtime.data_on_device, (count, config.train.batch_size)
    fits = data.num_images * math.prod(data.image_shape) <= RESIDENT
    if data.num_images and (on_device == "always" or (on_device == "auto" and fits)):
        rows = _array(shape, jnp.int32, batched(mesh, leading=1))
        return images_and_labels((data.num_images,), replicated(mesh)), rows
    return None, images_and_labels(shape, batched(mesh, leading=1))


def _array(shape, dtype, sharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def _key_dtype():
    return jax.eval_shape(lambda: jax.random.key(0)).dtype
