"""A trained network, whatever file its weights came in, and whether weights fit a config."""

import dataclasses
from collections.abc import Mapping

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
    """A trained network and all that is needed to sample from it.

    Attributes:
        config: whose sections model and diffusion describe it.
        image_shape: (H, W, C) of its images.
        num_classes: labels that it knows; 0 for none.
        fixed_steps: the only number of sampling steps that it takes; None where it was trained in
            continuous time, or nobody knows: any will do.
        params: its averaged weights, on the devices of a mesh.
    """

    config: ml_collections.ConfigDict
    image_shape: tuple[int, int, int]
    num_classes: int
    fixed_steps: int | None
    params: dict


def from_stage(run: Workdir, stage: Stage, mesh: Mesh) -> Network:
    """A finished stage of a run. Only its averaged weights are read, and verified first.

    Raises CheckpointError where they are damaged.
    """
    abstract = abstract_weights(run.config, run.image_shape, run.num_classes, mesh)
    directory = checkpoints.folder(run.path, stage.name)
    params = checkpoints.load_ema_params(directory, stage.updates, abstract)
    return Network(run.config, run.image_shape, run.num_classes, run.fixed_steps(stage), params)


def abstract_weights(
    config: ml_collections.ConfigDict,
    image_shape: tuple[int, int, int],
    num_classes: int,
    mesh: Mesh,
) -> dict:
    """Shapes, dtypes and shardings of the weights of a config's network, without computing any.

    Raises UserError where the network does not fit images of that shape.
    """
    try:
        model = build_unet(config, image_shape[-1], num_classes)
        return abstract_params(model, image_shape, mesh)
    except ValueError as error:
        raise UserError(f"config.model does not fit the data: {error}") from error


def flatten(params: dict) -> dict:
    """A tree of weights as one mapping; names are joined by "/": "down_0.block_0/conv1/kernel"."""
    return traverse_util.flatten_dict(params, sep="/")


def shapes(params: dict) -> dict[str, list[int]]:
    """The shape of every weight of a tree, by its name as in `flatten`."""
    return {name: list(leaf.shape) for name, leaf in flatten(params).items()}


def check_shapes(ours: Mapping[str, list], theirs: Mapping[str, list], where: str) -> None:
    """Raises UserError where weights differ; names the first that do, with both shapes."""
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


def check_meaning(ours: Network, theirs: Network, where: str) -> None:
    """Raises UserError where weights of the same shapes stand for something else; names fields."""
    pairs = {"image shape": (ours.image_shape, theirs.image_shape)}
    for section, free in _FREE.items():
        for name in set(ours.config[section]) - set(free):
            values = ours.config[section][name], theirs.config[section][name]
            pairs[f"config.{section}.{name}"] = values
    lines = [f"{n}: ours {a!r}, theirs {b!r}" for n, (a, b) in sorted(pairs.items()) if a != b]
    if lines:
        raise UserError(f"the network in {where} is another than this config's: {'; '.join(lines)}")


def as_params(weights: Mapping[str, np.ndarray], abstract: dict, where: str) -> dict:
    """Weights by name -> the tree of float32 arrays that `abstract` asks for, where it says.

    Raises UserError as `check_shapes` does.
    """
    check_shapes(shapes(abstract), {name: list(w.shape) for name, w in weights.items()}, where)
    tree = traverse_util.unflatten_dict(
        {name: np.asarray(w, np.float32) for name, w in weights.items()}, sep="/"
    )
    return place(tree, shardings(abstract))
