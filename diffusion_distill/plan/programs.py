"""The programs of a run: its updates and its sampler, for devices that need not be there."""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from diffusion_distill.data import sources
from diffusion_distill.data.batches import Batch
from diffusion_distill.devices.sharding import batched, replicated, rounded_up, with_shardings
from diffusion_distill.diffusion.samplers import seed_key
from diffusion_distill.errors import UserError
from diffusion_distill.generate import make_sample_fn
from diffusion_distill.models.build import abstract_params, build_unet, compute_weights
from diffusion_distill.paper import DATASETS
from diffusion_distill.stages import Stage, student_config
from diffusion_distill.storage.buckets import as_path, is_bucket
from diffusion_distill.training.feed import RESIDENT
from diffusion_distill.training.loop import updates_per_call
from diffusion_distill.training.optimizer import make_optimizer
from diffusion_distill.training.state import abstract_state
from diffusion_distill.training.step import Recipe, Round
from diffusion_distill.training.update import make_update

# Data sets that are planned for where they are not at hand: image shape, labels, how many.
_CIFAR10 = DATASETS["cifar10"]
_KNOWN = {
    "cifar10": (_CIFAR10.image_shape, _CIFAR10.num_classes, _CIFAR10.counts["train"]),
    "digits": ((8, 8, 1), 10, 1797),
}
_PLATFORM = "accelerator"  # any but "cpu", whose programs have another form


@dataclasses.dataclass(frozen=True)
class Data:
    """What a plan needs to know of a data set, which need not be at hand."""

    image_shape: tuple[int, int, int]
    num_classes: int
    num_images: int  # 0 for not known: then taken to be read while training, not to lie on devices
    assumed: str = ""  # what had to be assumed, in words


def describe(config: ConfigDict) -> Data:
    """What is known of a config's data: from the data itself, or from the config.

    Raises:
        UserError: the data is not here, and config.data.image_size is 0; or it is here, and wrong.
    """
    data = config.data
    if data.name in _KNOWN:
        return Data(*_KNOWN[data.name])
    bucket = is_bucket(data.path)  # where looking would copy the whole set to this machine
    if data.path and not bucket and as_path(data.path).exists():
        source = sources.load(data)
        return Data(source.image_shape, source.num_classes, len(source))
    if not data.image_size:
        missing = f"config.data.image_size is 0, and {data.path or data.name} is not here"
        raise UserError(f"{missing}; give it, so that the run can be planned without its data")
    labels = 1000 if config.model.class_conditional else 0
    shape = (data.image_size, data.image_size, data.channels or 3)
    missing = f"{data.path} is not looked at" if bucket else f"there is no {data.path or data.name}"
    assumed = f"{missing}: {'x'.join(map(str, shape))}, read ahead"
    return Data(shape, labels, 0, assumed + (f", {labels} labels" if labels else ""))


@dataclasses.dataclass(frozen=True)
class Program:
    """A program of a run, whose cost is counted in units: an update, a batch's sampling step."""

    name: str  # of updates the stage's kind, as "teacher" or "student"; "sampler"
    images: int  # the global batch of one unit
    units: int  # that one call makes; 1 for the sampler
    function: Callable  # made by jax.jit
    arguments: tuple  # what it is called with: ShapeDtypeStructs with their shardings

    def argument_bytes(self) -> int:
        """Bytes of the arguments on one device, without the compiler's padding."""
        return sum(
            math.prod(a.sharding.shard_shape(a.shape)) * a.dtype.itemsize
            for a in jax.tree.leaves(self.arguments)
        )


def programs(config: ConfigDict, stages: list[Stage], data: Data, mesh: Mesh) -> list[Program]:
    """The updates that a config's stages need, and its sampler last, as on an accelerator.

    A teacher that is not trained here has no update.

    Raises:
        UserError: the network does not fit the data.
    """
    config = config.copy_and_resolve_references()
    config.runtime.sampler_loop = "inside"
    trained = {stage.kind: stage for stage in stages if stage.updates}
    updates = [_update(name, config, stage, data, mesh) for name, stage in trained.items()]
    return [*updates, _sampler(config, data, mesh)]


def _update(name: str, config, stage: Stage, data: Data, mesh: Mesh) -> Program:
    count, whole = updates_per_call(config, _PLATFORM), replicated(mesh)
    own = student_config(config) if stage.has_teacher else config
    model, params = _network(own, data, mesh, stage.dropout)
    recipe, teacher = Recipe(model, own, stage, mesh), None
    if stage.has_teacher:  # its weights as run.py gives them to a student's update
        taught_by = config if stage.is_match else own
        source, weights = _network(taught_by, data, mesh)
        weights = jax.eval_shape(lambda p: compute_weights(p, source.dtype), weights)
        teacher = with_shardings(mesh, weights)
        if stage.is_match:
            recipe = dataclasses.replace(recipe, source_model=source, source_config=taught_by)
    number, key = _array((), jnp.int32, whole), _array((), _key_dtype(), whole)
    state = abstract_state(params, make_optimizer(config, stage), mesh)
    batches = _batches(config, data, count, mesh)
    function = make_update(recipe, state, _PLATFORM)
    this_round = jax.tree.map(lambda _: number, Round.of(stage))
    arguments = (state, teacher, *batches, key, this_round)
    return Program(name, config.train.batch_size, count, function, arguments)


def _sampler(config, data: Data, mesh: Mesh) -> Program:
    config = student_config(config)
    size = rounded_up(config.runtime.sampler_batch_size, mesh)
    model, params = _network(config, data, mesh)
    rows, num_steps = batched(mesh), _array((), jnp.int32, replicated(mesh))
    noise = _array((size, *data.image_shape), jnp.float32, rows)
    keys, labels = (_array((size,), dtype, rows) for dtype in (_key_dtype(), jnp.int32))
    arguments = (params, noise, keys, labels, num_steps)
    function = jax.jit(make_sample_fn(model, config, "ddim", mesh, _PLATFORM))
    return Program("sampler", size, 1, function, arguments)


def _network(config, data: Data, mesh: Mesh, dropout: float = 0.0):
    """The network and its abstract weights."""
    try:
        model = build_unet(config, data.image_shape[-1], data.num_classes, dropout)
        return model, abstract_params(model, data.image_shape, mesh)
    except ValueError as error:
        raise UserError(f"config.model does not fit the data: {error}") from error


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
    return jax.eval_shape(lambda: seed_key(0)).dtype
