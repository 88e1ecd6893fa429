"""Feature networks: what distances compare. A mapping from name to loader, so others can join."""

from collections.abc import Callable

import jax.numpy as jnp

from diffusion_distill.metrics import inception
from diffusion_distill.metrics.feature_network import FeatureNetwork


def pixels(weights: str = "") -> FeatureNetwork:
    """Raw pixels in [-1, 1] as features [B, H * W * C]. `weights` is not used.

    For small images only. A distance on these is `fd_pixels`; it is not FID.
    """
    del weights

    def apply(params, images):
        return images.reshape(len(images), -1).astype(jnp.float32) / 127.5 - 1.0, None

    return FeatureNetwork("pixels", {}, apply)


# Each: the path of its weights ("" for where they usually are) -> the network.
FEATURES: dict[str, Callable[[str], FeatureNetwork]] = {
    "pixels": pixels,
    "inception": inception.load,
}


def metric_name(features: str, count: int, split: str) -> str:
    """The name of a Frechet distance, which says what was measured.

    `fd_pixels1k_train`: on pixels, 1,000 generated images, against all of the training split.
    """
    number = f"{count // 1000}k" if count % 1000 == 0 else str(count)
    return f"fd_{features}{number}_{split}"
