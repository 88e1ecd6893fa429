"""What is to be measured, and what came of it: the same for samplers and for sets of images."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import numpy as np

from diffusion_distill.data.batches import subset
from diffusion_distill.data.source import Source
from diffusion_distill.errors import UserError
from diffusion_distill.generate import Sampler


@dataclasses.dataclass(frozen=True)
class Request:
    """A set of images to measure: a function of indices."""

    # indices int [B] -> uint8 images [B, H, W, C], on the host or left on the devices
    images_fn: Callable[[np.ndarray], jax.Array | np.ndarray]
    count: int  # of the images, N
    batch_size: int  # images at once, as many as the feature network can take
    labels: np.ndarray | None = None  # what they were asked to show, [N]; None where nothing was
    # plain JSON values that tell these images from any others
    made_of: dict = dataclasses.field(default_factory=dict)
    only: str | None = None  # one of the metrics in place of all, and no judge of labels
    # what one must know of the images, for the result's
    notes: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Result:
    """What was measured of one set of images."""

    # by the metric's name, in the order asked for; label agreement is under "label_agreement"
    values: dict[str, float]
    spreads: dict[str, float]  # of the values that have one, by the same names
    # by the metric's name or what was asked for: why there is no value, or what one must know of it
    notes: dict[str, str]

    @property
    def metrics(self) -> list[str]:
        """Names of what was measured, label agreement left out."""
        return [name for name in self.values if name != "label_agreement"]

    def row(self) -> dict:
        """As results.jsonl and evaluations.jsonl have it; a spread is "NAME_std" there."""
        row = {"metrics": self.metrics}
        for name, value in self.values.items():
            row[name] = value
            if name in self.spreads:
                row[f"{name}_std"] = self.spreads[name]
        return row | {"notes": self.notes}


def of_sampler(
    sampler: Sampler, count: int, seed: int, made_of: dict, only: str | None = None
) -> Request:
    """Images 0 to count - 1 that a sampler makes from a seed.

    `made_of` tells its weights, and how it samples, from any others; for `only` see `Request`.

    Raises:
        UserError: count or seed is out of range.
    """
    labels = sampler.checked_labels(seed, count)
    images_fn = functools.partial(sampler.on_devices, seed, labels=labels)
    made_of = made_of | {"num_steps": sampler.num_steps, "seed": seed, "count": count}
    made_of |= {"only": only or ""}
    if sampler.guidance:
        made_of["guidance"] = sampler.guidance
    return Request(images_fn, count, sampler.batch_size(count), labels, made_of, only)


def of_images(source: Source, count: int, batch_size: int) -> Request:
    """`count` images of a source, `batch_size` at once.

    Where it has more they are drawn at random, once and for all: the first ones by name are often
    of a few classes.

    Raises:
        UserError: it has fewer.
    """
    if count > len(source):
        raise UserError(f"{count} images were asked for; {source.name} has {len(source)}")
    chosen, notes = subset(len(source), count), {}
    if count < len(source):
        drawn = f"{count:,} of {len(source):,}, drawn at random, the same at each start"
        notes = {"images": drawn}
    return Request(
        images_fn=lambda indices: source.images(chosen[indices]),
        count=count,
        batch_size=batch_size,
        made_of={"images": source.fingerprint, "count": count, "chosen": "at random"},
        notes=notes,
    )
