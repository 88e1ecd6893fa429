"""Folders that diffusers' save_pretrained wrote: a UNet2DModel with the levels it was trained on.

That is the folder of a DDPM or DDIM pipeline, or of the network alone:

    model_index.json                     of a pipeline
    unet/config.json                     or config.json: the network
    unet/diffusion_pytorch_model.safetensors
    scheduler/scheduler_config.json      or scheduler_config.json: the levels, what is predicted

Nothing of diffusers or torch is imported, and no code of the files runs.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from diffusion_distill.config import base
from diffusion_distill.errors import UserError
from diffusion_distill.models.build import make_levels
from diffusion_distill.runs.network import Network, flatten, with_weights
from diffusion_distill.storage import weights
from diffusion_distill.storage.buckets import as_path
from diffusion_distill.storage.files import read_json
from diffusion_distill.terminal.console import say
from diffusion_distill.validate import validate

# In scheduler_config.json, where diffusers skips it: the only number of steps of a student of ours.
STEPS = "_num_inference_steps"
CONFIG, SCHEDULER = "config.json", "scheduler_config.json"
WEIGHTS, PICKLE = "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"
PARAMETERIZATIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x"}
# Fields that we know in one way alone: what it is, also where the field is not there.
_NETWORK = {"act_fn": ("silu", "swish"), "mid_block_type": ("UNetMidBlock2D",)}
_NETWORK |= {"_class_name": ("UNet2DModel",), "class_embed_type": (None,)}
_LEVELS = {"_class_name": ("DDIMScheduler", "DDPMScheduler"), "thresholding": (False,)}
_LEVELS |= {"prediction_type": tuple(PARAMETERIZATIONS)}
# Parts of weights' names as diffusers wrote them until 0.12, by those of today.
_OLD_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
_START_STEPS = 64  # what a sampler takes where nobody says: diffusers' 50, as a power of 2


def is_diffusers(path: str | Path) -> bool:
    """Whether a folder is one that diffusers wrote, of whatever model."""
    path = as_path(path)
    if any((path / name).exists() for name in ("model_index.json", f"unet/{CONFIG}")):
        return True
    fields = read_json(path / CONFIG) if (path / CONFIG).exists() else {}
    return isinstance(fields, dict) and "_class_name" in fields


def describe(path: str | Path) -> Network:
    """The network in a folder, its params left empty; its config has what the folder says.

    Sections unet2d and scheduler have diffusers' own fields; diffusion.parameterization is what is
    predicted, and the range of logSNR is cut to that of the levels. Raises UserError where a file
    is missing or damaged, or a field has a value that is not supported.
    """
    path = as_path(path)
    folder = path / "unet" if (path / "unet").is_dir() else path
    file = folder / CONFIG
    fields = _fields(file)
    _check(fields, _NETWORK, file)
    config = base()
    config.model.architecture = "unet2d"
    _fill(config.unet2d, fields)
    for name in ("down_block_types", "up_block_types"):
        kinds = config.unet2d[name]
        if isinstance(kinds, tuple):
            config.unet2d[name] = tuple(str(kind).removeprefix("UNetRes") for kind in kinds)
    config.model.class_conditional = bool(config.unet2d.num_class_embeds)
    config.distill.start_steps = _START_STEPS
    scheduler = _scheduler(path, folder)
    _fill(config.scheduler, scheduler)
    parameterization = PARAMETERIZATIONS[scheduler.get("prediction_type", "epsilon")]
    config.diffusion.parameterization = parameterization
    try:
        validate(config)
    except UserError as error:
        raise UserError(f"{path} cannot be used: ", *error.parts) from None
    if config.unet2d.time_embedding_type == "learned":
        count = config.scheduler.num_train_timesteps
        _check(fields, {"num_train_timesteps": (count,)}, file)
    levels = make_levels(config)
    config.diffusion.logsnr_min = max(base().diffusion.logsnr_min, _finite(levels[-1]))
    config.diffusion.logsnr_max = min(base().diffusion.logsnr_max, _finite(levels[0]))
    shape, classes = _image_shape(fields, file), config.unet2d.num_class_embeds
    return Network(config, shape, classes, scheduler.get(STEPS), {})


def read(
    path: str | Path, mesh: Mesh, check: Callable[[Network], None] = lambda network: None
) -> Network:
    """The network in a folder.

    `check` gets it, untrained, before anything large is read. Raises UserError as `describe` does,
    and where the weights are missing, damaged, or others than config.json's.
    """
    path = as_path(path)
    said = describe(path)
    said_without_params = said.config, said.image_shape, said.num_classes, said.fixed_steps
    network = Network.untrained(*said_without_params, mesh)
    check(network)
    folder = path / "unet" if (path / "unet").is_dir() else path
    file = folder / WEIGHTS
    if not file.exists() and (folder / PICKLE).exists():
        line = f"UNet2DModel.from_pretrained('{folder}').save_pretrained('{folder}')"
        raise UserError(
            f"{folder / PICKLE} is a pickle, which may run code and is not read; convert it: "
            f'python -c "from diffusers import UNet2DModel; {line}"'
        )
    arrays = weights.decode(weights.read_bytes(file), file)
    return with_weights(network, _renamed(network.params, arrays), str(path))


def their_name(name: str) -> str:
    """diffusers' name for a weight of models/unet2d.py: "conv_in/kernel" is "conv_in.weight"."""
    module, _, leaf = name.rpartition("/")
    return f"{module.replace('/', '.')}.{'bias' if leaf == 'bias' else 'weight'}"


def is_table(name: str) -> bool:
    """Whether a weight of models/unet2d.py has rows as diffusers has them: [labels, channels]."""
    return name.startswith(("class_embedding/", "time_proj/"))


def _renamed(params: dict, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """diffusers' weights by our names, as our layers have them; what we have no name for as is."""
    rest, renamed = dict(arrays), {}
    for name, ours in flatten(params).items():
        theirs = their_name(name)
        if theirs not in rest:
            for new, old in _OLD_NAMES.items():
                theirs = theirs.replace(f".{new}.", f".{old}.")
        if theirs not in rest:
            continue
        weight = rest.pop(theirs)
        if weight.ndim == 4 and weight.shape[2:] == (1, 1) and ours.ndim == 2:
            weight = weight[:, :, 0, 0]  # a convolution of one pixel is a dense layer
        if weight.ndim == 4:
            weight = weight.transpose(2, 3, 1, 0)
        elif weight.ndim == 2 and not is_table(name):
            weight = weight.T
        renamed[name] = weight
    return renamed | rest


def _scheduler(path: Path, folder: Path) -> dict:
    """What a folder's scheduler says; where there is none, what is most often so is taken."""
    files = [path / "scheduler" / SCHEDULER, path / SCHEDULER]
    files.append(folder.parent / "scheduler" / SCHEDULER)  # beside the network of a pipeline
    file = next((file for file in files if file.exists()), None)
    if file is None:
        say(
            f"{path} has no {SCHEDULER}: taken for a network that predicts epsilon on linear betas "
            "from 0.0001 to 0.02 at 1000 levels, as DDPMScheduler() has them"
        )
        return {}
    fields = _fields(file)
    _check(fields, _LEVELS, file)
    steps = fields.get(STEPS)
    if steps is not None and (type(steps) is not int or steps < 1):
        raise UserError(f"{STEPS} in {file} is {steps!r}; it must be an integer of at least 1")
    return fields


def _fields(file: Path) -> dict:
    fields = read_json(file)
    if not isinstance(fields, dict):
        raise UserError(f"{file} is damaged: it holds no fields")
    return fields


def _fill(section: ConfigDict, fields: dict) -> None:
    """A section's fields from those of the same names; null is our 0, or none."""
    with section.ignore_type():  # validate says what is of the wrong type
        for name, default in section.items():
            value = fields.get(name, default)
            value = type(default)() if value is None else value
            section[name] = tuple(value) if isinstance(value, list) else value


def _check(fields: dict, known: Mapping[str, tuple], file: Path) -> None:
    for name, values in known.items():
        value = fields.get(name, values[0])
        if value not in values:
            accepted = " or ".join(map(repr, values))
            raise UserError(f"{name} in {file} is {value!r}; what is supported is {accepted}")


def _image_shape(fields: dict, file: Path) -> tuple[int, int, int]:
    """(H, W, C) of a network's images."""
    size, channels = fields.get("sample_size"), fields.get("in_channels", 3)
    sides = [size, size] if isinstance(size, int) else size
    if type(channels) is not int or channels < 1:
        raise UserError(f"in_channels in {file} is {channels!r}; it must be at least 1")
    whole = isinstance(sides, list) and len(sides) == 2 and all(type(s) is int for s in sides)
    if not whole or min(sides) < 1:
        way_out = "it must be the pixels of a side, or [height, width]"
        raise UserError(f"sample_size in {file} is {size!r}; {way_out}")
    _check(fields, {"out_channels": (channels,)}, file)
    return (*sides, channels)


def _finite(logsnr: np.floating) -> float:
    """A logSNR, or, where there is no bound, what never binds."""
    return float(np.clip(logsnr, -1e9, 1e9))
