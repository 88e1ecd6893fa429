"""Feature networks: what a Frechet distance compares. A mapping, so that another can join."""

from collections.abc import Callable

import numpy as np


def pixels(images: np.ndarray) -> np.ndarray:
    """Raw pixels in [-1, 1] as features: uint8 [N, H, W, C] -> float64 [N, H * W * C].

    For small images only. A distance on these is `fd_pixels`; it is not FID.
    """
    return images.reshape(len(images), -1).astype(np.float64) / 127.5 - 1.0


# Each: uint8 images [N, H, W, C] -> features [N, D].
FEATURES: dict[str, Callable[[np.ndarray], np.ndarray]] = {"pixels": pixels}


def metric_name(features: str, count: int, split: str) -> str:
    """The name of a Frechet distance, which says what was measured.

    `fd_pixels1k_train`: on pixels, 1,000 generated images, against all of the training split.
    """
    number = f"{count // 1000}k" if count % 1000 == 0 else str(count)
    return f"fd_{features}{number}_{split}"
