"""What a feature network is."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class FeatureNetwork:
    """A network that turns images into features."""

    name: str  # its key in FEATURES
    params: Any  # its weights, a pytree of arrays; {} for none
    # (params, uint8 images [B, H, W, C]) -> (features float32 [B, D], logits float32 [B, K] of a
    # classifier or None). A pure function, to be jitted and sharded by the batch.
    apply: Callable[[Any, jax.Array], tuple[jax.Array, jax.Array | None]]
    fingerprint: str = ""  # tells these weights from others: a sha256; "" for none
