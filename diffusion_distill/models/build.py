"""The network and the schedule that a config describes."""

import math
from collections.abc import Callable

import flax
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from diffusion_distill.devices.sharding import gathered, is_split, with_shardings
from diffusion_distill.diffusion.discrete import BETAS, Grid, logsnr_of_levels, rescale_to_zero_snr
from diffusion_distill.diffusion.match import guided
from diffusion_distill.diffusion.process import Denoiser, Prediction, output_channels, predict
from diffusion_distill.diffusion.schedule import cosine_logsnr
from diffusion_distill.errors import UserError
from diffusion_distill.models.unet import NO_LABEL, UNet
from diffusion_distill.models.unet2d import UNet2D


def build_unet(
    config: ConfigDict, image_channels: int, num_classes: int, dropout: float = 0.0
) -> UNet | UNet2D:
    """The network of config.model.architecture for images of so many channels, a stage's dropout.

    `num_classes` is the data's; used where config.model.class_conditional.

    Raises:
        UserError: the data has more labels than config.unet2d.num_class_embeds.
    """
    shared = {
        "out_channels": output_channels(config.diffusion.parameterization, image_channels),
        "dropout": dropout,
        "dtype": jnp.dtype(config.model.dtype),
        "remat": config.runtime.remat,
        "fused_attention": config.runtime.fused_attention,
        "told_guidance": bool(config.model.guidance),
    }
    if config.model.architecture == "unet2d":
        return _unet2d(config, num_classes, shared)
    model = config.model
    return UNet(
        channels=model.channels,
        channel_multipliers=tuple(model.channel_multipliers),
        num_blocks=model.num_blocks,
        emb_channels=model.emb_channels,
        attention_resolutions=tuple(model.attention_resolutions),
        patch_size=model.patch_size,
        num_heads=model.num_heads or None,
        head_dim=model.head_dim or None,
        num_classes=num_classes if model.class_conditional else 0,
        num_groups=model.num_groups,
        pixel_pairs=config.runtime.pixel_pairs,
        resample_blocks=model.resample_blocks,
        time_input=model.time_input,
        logsnr_min=config.diffusion.logsnr_min,
        logsnr_max=config.diffusion.logsnr_max,
        **shared,
    )


def _unet2d(config: ConfigDict, num_classes: int, shared: dict) -> UNet2D:
    fields = dict(config.unet2d)
    known = fields.pop("num_class_embeds")
    if known and num_classes > known:
        raise UserError(
            f"config.unet2d.num_class_embeds is {known}; the data has {num_classes} labels"
        )
    levels = tuple(map(float, make_levels(config)))
    return UNet2D(logsnr_of_levels=levels, num_classes=known, **fields, **shared)


def make_levels(config: ConfigDict) -> np.ndarray:
    """logSNR of the levels that config.scheduler describes, float32 [K]; the last may be -inf."""
    scheduler = config.scheduler
    betas = np.array(scheduler.trained_betas)
    if not betas.size:
        ends = scheduler.beta_start, scheduler.beta_end
        betas = BETAS[scheduler.beta_schedule](*ends, scheduler.num_train_timesteps)
    if scheduler.rescale_betas_zero_snr:
        betas = rescale_to_zero_snr(betas)
    return logsnr_of_levels(betas)


def make_grid(config: ConfigDict) -> Grid:
    """What diffusers' DDIMScheduler does with the levels of a config."""
    scheduler, levels = config.scheduler, tuple(map(float, make_levels(config)))
    limit = scheduler.clip_sample_range if scheduler.clip_sample else math.inf
    spacing, offset = scheduler.timestep_spacing, scheduler.steps_offset
    return Grid(levels, spacing, offset, scheduler.set_alpha_to_one, limit)


def init_params(model: UNet, key: jax.Array, image_shape: tuple[int, int, int]) -> dict:
    """The weights of a new network for images of image_shape (H, W, C)."""
    labels = jnp.zeros((1,), jnp.int32) if model.num_classes else None
    told = {"guidance": jnp.zeros((1,))} if model.told_guidance else {}
    given = jnp.zeros((1, *image_shape)), jnp.zeros((1,)), labels
    with flax.config.temp_flip_flag("fix_rng_separator", False):  # it would draw other weights
        return model.init(key, *given, **told)["params"]


def abstract_params(model: UNet, image_shape: tuple[int, int, int], mesh: Mesh) -> dict:
    """Shapes, dtypes and shardings of the weights, without computing any."""
    shapes = jax.eval_shape(lambda: init_params(model, jax.random.key(0), image_shape))
    return with_shardings(mesh, shapes)


def compute_weights(params: dict, dtype: jax.typing.DTypeLike) -> dict:
    """Weights of a U-Net that computes in `dtype`, those that it casts to it cast already.

    Its output is the same to the bit: its convolutions, dense layers and attention cast their
    kernels and biases themselves. What it uses in float32 stays: the scale and bias of each
    GroupNorm, which all have "norm" in their names, the last convolution, conv_out, and learned
    vectors of levels, time_proj. For weights that are only read, such as a teacher's: half of their
    memory in bfloat16.
    """

    def cast(path, leaf):
        module = path[-2].key if path[1:] else ""  # of a weight of the network's own, none
        kept = "norm" in module or module in ("conv_out", "time_proj")
        return leaf if kept else leaf.astype(dtype)

    return jax.tree.map_with_path(cast, params)


def ready_weights(params: dict, dtype: jax.typing.DTypeLike, mesh: Mesh | None) -> dict:
    """Weights as a network that computes in `dtype` reads them: cast to it, then whole on each
    device. What is cast first, as the bound sees to, is half as much to send in bfloat16.
    """
    cast = compute_weights(params, dtype)
    if is_split(mesh) and jnp.dtype(dtype).itemsize == 2:
        cast = jax.lax.optimization_barrier(cast)
    return gathered(mesh, cast)


def make_denoiser(
    model: UNet, params, labels, config, dropout_keys=None, guidance=None
) -> Denoiser:
    """The network with weights and labels bound: (z, logsnr) -> Prediction.

    `guidance`, w of each [B], is told to a network that is told it; another is asked with and
    without labels then, and its two predictions are guided. None for neither.
    """
    if guidance is not None and not model.told_guidance:
        pair = with_and_without_labels(model, params, labels, config)
        return lambda z, logsnr: guided(*pair(z, logsnr), guidance)
    told = {"guidance": guidance} if model.told_guidance else {}

    def denoiser(z, logsnr):
        known = labels if model.num_classes else None
        output = model.apply({"params": params}, z, logsnr, known, dropout_keys, **told)
        return predict(output, z, logsnr, config.diffusion.parameterization)

    return denoiser


def with_and_without_labels(
    model: UNet, params, labels, config
) -> Callable[[jax.Array, jax.Array], tuple[Prediction, Prediction]]:
    """(z, logsnr) -> the predictions with labels and without, by one call of the network.

    The two of an example are neighbours in its batch of 2 B, so that each device keeps its share.
    """

    def pairs(a, b):
        return jnp.stack([a, b], axis=1).reshape(-1, *a.shape[1:])

    unlabelled = jnp.full_like(labels, NO_LABEL)
    denoiser = make_denoiser(model, params, pairs(labels, unlabelled), config)

    def predictions(z, logsnr):
        both = denoiser(pairs(z, z), pairs(logsnr, logsnr))
        views = [view.reshape(-1, 2, *view.shape[1:]) for view in both]
        return Prediction(*(v[:, 0] for v in views)), Prediction(*(v[:, 1] for v in views))

    return predictions


def make_schedule(config: ConfigDict) -> Callable[[jax.Array], jax.Array]:
    """The config's schedule: time in [0, 1] -> logSNR."""
    low, high = config.diffusion.logsnr_min, config.diffusion.logsnr_max
    return lambda t: cosine_logsnr(t, low, high)
