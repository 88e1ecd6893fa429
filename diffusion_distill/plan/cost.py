"""What a program costs on each device: compiled for a topology, and kept in a cache."""

import dataclasses
import hashlib
import json
import re
import time
from pathlib import Path

import jax
import jaxlib
from jax.sharding import Mesh

from diffusion_distill.devices import compiler
from diffusion_distill.plan.flops import Flops, count_flops
from diffusion_distill.plan.hardware import Topology, libtpu_version
from diffusion_distill.plan.hlo import Collective, collectives
from diffusion_distill.plan.operations import Operation, operations
from diffusion_distill.plan.programs import Program
from diffusion_distill.storage.files import read_json, write_atomically

LISTED = 50  # operations that a cost keeps, those that touch most
_LEAST_EFFORT = 9  # of XLA: its level O0
FORMAT = 4  # of the cached answers


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a program takes on each device, for one of its units: an update, a sampling step."""

    name: str  # of the program
    images: int
    devices: int  # that share the work
    flops: float  # operations of matrix multiplications and convolutions
    # Bytes that operations read and write, by the compiler's count; None where it did not fit.
    accessed: float | None
    collectives: list[Collective]  # what devices send one another
    arguments: int  # bytes of memory for what it is called with
    # Bytes beside these, with the program and those results that are not written over arguments.
    temporaries: int
    estimate: float | None  # seconds, by the compiler's own model of the chip; None for no model
    fits: bool  # False where there was too little memory to compile it
    seconds: float  # that compiling took
    operations: list[Operation] = ()  # that touch most, by their source; `()` where it did not fit

    @property
    def memory(self) -> int:
        """Bytes of memory in all."""
        return self.arguments + self.temporaries


def cost(
    program: Program, topology: Topology, mesh: Mesh, cache: Path, full_effort: bool = False
) -> Cost:
    """The cost of a program on the mesh of a topology: from the cache, or else by compiling it.

    An answer is kept by the program's text, the topology, the effort and the compilers' versions,
    so that it serves every config that has the same program. `full_effort` compiles as a run does.
    """
    traced = program.function.trace(*program.arguments)
    lowered = traced.lower()
    versions = [jax.__version__, jaxlib.__version__, libtpu_version()]
    made_of = [FORMAT, str(topology), full_effort, *versions, sorted(mesh.shape.items())]
    digest = hashlib.sha256(repr(made_of).encode() + lowered.as_text().encode()).hexdigest()
    path = cache / f"{program.name}-{topology}-{digest[:16]}.json".replace(":", "-")
    if path.exists():
        fields = read_json(path)
        kinds = {"collectives": Collective, "operations": Operation}
        lists = {name: [kind(**f) for f in fields[name]] for name, kind in kinds.items()}
        return Cost(**fields | lists)
    result = _compiled(program, count_flops(traced.jaxpr.jaxpr), lowered, mesh, full_effort)
    cache.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(dataclasses.asdict(result), indent=1))
    return result


def _compiled(program: Program, flops: Flops, lowered, mesh: Mesh, full_effort: bool) -> Cost:
    began = time.monotonic()
    of = {"name": program.name, "images": program.images, "devices": mesh.size}
    of["flops"] = flops.total / program.units / mesh.size
    try:
        options = compiler.options(mesh.devices.flat[0].platform) or {}
        if not full_effort:
            options = options | {"optimization_level": _LEAST_EFFORT}
        compiled = lowered.compile(options)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        arguments = program.argument_bytes()
        return Cost(
            **of, accessed=None, collectives=[], arguments=arguments,
            temporaries=temporaries_wanted(str(error), arguments), estimate=None, fits=False,
            seconds=time.monotonic() - began,
        )  # fmt: skip
    memory, counted = compiled.memory_analysis(), compiled.cost_analysis()
    # The compiler counts one turn of each loop; the operations tell how many there are in a unit.
    turns = flops.total / flops.once / program.units
    estimate = counted.get("optimal_seconds", 0.0)
    beyond_arguments = memory.output_size_in_bytes - memory.alias_size_in_bytes

    def of_a_unit(counted):
        each = {name: getattr(counted, name) / program.units for name in ("count", "bytes")}
        return dataclasses.replace(counted, **each)

    text = compiled.as_text()
    sent = [of_a_unit(c) for c in collectives(text, mesh.size)]
    touching = [of_a_unit(o) for o in operations(text)[:LISTED]]
    return Cost(
        **of, accessed=counted["bytes accessed"] * turns, collectives=sent,
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes + beyond_arguments
        + memory.generated_code_size_in_bytes,
        estimate=estimate * turns if estimate > 0 else None,  # compilers without a model say -1
        fits=True, seconds=time.monotonic() - began, operations=touching,
    )  # fmt: skip


def temporaries_wanted(message: str, arguments: int) -> int:
    """Bytes of temporaries that libtpu says are too many; 0 where its message has no number.

    One of its messages counts the bytes of arguments along.
    """
    for pattern, along in (
        (r"HLO temporaries \(([\d.]+)([KMGT]?)\)", 0),
        (r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm", arguments),
    ):
        if found := re.search(pattern, message):
            number, prefix = found.groups()
            return max(int(float(number) * 1024 ** " KMGT".index(prefix or " ")) - along, 0)
    return 0
