"""Accelerators by name: what a chip has and can do, and devices to compile for without one."""

import contextlib
import dataclasses
import math
import os
import re
from collections.abc import Sequence
from importlib import metadata

import jax
from jax.experimental import topologies

from diffusion_distill.errors import UserError

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """What a chip has, and its peaks."""

    platform: str  # "tpu" or "gpu"
    memory: int  # bytes that a program may have
    # Operations a second by config.model.dtype, at JAX's default precision: on TPUs that of float32
    # is bfloat16 multiplication with float32 sums, on GPUs TensorFloat-32.
    flops: dict[str, float]
    bandwidth: float  # of its memory, bytes a second
    network: float  # that it can send at once over all its links, bytes a second
    most: int  # chips in the largest slice, or GPUs in one host
    axes: int = 1  # of a slice's shape


def _tpu(memory, flops, bandwidth, network, most, axes) -> Chip:
    both = {"float32": flops, "bfloat16": flops}
    return Chip("tpu", memory, both, bandwidth, network, most, axes)


def _gpu(memory, tensorfloat32, bfloat16, bandwidth, network) -> Chip:
    both = {"float32": tensorfloat32, "bfloat16": bfloat16}
    return Chip("gpu", memory, both, bandwidth, network, most=8)


# TPUs: https://docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}, sections "System architecture". Its
# interconnect figures count both directions; a chip sends half of that. For v4, which has none
# there: six links of 50 GB/s each way (Jouppi et al. 2023, arXiv:2304.01433). Their memory is of
# 32, 16, 95 and 32 GB; here stands what libtpu 0.0.42 leaves to programs, by its own messages.
# GPUs: NVIDIA's data sheets of A100 80GB SXM, H100 SXM, H200 SXM and L4, without sparsity; NVLink,
# for the L4 PCIe, in one direction.
CHIPS: dict[str, Chip] = {
    "v4": _tpu(int(30.75 * GIB), 275e12, 1200e9, 300e9, most=4096, axes=3),
    "v5e": _tpu(int(15.75 * GIB), 197e12, 819e9, 200e9, most=256, axes=2),
    "v5p": _tpu(int(95.74 * GIB), 459e12, 2765e9, 600e9, most=6144, axes=3),
    "v6e": _tpu(int(31.25 * GIB), 918e12, 1638e9, 400e9, most=256, axes=2),
    "a100": _gpu(80 * GIB, 156e12, 312e12, 2039e9, 300e9),
    "h100": _gpu(80 * GIB, 494e12, 989e12, 3350e9, 450e9),
    "h200": _gpu(int(141e9), 494e12, 989e12, 4800e9, 450e9),
    "l4": _gpu(24 * GIB, 60e12, 121e12, 300e9, 32e9),
}
ALIASES = {"gpu": "h100"}
MOST_SIMULATED = 64  # devices; the CPU compiler takes longer with each
ACCEPTED = (
    f"a TPU slice as v5e:8x8 or v4:2x2x2 ({', '.join(n for n in CHIPS if CHIPS[n].axes > 1)}), "
    f"GPUs of one host as h100:8 ({', '.join(n for n in CHIPS if CHIPS[n].axes == 1)}; gpu is "
    f"{ALIASES['gpu']}), or cpu:8"
)

# libtpu is only to compile: it is neither to ask the network, for minutes, what machine it is on,
# nor to wait for another process that has it, nor to say what it did not find.
_LIBTPU = {
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_MIN_LOG_LEVEL": "3",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices by kind and number."""

    kind: str  # of CHIPS, or "cpu"
    shape: tuple[int, ...]  # of a slice, in chips; (N,) of GPUs and of simulated devices

    @property
    def chip(self) -> Chip | None:
        """None for simulated devices."""
        return CHIPS.get(self.kind)

    @property
    def size(self) -> int:
        """How many chips, each of which is one device to JAX."""
        return math.prod(self.shape)

    @property
    def is_tpu(self) -> bool:
        return self.chip is not None and self.chip.platform == "tpu"

    def __str__(self) -> str:
        return f"{self.kind}:{'x'.join(map(str, self.shape))}"


def parse_topology(text: str) -> Topology:
    """The topology that "v5e:8x8", "v4:2x2x2", "h100:8", "gpu" or "cpu:8" names.

    Raises:
        UserError: there are no such chips, or not in that shape.
    """
    match = re.fullmatch(r"([a-z0-9]+)(?::(\d+(?:x\d+)*))?", text)
    kind = match and ALIASES.get(match[1], match[1])
    if not match or (kind not in CHIPS and kind != "cpu"):
        raise UserError(f"--topology={text}: name {ACCEPTED}")
    shape = tuple(map(int, match[2].split("x"))) if match[2] else (1,)
    topology = Topology(kind, shape)
    axes = topology.chip.axes if topology.chip else 1
    if len(shape) != axes or not topology.size:
        shapes = {1: "a number, as :8", 2: "two, as :4x8", 3: "three, as :2x2x4"}
        raise UserError(f"--topology={text}: the size of {kind} is {shapes[axes]}")
    most = topology.chip.most if topology.chip else MOST_SIMULATED
    if topology.size > most:
        raise UserError(f"--topology={text} has {topology.size} devices; {kind} has at most {most}")
    return topology


def devices(topology: Topology) -> Sequence[jax.Device]:
    """Devices to compile for; of TPUs no more than that, of others simulated on this CPU.

    To be called before JAX has started on anything else: a UserError where it has started with
    fewer CPU devices, and where libtpu is not installed, or knows no such slice.
    """
    jax.config.update("jax_platforms", "cpu")  # what is here is never touched, whatever it is
    if topology.is_tpu:
        return _tpu_devices(topology)
    with contextlib.suppress(RuntimeError):  # JAX has started: what counts is if there are enough
        jax.config.update("jax_num_cpu_devices", topology.size)
    if len(jax.devices("cpu")) < topology.size:
        raise UserError(f"{topology} needs {topology.size} devices, and JAX has started with fewer")
    return jax.devices("cpu")[: topology.size]


def _tpu_devices(topology: Topology) -> Sequence[jax.Device]:
    for name, value in _LIBTPU.items():
        os.environ.setdefault(name, value)
    try:
        import libtpu  # noqa: F401
    except ImportError:
        install = "pip install 'diffusion_distill[tpu]'"
        missing = f"--topology={topology} takes libtpu, which is not installed"
        raise UserError(f"{missing}: {install}") from None
    options = {}
    if topology.kind == "v4":  # without it each of a chip's two cores is a device
        options["chip_config_name"] = "megacore"
    if topology.size < 4:  # less than the host of 2x2 that libtpu takes for granted
        options["chips_per_host_bounds"] = (*topology.shape, 1)[:3]
    try:
        found = topologies.get_topology_desc(str(topology), "tpu", **options).devices
    except (RuntimeError, ValueError) as error:  # JaxRuntimeError among them
        reason = str(error).splitlines()[0]
        raise UserError(f"--topology={topology}: libtpu knows no such slice: {reason}") from error
    if len(found) != topology.size:
        raise UserError(f"--topology={topology}: libtpu makes {len(found)} devices of it")
    return found


def libtpu_version() -> str:
    """The version of the installed libtpu; "" where there is none."""
    try:
        return metadata.version("libtpu")
    except metadata.PackageNotFoundError:
        return ""
