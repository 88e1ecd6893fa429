"""Where arrays live: one mesh over all devices, and the shardings that follow from it.

Weights are replicated and batches are split along the mesh's one axis, "data". One device is a
mesh of one, and nothing else in the package asks how many there are.
"""

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from diffusion_distill.errors import UserError


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of all devices of all processes, or of those given, with the one axis "data"."""
    return Mesh(np.asarray(jax.devices() if devices is None else devices), ("data",))


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def batched(mesh: Mesh, leading: int = 0) -> NamedSharding:
    """The axis after `leading` others is split over the devices."""
    return NamedSharding(mesh, PartitionSpec(*[None] * leading, "data"))


def check_divides(mesh: Mesh, field: str, size: int, parts: int = 1) -> None:
    """Raises UserError where a batch in so many parts does not split evenly over the mesh."""
    if size % (mesh.size * parts):
        times = f" times config.runtime.accumulation, {parts}" if parts > 1 else ""
        raise UserError(
            f"config.{field} is {size}; it must be a multiple of the {mesh.size} devices{times}"
        )
