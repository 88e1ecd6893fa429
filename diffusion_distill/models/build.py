"""The network and the schedule that a config describes."""

from collections.abc import Callable

import flax
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from diffusion_distill.devices.sharding import with_shardings
from diffusion_distill.diffusion.process import Denoiser, output_channels, predict
from diffusion_distill.diffusion.schedule import cosine_logsnr
from diffusion_distill.models.unet import UNet


def build_unet(
    config: ConfigDict, image_channels: int, num_classes: int, dropout: float = 0.0
) -> UNet:
    """The U-Net of config.model for images of so many channels, and a stage's dropout.

    `num_classes` is the data's; used where config.model.class_conditional.
    """
    model = config.model
    return UNet(
        out_channels=output_channels(config.diffusion.parameterization, image_channels),
        channels=model.channels,
        channel_multipliers=tuple(model.channel_multipliers),
        num_blocks=model.num_blocks,
        emb_channels=model.emb_channels,
        attention_resolutions=tuple(model.attention_resolutions),
        num_heads=model.num_heads or None,
        head_dim=model.head_dim or None,
        num_classes=num_classes if model.class_conditional else 0,
        num_groups=model.num_groups,
        dropout=dropout,
        resample_blocks=model.resample_blocks,
        time_input=model.time_input,
        logsnr_min=config.diffusion.logsnr_min,
        logsnr_max=config.diffusion.logsnr_max,
        dtype=jnp.dtype(model.dtype),
        remat=config.runtime.remat,
        fused_attention=config.runtime.fused_attention,
    )


def init_params(model: UNet, key: jax.Array, image_shape: tuple[int, int, int]) -> dict:
    """The weights of a new network for images of image_shape (H, W, C)."""
    labels = jnp.zeros((1,), jnp.int32) if model.num_classes else None
    with flax.config.temp_flip_flag("fix_rng_separator", False):  # it would draw other weights
        return model.init(key, jnp.zeros((1, *image_shape)), jnp.zeros((1,)), labels)["params"]


def abstract_params(model: UNet, image_shape: tuple[int, int, int], mesh: Mesh) -> dict:
    """Shapes, dtypes and shardings of the weights, without computing any."""
    shapes = jax.eval_shape(lambda: init_params(model, jax.random.key(0), image_shape))
    return with_shardings(mesh, shapes)


def compute_weights(params: dict, dtype: jax.typing.DTypeLike) -> dict:
    """Weights of a U-Net that computes in `dtype`, those that it casts to it cast already.

    Its output is the same to the bit: its convolutions, dense layers and attention cast their
    kernels and biases themselves. What it uses in float32 stays: the scale and bias of each
    GroupNorm, which are all named norm..., and the last convolution, conv_out. For weights that
    are only read, such as a teacher's: half of their memory in bfloat16.
    """

    def cast(path, leaf):
        module = path[-2].key
        return leaf if module.startswith("norm") or module == "conv_out" else leaf.astype(dtype)

    return jax.tree.map_with_path(cast, params)


def make_denoiser(model: UNet, params, labels, config, dropout_keys=None) -> Denoiser:
    """The network with weights and labels bound: (z, logsnr) -> Prediction."""

    def denoiser(z, logsnr):
        known = labels if model.num_classes else None
        output = model.apply({"params": params}, z, logsnr, known, dropout_keys)
        return predict(output, z, logsnr, config.diffusion.parameterization)

    return denoiser


def make_schedule(config: ConfigDict) -> Callable[[jax.Array], jax.Array]:
    """The config's schedule: time in [0, 1] -> logSNR."""
    low, high = config.diffusion.logsnr_min, config.diffusion.logsnr_max
    return lambda t: cosine_logsnr(t, low, high)
