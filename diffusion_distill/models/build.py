"""The network that a config describes."""

import jax.numpy as jnp
import ml_collections

from diffusion_distill.diffusion.process import output_channels
from diffusion_distill.models.unet import UNet


def build_unet(
    config: ml_collections.ConfigDict, image_channels: int, num_classes: int, dropout: float = 0.0
) -> UNet:
    """The U-Net of config.model for images of `image_channels`.

    Args:
        num_classes: of the data; used where config.model.class_conditional.
        dropout: a stage's, acting in training only.
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
        remat=model.remat,
    )
