"""Data sources: images and labels at given indices.

To add one, write a function that returns a `Source` and name it in SOURCES; everything above
works by index. See "Your own images" in README.md.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from diffusion_distill.errors import UserError


@dataclasses.dataclass(frozen=True)
class Source:
    """A data set's training split, in memory.

    Attributes:
        images: uint8 [N, H, W, C].
        labels: int32 [N] in 0..num_classes - 1; all 0 where there are none.
        num_classes: how many labels there are; 0 for data without labels.
        split: which split of which set this is, as metrics name it: "train".
    """

    images: np.ndarray
    labels: np.ndarray
    num_classes: int
    split: str = "train"

    def __len__(self) -> int:
        return len(self.images)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        return self.images.shape[1:]


def digits() -> Source:
    """The handwritten digits that scikit-learn ships: 1,797 real images of 8x8, 10 labels.

    Their 17 grey levels 0..16 become uint8 by rounding 255 / 16 times the level.
    """
    from sklearn import datasets

    bunch = datasets.load_digits()
    images = np.round(bunch.images * (255.0 / 16.0)).astype(np.uint8)[..., None]
    return Source(images=images, labels=bunch.target.astype(np.int32), num_classes=10)


SOURCES: dict[str, Callable[[], Source]] = {"digits": digits}


def load(name: str) -> Source:
    """The source of that name.

    Raises:
        UserError: there is none of that name.
    """
    if name not in SOURCES:
        raise UserError(f"data.name is {name!r}; there are {', '.join(SOURCES)}")
    return SOURCES[name]()
