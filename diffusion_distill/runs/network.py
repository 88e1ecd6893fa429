"""A trained network, whatever file its weights came in, and whether weights fit a config."""

import dataclasses
from collections.abc import Callable, Mapping

import ml_collections
import numpy as np
from flax import traverse_util
from jax.sharding import Mesh

from diffusion_distill.devices.sharding import place, shardings
from diffusion_distill.errors import UserError
from diffusion_distill.models.build import abstract_params, build_unet
from diffusion_distill.runs import checkpoints
from diffusion_distill.runs.workdir import Workdir
from diffusion_distill.stages import Stage

SHOWN = 3  # differences that a message names; it counts the rest

# Fields of a config that change how a network is computed or trained, but not what it is.
_FREE = {"model": ("dtype",), "diffusion": ("weighting",)}


@dataclasses.dataclass(frozen=True)
class Network:
    """A trained network and all that is needed to sample from it."""

    config: ml_collections.ConfigDict  # whose sections model and diffusion describe it
    image_shape: tuple[int, int, int]  # (H, W, C) of its images
    num_classes: int  # labels that it knows; 0 for none
    # The only number of sampling steps that it takes; None where it was trained in continuous
    # time, or nobody knows: any will do.
    fixed_steps: int | None
    params: dict  # its averaged weights, on the devices of a mesh


def from_stage(
    run: Workdir, stage: Stage, mesh: Mesh, check: Callable[[Network], None] = lambda network: None
) -> Network:
    """A finished stage of a run. Only its averaged weights are read, and verified first.

    `check` gets it before anything large is read, its params ShapeDtypeStructs. Raises
    CheckpointError where the weights are damaged.
    """
    fixed_steps = run.fixed_steps(stage)
    network = Network(run.config, run.image_shape, run.num_classes, fixed_steps, {})
    network = with_abstract_params(network, mesh)
    check(network)
    directory = checkpoints.folder(run.path, stage.name)
    params = checkpoints.load_ema_params(directory, stage.updates, network.params)
    return dataclasses.replace(network, params=params)


def with_abstract_params(network: Network, mesh: Mesh) -> Network:
    """A network with ShapeDtypeStructs with shardings for params; no weights are computed.

    Raises UserError where the network does not fit images of its shape.
    """
    try:
        model = build_unet(network.config, network.image_shape[-1], network.num_classes)
        params = abstract_params(model, network.image_shape, mesh)
    except ValueError as error:
        raise UserError(f"config.model does not fit the data: {error}") from error
    return dataclasses.replace(network, params=params)


def with_weights(
    network: Network, weights: Mapping[str, np.ndarray], mesh: Mesh, where: str
) -> Network:
    """A network with weights by name, as float32 arrays on the devices of a mesh.

    Raises UserError where names or shapes are not those of the network's config.
    """
    network = with_abstract_params(network, mesh)
    _check_shapes(network.params, weights, where)
    arrays = {name: np.asarray(w, np.float32) for name, w in weights.items()}
    tree = traverse_util.unflatten_dict(arrays, sep="/")
    return dataclasses.replace(network, params=place(tree, shardings(network.params)))


def flatten(params: dict) -> dict:
    """A tree of weights as one mapping; names are joined by "/": "down_0.block_0/conv1/kernel"."""
    return traverse_util.flatten_dict(params, sep="/")


def _check_shapes(ours: Mapping, theirs: Mapping, where: str) -> None:
    """Raises UserError where weights differ; names the first that do, with both shapes."""
    ours, theirs = ({n: list(w.shape) for n, w in flatten(x).items()} for x in (ours, theirs))
    lines = [
        f"{name}: ours {ours.get(name, 'none')}, theirs {theirs.get(name, 'none')}"
        for name in sorted(ours.keys() | theirs.keys())
        if ours.get(name) != theirs.get(name)
    ]
    if lines:
        more = f"; and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
        raise UserError(
            f"the weights in {where} are not of the network that config.model describes: "
            f"{'; '.join(lines[:SHOWN])}{more}"
        )


def check_same(ours: Network, theirs: Network, where: str) -> None:
    """Raises UserError where networks differ: in names and shapes of weights, or in fields."""
    _check_shapes(ours.params, theirs.params, where)
    pairs = {"image shape": (ours.image_shape, theirs.image_shape)}
    for section, free in _FREE.items():
        for name in set(ours.config[section]) - set(free):
            values = ours.config[section][name], theirs.config[section][name]
            pairs[f"config.{section}.{name}"] = values
    lines = [f"{n}: ours {a!r}, theirs {b!r}" for n, (a, b) in sorted(pairs.items()) if a != b]
    if lines:
        raise UserError(f"the network in {where} is another than this config's: {'; '.join(lines)}")
