"""Where arrays live: one mesh over all devices, and the shardings that follow from it.

The mesh has two axes. Batches are split over both. Weights, their averages, Adam's moments and the
teacher's weights are replicated along "data" and split along "fsdp", each by the rule of
`weight_sharding`; with an "fsdp" axis of 1 each device holds them whole. One device is a mesh of
one, and nothing else in the package asks how many there are.
"""

import os
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from diffusion_distill.devices.distributed import several
from diffusion_distill.errors import UserError, reason

AXES = ("data", "fsdp")
SPLIT_FROM = 2**12  # elements; a smaller array costs more to gather than to keep


def make_mesh(fsdp: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of all devices of all processes, or of those given, with the axes "data" and "fsdp".

    `fsdp` neighbours share one copy of the weights (config.runtime.fsdp): all where there are
    fewer, so that one config runs on any hardware. Raises UserError where so many do not divide
    them, or JAX was asked for an accelerator and has none.
    """
    devices = np.asarray(_all_devices() if devices is None else devices)
    fsdp = min(fsdp, devices.size)
    if devices.size % fsdp:
        must = f"it must divide the number of devices, {devices.size}"
        raise UserError(f"config.runtime.fsdp is {fsdp}; {must}")
    return Mesh(devices.reshape(-1, fsdp), AXES)


def _all_devices() -> Sequence[jax.Device]:
    """Those of all processes. With "cuda,cpu" JAX would be content with the CPU."""
    # The older JAX_PLATFORM_NAME, where it is set, is what JAX goes by.
    older = os.environ.get("JAX_PLATFORM_NAME", "")
    variable = "JAX_PLATFORM_NAME" if older else "JAX_PLATFORMS"
    asked, why = older or jax.config.jax_platforms or "", ""
    first = asked.partition(",")[0]
    try:
        devices = jax.devices()
        if first in ("", "cpu") or devices[0].platform != "cpu":
            return devices
    except (RuntimeError, AssertionError) as error:
        if not asked:
            raise
        why = f" ({reason(error)})" if str(error) else ""  # its plugin is not installed
    way_out = f"{variable}=cpu runs on the CPU"
    raise UserError(f"{variable} is {asked}, but there is no {first} here{why}; {way_out}")


def described(mesh: Mesh) -> str:
    """A mesh's devices as a line: how many, of what kind and platform, in how many processes."""
    device = mesh.devices.flat[0]
    kind = "" if device.device_kind == device.platform else f" ({device.device_kind})"
    processes = f" of {jax.process_count()} processes" if several() else ""
    return f"devices: {mesh.size} {device.platform}{kind}{processes}"


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def batched(mesh: Mesh, leading: int = 0) -> NamedSharding:
    """The axis after `leading` others is split over the devices."""
    return NamedSharding(mesh, PartitionSpec(*[None] * leading, AXES))


def weight_sharding(mesh: Mesh, shape: Sequence[int]) -> NamedSharding:
    """How an array of weights, or of what is kept for each weight, is split: the one rule.

    Its largest axis that divides by the "fsdp" axis is split along it, the last of several as
    large. An array of fewer than SPLIT_FROM elements, or without such an axis, is replicated.
    """
    parts = mesh.shape["fsdp"]
    fits = [axis for axis, size in enumerate(shape) if size % parts == 0]
    if parts == 1 or not fits or np.prod(shape) < SPLIT_FROM:
        return replicated(mesh)
    split = max(fits, key=lambda axis: (shape[axis], axis))
    return NamedSharding(mesh, PartitionSpec(*[None] * split, "fsdp"))


def is_split(mesh: Mesh | None) -> bool:
    """Whether weights are split over devices."""
    return mesh is not None and mesh.shape["fsdp"] > 1


def gathered(mesh: Mesh | None, weights):
    """Weights that are split over devices, whole on each, and their gradient, too.

    As they are where there is no mesh, or nothing is split. A network is to have them whole: left
    to itself, XLA's partitioner splits some activations by channels where it finds kernels split
    so, and sends them to and fro, which costs more than the weights. For the same reason a kernel's
    gradient is first whole, then split: else its convolution is cut into pieces that each read all
    activations.
    """
    if not is_split(mesh):
        return weights
    return jax.lax.with_sharding_constraint(weights, replicated(mesh))


def with_shardings(mesh: Mesh, shapes):
    """A tree of arrays or ShapeDtypeStructs as ShapeDtypeStructs placed by `weight_sharding`."""
    return jax.tree.map(
        lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=weight_sharding(mesh, s.shape)),
        shapes,
    )


def shardings(abstract):
    """The shardings of a tree of ShapeDtypeStructs, or of arrays."""
    return jax.tree.map(lambda s: s.sharding, abstract)


def place(arrays, sharding):
    """A tree of host arrays, the same in every process, on the devices.

    Each process places the parts that its own devices hold; none waits for another. There is one
    sharding for all, or a tree of them.
    """
    if not several():
        return jax.device_put(arrays, sharding)

    def put(array, sharding):
        if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(put(jax.random.key_data(array), sharding))
        array = np.asarray(array)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    if isinstance(sharding, jax.sharding.Sharding):
        return jax.tree.map(lambda array: put(array, sharding), arrays)
    return jax.tree.map(put, arrays, sharding)


def check_divides(mesh: Mesh, field: str, size: int, parts: int = 1) -> None:
    """Raises UserError where a batch in so many parts does not split evenly over the mesh."""
    if size % (mesh.size * parts):
        times = f" times config.runtime.accumulation, {parts}" if parts > 1 else ""
        must = f"it must be a multiple of the {mesh.size} devices{times}"
        raise UserError(f"config.{field} is {size}; {must}")


def rounded_up(size: int, mesh: Mesh) -> int:
    """`size` rounded up to a multiple of the mesh's devices."""
    return -(-size // mesh.size) * mesh.size
