"""A trained network, whatever file its weights came in, and whether weights fit a config."""

import dataclasses
import math
from collections.abc import Callable, Mapping

import numpy as np
from flax import traverse_util
from jax.sharding import Mesh
from ml_collections import ConfigDict

from diffusion_distill.devices.sharding import place, shardings
from diffusion_distill.errors import UserError
from diffusion_distill.models.build import abstract_params, build_unet
from diffusion_distill.runs import checkpoints
from diffusion_distill.runs.workdir import Workdir
from diffusion_distill.stages import Stage

SHOWN = 3  # differences that a message names; it counts the rest

# Fields of a config that change how a network is computed or trained, but not what it is.
_FREE = {"model": ("dtype",), "diffusion": ("weighting",), "unet2d": ()}
_FREE["scheduler"] = (
    "clip_sample clip_sample_range timestep_spacing steps_offset set_alpha_to_one".split()
)


@dataclasses.dataclass(frozen=True)
class Network:
    """A network, its weights, and all that is needed to sample from it."""

    config: ConfigDict  # whose sections model and diffusion describe it
    image_shape: tuple[int, int, int]  # (H, W, C) of its images
    num_classes: int  # labels that it knows; 0 for none
    # The only number of sampling steps that it takes; None where it was trained in continuous
    # time, or nobody knows: any will do.
    fixed_steps: int | None
    # its averaged weights, on the devices of a mesh; ShapeDtypeStructs with shardings where it is
    # untrained
    params: dict

    @classmethod
    def untrained(
        cls,
        config: ConfigDict,
        image_shape: tuple[int, int, int],
        num_classes: int,
        fixed_steps: int | None,
        mesh: Mesh,
    ) -> "Network":
        """A network without weights: their shapes and shardings alone; nothing is computed.

        Raises UserError where the config's network does not fit such images.
        """
        try:
            model = build_unet(config, image_shape[-1], num_classes)
            params = abstract_params(model, image_shape, mesh)
        except ValueError as error:
            raise UserError(f"config.model does not fit the data: {error}") from error
        return cls(config, image_shape, num_classes, fixed_steps, params)

    @property
    def guidance(self) -> tuple[float, float] | None:
        """The range of w by which its images may be guided; None where it knows no guidance.

        A network that is told w knows those that it was taught; one that was taught without some of
        its labels takes any, at twice the cost.
        """
        if self.config.model.guidance:
            return tuple(self.config.model.guidance)
        return (0.0, math.inf) if self.config.teacher.label_dropout else None

    def is_asked_twice(self, guidance: float) -> bool:
        """Whether images of this w take two evaluations a step, with labels and without."""
        return bool(guidance) and not self.config.model.guidance


def from_stage(
    run: Workdir, stage: Stage, mesh: Mesh, check: Callable[[Network], None] = lambda network: None
) -> Network:
    """A finished stage of a run. Only its averaged weights are read, and verified first.

    `check` gets it, untrained, before anything large is read. Raises
    CheckpointError where the weights are damaged.
    """
    config, fixed_steps = run.network_config(stage), run.fixed_steps(stage)
    network = Network.untrained(config, run.image_shape, run.num_classes, fixed_steps, mesh)
    check(network)
    directory = checkpoints.folder(run.path, stage.name)
    params = checkpoints.load_ema_params(directory, stage.updates, network.params)
    return dataclasses.replace(network, params=params)


def with_weights(untrained: Network, weights: Mapping[str, np.ndarray], where: str) -> Network:
    """An untrained network with weights by name, as float32 arrays on its mesh's devices.

    `where` they are from is for messages. Raises UserError where names or shapes are not those of
    the network.
    """
    _check_shapes(untrained.params, weights, where)
    arrays = {name: np.asarray(w, np.float32) for name, w in weights.items()}
    tree = traverse_util.unflatten_dict(arrays, sep="/")
    return dataclasses.replace(untrained, params=place(tree, shardings(untrained.params)))


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


def check_matches(ours: Network, theirs: Network, where: str) -> None:
    """Raises UserError where a match stage of our network cannot learn from theirs."""
    problem = ""
    if theirs.fixed_steps is not None:
        problem = f"it is made for {theirs.fixed_steps} steps, and must know all times"
    elif ours.image_shape != theirs.image_shape:
        problem = f"its images are {theirs.image_shape}, ours {ours.image_shape}"
    elif ours.num_classes > theirs.num_classes or bool(ours.num_classes) != bool(
        theirs.num_classes
    ):
        problem = f"it knows {theirs.num_classes} labels, ours {ours.num_classes}"
    elif theirs.config.model.guidance:
        problem = "it is told w; set config.match.updates to 0 and config.model.guidance to its own"
    elif ours.config.match.guidance and theirs.guidance is None:
        problem = "config.match.guidance asks for guidance, and it was never taught without labels"
    if problem:
        raise UserError(f"the network in {where} cannot be matched: {problem}")


def same_but_told(ours: Network, theirs: Network) -> bool:
    """Whether our network is theirs to the field, but that it may be told w."""
    sections = ("model", "diffusion", "unet2d", "scheduler")
    fields = [{k: v for s in sections for k, v in n.config[s].items()} for n in (ours, theirs)]
    changed = {"guidance", "dtype", "weighting"}
    return all(a == fields[1][name] for name, a in fields[0].items() if name not in changed)
