"""What a plan needs to know of a config's data, which need not be at hand."""

import dataclasses
from pathlib import Path

import ml_collections

from diffusion_distill.data import sources
from diffusion_distill.errors import UserError
from diffusion_distill.paper import DATASETS
from diffusion_distill.storage.buckets import is_bucket

# Data sets that are planned for where they are not at hand: image shape, labels, how many.
_CIFAR10 = DATASETS["cifar10"]
_KNOWN = {
    "cifar10": (_CIFAR10.image_shape, _CIFAR10.num_classes, _CIFAR10.counts["train"]),
    "digits": ((8, 8, 1), 10, 1797),
}


@dataclasses.dataclass(frozen=True)
class Data:
    """What a plan needs to know of a data set.

    Attributes:
        image_shape: (H, W, C).
        num_classes: how many labels it has.
        num_images: how many images; 0 where that is not known: they are then taken to be read
            while training, and not to lie on the devices.
        assumed: what had to be assumed, in words; "" where nothing was.
    """

    image_shape: tuple[int, int, int]
    num_classes: int
    num_images: int
    assumed: str = ""


def describe(config: ml_collections.ConfigDict) -> Data:
    """What is known of a config's data: from the data itself, or from the config.

    Raises:
        UserError: the data is not here, and config.data.image_size does not give its size; or it
            is here, and wrong.
    """
    data = config.data
    if data.name in _KNOWN:
        return Data(*_KNOWN[data.name])
    bucket = is_bucket(data.path)  # where looking would copy the whole set to this machine
    if data.path and not bucket and Path(data.path).exists():
        source = sources.load(data)
        return Data(source.image_shape, source.num_classes, len(source))
    if not data.image_size:
        raise UserError(
            f"config.data.image_size is 0, and {data.path or data.name} is not here; give it, so "
            "that the run can be planned without its data"
        )
    labels = 1000 if config.model.class_conditional else 0
    shape = (data.image_size, data.image_size, data.channels or 3)
    missing = f"{data.path} is not looked at" if bucket else f"there is no {data.path or data.name}"
    assumed = f"{missing}: {'x'.join(map(str, shape))}, read ahead"
    return Data(shape, labels, 0, assumed + (f", {labels} labels" if labels else ""))
