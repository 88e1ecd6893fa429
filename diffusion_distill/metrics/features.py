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


def thumbnails(weights: str = "") -> FeatureNetwork:
    """Images averaged down to 8x8, in [-1, 1], as features [B, 64 C]. `weights` is not used.

    For a quick look at images of any size, and for tests: of what is in an image, it sees where it
    is light. Height and width must be multiples of 8.
    """
    del weights

    def apply(params, images):
        batch, height, width, channels = images.shape
        x = images.reshape(batch, 8, height // 8, 8, width // 8, channels).astype(jnp.float32)
        return x.mean(axis=(2, 4)).reshape(batch, -1) / 127.5 - 1.0, None

    return FeatureNetwork("thumbnails", {}, apply)


# Each: the path of its weights ("" for where they usually are) -> the network.
FEATURES: dict[str, Callable[[str], FeatureNetwork]] = {
    "pixels": pixels,
    "thumbnails": thumbnails,
    "inception": inception.load,
}
