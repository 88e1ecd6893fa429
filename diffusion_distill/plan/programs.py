"""The programs of a run, traced for devices that need not be there, and what the compiler says."""

import dataclasses
import hashlib
import json
import math
import re
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import jaxlib
import ml_collections
from jax.sharding import Mesh

from diffusion_distill.data import sources
from diffusion_distill.data.batches import Batch
from diffusion_distill.devices import compiler
from diffusion_distill.devices.sharding import batched, replicated, rounded_up, with_shardings
from diffusion_distill.errors import UserError
from diffusion_distill.generate import make_sample_fn
from diffusion_distill.models.build import abstract_params, build_unet, compute_weights
from diffusion_distill.plan.flops import Flops, count_flops
from diffusion_distill.plan.hardware import Topology, libtpu_version
from diffusion_distill.plan.hlo import Collective, collectives
from diffusion_distill.stages import Stage
from diffusion_distill.storage.buckets import is_bucket
from diffusion_distill.storage.files import read_json, write_atomically
from diffusion_distill.training.feed import RESIDENT
from diffusion_distill.training.loop import updates_per_call
from diffusion_distill.training.optimizer import make_optimizer
from diffusion_distill.training.state import abstract_state
from diffusion_distill.training.step import Recipe, Round
from diffusion_distill.training.update import make_update

_PLATFORM = "accelerator"  # any but "cpu", whose programs have another form

LEAST_EFFORT = -1.0  # of the compiler, in -1 to 1; 0 is what a run uses
FORMAT = 3  # of the cached answers

# Data sets that are planned for where they are not at hand: image shape, labels, how many.
_KNOWN = {"cifar10": ((32, 32, 3), 10, 50_000), "digits": ((8, 8, 1), 10, 1797)}


@dataclasses.dataclass(frozen=True)
class Data:
    """What a plan needs to know of a data set.

    Attributes:
        image_shape: (H, W, C).
        num_classes: of its labels.
        num_images: 0 where it is not known: then it is taken to be read ahead.
        assumed: what was, in words; "" where nothing.
    """

    image_shape: tuple[int, int, int]
    num_classes: int
    num_images: int
    assumed: str = ""


def describe(config: ml_collections.ConfigDict) -> Data:
    """The data of a config, at hand or not.

    Raises:
        UserError: it is not at hand, and config.data.image_size does not say its size either; or
            it is there, and wrong.
    """
    data = config.data
    if data.name in _KNOWN:
        return Data(*_KNOWN[data.name])
    bucket = is_bucket(data.path)  # where looking would copy the whole set to this machine
    if data.path and not bucket and Path(data.path).exists():
        source = sources.load(data)
        return Data(source.image_shape, source.num_classes, len(source))
    if not data.image_size:
        raise UserError(
            f"config.data.image_size is 0, and {data.path or data.name} is not here; give it, so "
            "that the run can be planned without its data"
        )
    labels = 1000 if config.model.class_conditional else 0
    shape = (data.image_size, data.image_size, data.channels or 3)
    missing = f"{data.path} is not looked at" if bucket else f"there is no {data.path or data.name}"
    assumed = f"{missing}: {'x'.join(map(str, shape))}, read ahead"
    return Data(shape, labels, 0, assumed + (f", {labels} labels" if labels else ""))


@dataclasses.dataclass(frozen=True)
class Program:
    """A program of a run.

    Attributes:
        name: "teacher" or "student", of an update; "sampler", of one step of a batch.
        images: that one unit of it is for: the global batch.
        units: in one call: updates; 1 for the sampler.
        function: made by jax.jit.
        arguments: its arguments as ShapeDtypeStructs, with their shardings.
    """

    name: str
    images: int
    units: int
    function: Callable
    arguments: tuple

    def argument_bytes(self) -> int:
        """What one device holds of the arguments, without the compiler's padding."""
        return sum(
            math.prod(a.sharding.shard_shape(a.shape)) * a.dtype.itemsize
            for a in jax.tree.leaves(self.arguments)
        )


def programs(
    config: ml_collections.ConfigDict, stages: list[Stage], data: Data, mesh: Mesh
) -> list[Program]:
    """The programs of a config in the form that they have on an accelerator.

    Stages of one kind share one; a teacher that is not trained here has none.

    Raises:
        UserError: the network does not fit the data.
    """
    config = config.copy_and_resolve_references()
    config.runtime.sampler_loop = "inside"
    kinds = {"teacher" if s.teacher is None else "student": s for s in stages if s.updates}
    found = [_update(name, config, stage, data, mesh) for name, stage in kinds.items()]
    return [*found, _sampler(config, data, mesh)]


def _update(name: str, config, stage: Stage, data: Data, mesh: Mesh) -> Program:
    count, platform = updates_per_call(config, _PLATFORM), _PLATFORM
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
    function = make_update(Recipe(model, config, stage, mesh), abstract, platform)
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
    """`data` and `rows` of an update, as training/feed.py makes them."""

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


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a program takes on each device; times and amounts are of one unit: an update, a step.

    Attributes:
        name, images: of the program.
        devices: how many share the work.
        flops: of matrix multiplications and convolutions.
        accessed: bytes that its operations read and write, by the compiler's count; None where it
            did not get so far.
        collectives: what is exchanged.
        arguments, temporaries: bytes of memory, by the compiler's count; `temporaries` includes
            results that are not written over arguments, and the program itself.
        estimate: seconds, by the compiler's own model of the chip; None where it has none.
        fits: False where the compiler gave up for want of memory.
        seconds: that compiling took.
    """

    name: str
    images: int
    devices: int
    flops: float
    accessed: float | None
    collectives: list[Collective]
    arguments: int
    temporaries: int
    estimate: float | None
    fits: bool
    seconds: float

    @property
    def memory(self) -> int:
        return self.arguments + self.temporaries


def cost(
    program: Program, topology: Topology, mesh: Mesh, cache: Path, effort: float = LEAST_EFFORT
) -> Cost:
    """What a program takes, compiled for a topology, or from the cache where it was before.

    The cache is by the program's text, the topology, the effort and the versions of the compilers:
    whatever changes the program, and nothing else, makes a new answer.

    Args:
        cache: folder of the cache; made if it is not there.
        effort: of the compiler.
    """
    traced = program.function.trace(*program.arguments)
    lowered = traced.lower()
    versions = [jax.__version__, jaxlib.__version__, libtpu_version()]
    made_of = [FORMAT, str(topology), effort, *versions, sorted(mesh.shape.items())]
    digest = hashlib.sha256(repr(made_of).encode() + lowered.as_text().encode()).hexdigest()
    path = cache / f"{program.name}-{topology}-{digest[:16]}.json".replace(":", "-")
    if path.exists():
        fields = read_json(path)
        return Cost(**fields | {"collectives": [Collective(**c) for c in fields["collectives"]]})
    result = _compiled(program, count_flops(traced.jaxpr.jaxpr), lowered, mesh, effort)
    cache.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(dataclasses.asdict(result), indent=1))
    return result


def _compiled(program: Program, flops: Flops, lowered, mesh: Mesh, effort: float) -> Cost:
    began, before = time.monotonic(), jax.config.jax_exec_time_optimization_effort
    fields = {
        "name": program.name,
        "images": program.images,
        "devices": mesh.size,
        "flops": flops.total / program.units / mesh.size,
    }
    jax.config.update("jax_exec_time_optimization_effort", effort)
    try:
        compiled = lowered.compile(compiler.options(mesh.devices.flat[0].platform))
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        arguments = program.argument_bytes()
        temporaries = temporaries_wanted(str(error), arguments)
        seconds = time.monotonic() - began
        return Cost(
            **fields, accessed=None, collectives=[], arguments=arguments, temporaries=temporaries,
            estimate=None, fits=False, seconds=seconds,
        )  # fmt: skip
    finally:
        jax.config.update("jax_exec_time_optimization_effort", before)
    memory, counted = compiled.memory_analysis(), compiled.cost_analysis()
    # The compiler counts one turn of each loop; the operations tell how many there are in a unit.
    turns = flops.total / flops.once / program.units
    estimate = counted.get("optimal_seconds", 0.0)
    return Cost(
        **fields,
        accessed=counted["bytes accessed"] * turns,
        collectives=[
            dataclasses.replace(c, count=c.count / program.units, bytes=c.bytes / program.units)
            for c in collectives(compiled.as_text(), mesh.size)
        ],
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.generated_code_size_in_bytes,
        estimate=estimate * turns if estimate > 0 else None,  # compilers without a model say -1
        fits=True,
        seconds=time.monotonic() - began,
    )


def temporaries_wanted(message: str, arguments: int) -> int:
    """Bytes of temporaries, from what libtpu says of too little memory; 0 where it does not."""
    found = re.search(r"HLO temporaries \(([\d.]+)([KMGT]?)\)", message)
    if found:
        return _bytes(*found.groups())
    found = re.search(r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm", message)
    return max(_bytes(*found.groups()) - arguments, 0) if found else 0


def _bytes(number: str, prefix: str) -> int:
    return int(float(number) * 1024 ** " KMGT".index(prefix or " "))
