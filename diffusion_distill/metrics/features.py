"""Feature networks: what distances compare. A mapping from name to loader, so others can join."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class FeatureNetwork:
    """A network that turns images into features.

    Attributes:
        name: its key in FEATURES.
        params: its weights, a pytree of arrays; {} for none.
        apply: (params, uint8 images [B, H, W, C]) -> (features float32 [B, D], logits float32
            [B, K] of a classifier or None). A pure function, to be jitted and sharded by the batch.
        fingerprint: tells these weights from others: a sha256; "" for none.
    """

    name: str
    params: Any
    apply: Callable[[Any, jax.Array], tuple[jax.Array, jax.Array | None]]
    fingerprint: str = ""


def pixels(weights: str = "") -> FeatureNetwork:
    """Raw pixels in [-1, 1] as features [B, H * W * C]. `weights` is not used.

    For small images only. A distance on these is `fd_pixels`; it is not FID.
    """
    del weights

    def apply(params, images):
        return images.reshape(len(images), -1).astype(jnp.float32) / 127.5 - 1.0, None

    return FeatureNetwork("pixels", {}, apply)


# Each: the path of its weights ("" for where they usually are) -> the network.
FEATURES: dict[str, Callable[[str], FeatureNetwork]] = {"pixels": pixels}
