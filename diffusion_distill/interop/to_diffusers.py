"""A network as a folder that diffusers opens: `DDIMPipeline.from_pretrained(OUT)` draws with it.

    python -m diffusion_distill.interop.export --format=diffusers --workdir=runs/digits \\
        --num_steps=4 --out=digits_4

OUT/
  README.md            the model card: what it was made of, measured how, and how an image is drawn
  model_index.json     unet/  scheduler/     as interop/diffusers.py reads them

The paper's U-Net is a UNet2DModel once its embedding of time is a table of vectors, one for each
of K levels (time_embedding_type "learned"). Level k is our time (k + 1) / K, its logSNR told by
betas (trained_betas); with timestep_spacing "trailing" and K a multiple of the steps, diffusers'
times are ours. Its images are ours, within 1e-3, where it clips as we do:
use_clipped_model_output=True.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from ml_collections import ConfigDict

from diffusion_distill.config import base, to_dict
from diffusion_distill.diffusion.discrete import level_of
from diffusion_distill.errors import UserError
from diffusion_distill.generate import checked_guidance
from diffusion_distill.interop import diffusers
from diffusion_distill.models.build import make_levels, make_schedule
from diffusion_distill.models.unet import GUIDANCE_SCALE, TIME_INPUTS, timestep_embedding
from diffusion_distill.models.unet2d import between_rows, level_embedding
from diffusion_distill.runs.network import Network, flatten
from diffusion_distill.storage.files import write_atomically

VERSION = "0.42.1"  # of diffusers, with which it is tested
FILES = ("README.md", "model_index.json", "unet", "scheduler")  # of the folder
LEVELS = 1000  # about so many; rounded down to a multiple of the steps
# Names of the U-Net's layers (models/unet.py) by those of diffusers, where they are others.
_LAYERS = {"dense0": "time_embedding.linear_1", "dense1": "time_embedding.linear_2"}
_LAYERS |= {"norm_out": "conv_norm_out", "class_emb": "class_embedding"}
_BLOCKS = {"mid.block_1": "mid_block.resnets.0", "mid.block_2": "mid_block.resnets.1"}
_BLOCKS |= {"mid.attn_1": "mid_block.attentions.0"}
_PARTS = {"temb_proj": "time_emb_proj", "nin_shortcut": "conv_shortcut", "norm": "group_norm"}
_PARTS |= {"q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
_KINDS = {"block": "resnets", "attn": "attentions"}


def write(network: Network, out: Path, card: str, guidance: float | None = None) -> int:
    """Writes a network to the folder `out`, which is there, with the text of its model card.

    `guidance` is the w that images will have, for a network that is told it. Returns the bytes of
    the weights. Raises UserError where diffusers has no form of the network.
    """
    config, weights = as_unet2d(network, guidance)
    unet, scheduler = _configs(config, network)
    theirs = {}
    for name, weight in weights.items():
        if weight.ndim == 4:
            weight = weight.transpose(3, 2, 0, 1)
        elif weight.ndim == 2 and not diffusers.is_table(name):
            weight = weight.T
            if "conv_shortcut" in name:
                weight = weight[:, :, None, None]
        theirs[diffusers.their_name(name)] = np.ascontiguousarray(weight, np.float32)
    content = safetensors.numpy.save(theirs, {"format": "pt"})
    parts = {"unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", "DDIMScheduler"]}
    index = {"_class_name": "DDIMPipeline", "_diffusers_version": VERSION, **parts}
    for folder in parts:
        (out / folder).mkdir(exist_ok=True)
    write_atomically(out / "unet" / diffusers.WEIGHTS, content)
    files = {"unet/config.json": unet, "scheduler/scheduler_config.json": scheduler}
    for name, fields in (files | {"model_index.json": index}).items():
        write_atomically(out / name, json.dumps(fields, indent=1) + "\n")
    write_atomically(out / "README.md", card)
    return len(content)


def as_unet2d(
    network: Network, guidance: float | None = None
) -> tuple[ConfigDict, dict[str, np.ndarray]]:
    """(config, weights by name) of the UNet2D that gives what the network does at the levels.

    The levels are those of the network's own schedule; between them, the UNet2D is something else.
    Raises UserError where there is none: of a network that predicts "both", for one.
    """
    config = base()
    config.model.architecture = "unet2d"
    config.model.class_conditional = network.config.model.class_conditional
    config.diffusion = network.config.diffusion
    if config.diffusion.parameterization not in diffusers.PARAMETERIZATIONS.values():
        raise UserError(
            f"config.diffusion.parameterization is {config.diffusion.parameterization!r}, which "
            "diffusers has no form of; match it into one that predicts v (config.match.updates)"
        )
    count = max(LEVELS // (network.fixed_steps or 1), 1) * (network.fixed_steps or 1)
    logsnr = make_schedule(network.config)(jnp.arange(1, count + 1) / count)
    config.scheduler.num_train_timesteps = count
    config.scheduler.trained_betas = betas_of(np.asarray(logsnr))
    config.scheduler.timestep_spacing = "trailing"
    weights = flatten(jax.device_get(network.params))
    told = _told(network, weights, guidance)
    if network.config.model.architecture == "unet2d":
        config.unet2d = network.config.unet2d.copy_and_resolve_references()
        table = _time_table(network.config, weights, logsnr)
    else:
        config.unet2d.update(_shape(network))
        model, ends = network.config.model, network.config.diffusion
        time = TIME_INPUTS[model.time_input](logsnr, ends.logsnr_min, ends.logsnr_max)
        table = timestep_embedding(time, model.channels)
        weights = dict(_renamed(weights, len(model.channel_multipliers)))
    weights["time_embedding.linear_2/bias"] = weights["time_embedding.linear_2/bias"] + told
    config.unet2d.time_embedding_type = "learned"
    return config, weights | {"time_proj/embedding": np.asarray(table)}


def _told(network: Network, weights: dict, guidance: float | None) -> np.ndarray | float:
    """What the embedding gets of a w that stays what it is; takes that layer off the weights."""
    if not network.config.model.guidance:
        if guidance:
            way_out = "match it into a student that is told w (config.match.guidance) first"
            raise UserError(f"guidance is {guidance}, which takes two evaluations here; {way_out}")
        return 0.0
    low, high = network.guidance
    if guidance is None:
        raise UserError(f"this network is told w from {low} to {high}: fix it with --guidance")
    w = checked_guidance(guidance, network.guidance)
    kernel, bias = weights.pop("w_emb/kernel"), weights.pop("w_emb/bias")
    embedding = timestep_embedding(jnp.array([GUIDANCE_SCALE * w]), kernel.shape[0])
    return np.asarray(embedding)[0] @ kernel + bias


def _time_table(config: ConfigDict, weights: dict, logsnr: jax.Array) -> jax.Array:
    """What a UNet2D's embedding of time starts from at each logSNR: [K, channels]."""
    fields, level = config.unet2d, level_of(logsnr, make_levels(config))
    if fields.time_embedding_type == "learned":
        return between_rows(jnp.asarray(weights["time_proj/embedding"]), level)
    width, flip = fields.block_out_channels[0], fields.flip_sin_to_cos
    return level_embedding(level, width, flip, fields.freq_shift)


def betas_of(logsnr: np.ndarray) -> tuple[float, ...]:
    """float32 betas of levels of falling logSNR [K].

    Each is chosen by what float32 made of those before it, so that no error adds up.
    """
    abar = 1.0 / (1.0 + np.exp(-logsnr.astype(np.float64)))
    betas, product = [], 1.0
    for level in abar:
        beta = np.float32(1.0 - level / product)
        product *= float(np.float32(1.0) - beta)
        betas.append(float(beta))
    return tuple(betas)


def _shape(network: Network) -> dict:
    """The fields of config.unet2d that make it the paper's U-Net."""
    model, height = network.config.model, network.image_shape[0]
    widths = [model.channels * multiplier for multiplier in model.channel_multipliers]
    if widths[0] != model.channels:
        first = "config.model.channel_multipliers starts with"
        raise UserError(f"{first} {model.channel_multipliers[0]}; diffusers has a form of 1 alone")
    if model.patch_size > 1:
        size = f"config.model.patch_size is {model.patch_size}"
        raise UserError(f"{size}; diffusers has no form of a network on patches")
    attends = [height >> n in model.attention_resolutions for n in range(len(widths))]
    resampling = "resnet" if model.resample_blocks else "conv"
    kinds = [_kind(level, model.resample_blocks) for level in attends]
    head_dim = model.head_dim
    if model.num_heads > 1:
        sizes = {w // model.num_heads for w, a in zip(widths, attends, strict=True) if a}
        sizes.add(widths[-1] // model.num_heads)
        if len(sizes) > 1:
            heads = f"config.model.num_heads is {model.num_heads}, of {sorted(sizes)} channels"
            raise UserError(f"{heads}; diffusers has a form of heads of one size alone")
        head_dim = sizes.pop()
    return {
        "block_out_channels": tuple(widths),
        "down_block_types": tuple(kind.format("Down", "Downsample") for kind in kinds),
        "up_block_types": tuple(kind.format("Up", "Upsample") for kind in reversed(kinds)),
        "layers_per_block": model.num_blocks,
        "time_embedding_dim": model.emb_channels,
        "downsample_padding": 0,
        "downsample_type": resampling,
        "upsample_type": resampling,
        "attention_head_dim": head_dim,
        "norm_num_groups": model.num_groups,
        "attn_norm_num_groups": model.num_groups,
        "norm_eps": 1e-6,
        "resnet_time_scale_shift": "scale_shift",
        "num_class_embeds": network.num_classes if model.class_conditional else 0,
    }


def _kind(attends: bool, resample_blocks: bool) -> str:
    if attends:
        return "Attn{0}Block2D"
    return "Resnet{1}Block2D" if resample_blocks else "{0}Block2D"


def _renamed(weights: dict, levels: int) -> Iterator[tuple[str, np.ndarray]]:
    """Weights of models/unet.py by the names and in the shapes of models/unet2d.py."""
    label_bias = weights.pop("class_emb/bias", 0.0)  # added to every embedding
    weights["dense1/bias"] = weights["dense1/bias"] + label_bias
    for name, weight in weights.items():
        *module, leaf = name.split("/")
        block, part = module[0], module[-1]
        if part in ("q", "k", "v"):
            weight = weight.reshape(*weight.shape[:-2], -1)  # [..., heads, head_dim] as one
        elif part == "proj_out" and leaf == "kernel":
            weight = weight.reshape(-1, weight.shape[-1])
        path, _, kind = block.partition(".")
        way, _, level = path.partition("_")
        if block in _BLOCKS or way in ("down", "up"):
            if block not in _BLOCKS:
                number = int(level) if way == "down" else levels - 1 - int(level)
                what, _, which = kind.partition("_")
                rest = f"{_KINDS[what]}.{which}" if which else f"{what[:-6]}samplers.0"
                block = f"{way}_blocks.{number}.{rest}"
            yield f"{_BLOCKS.get(block, block)}/{_PARTS.get(part, part)}/{leaf}", weight
        else:
            yield f"{_LAYERS.get(block, block)}/{leaf}", weight


def _configs(config: ConfigDict, network: Network) -> tuple[dict, dict]:
    """What unet/config.json and scheduler/scheduler_config.json hold."""
    fields = to_dict(config)
    height, width, channels = network.image_shape
    unet = {"_class_name": "UNet2DModel", "_diffusers_version": VERSION, **fields["unet2d"]}
    for name in ("attention_head_dim", "attn_norm_num_groups", "num_class_embeds"):
        unet[name] = unet[name] or None
    unet |= {"sample_size": height if height == width else [height, width]}
    unet |= {"in_channels": channels, "out_channels": channels, "act_fn": "silu"}
    unet["num_train_timesteps"] = config.scheduler.num_train_timesteps
    unet["time_embedding_dim"] = unet["time_embedding_dim"] or None
    predicted = {ours: theirs for theirs, ours in diffusers.PARAMETERIZATIONS.items()}
    scheduler = {"_class_name": "DDIMScheduler", "_diffusers_version": VERSION}
    scheduler |= fields["scheduler"]
    scheduler["prediction_type"] = predicted[config.diffusion.parameterization]
    scheduler[diffusers.STEPS] = network.fixed_steps
    return unet, scheduler
