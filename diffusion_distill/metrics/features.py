"""Feature networks, which turn images into what distances compare, and the two without weights."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class FeatureNetwork:
    """A network that turns images into features."""

    name: str  # its key in FEATURES of measure.py
    params: Any  # its weights, a pytree of arrays; {} for none
    # (params, uint8 images [B, H, W, C]) -> (features float32 [B, D], logits float32 [B, K] of a
    # classifier or None). A pure function, to be jitted and sharded by the batch.
    apply: Callable[[Any, jax.Array], tuple[jax.Array, jax.Array | None]]
    fingerprint: str = ""  # tells these weights from others: a sha256; "" for none


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
