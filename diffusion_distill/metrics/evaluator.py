"""Measures a set of images against a reference: all metrics from one pass over its features."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import jax
import numpy as np

from diffusion_distill.errors import UserError
from diffusion_distill.metrics.blocks import Arrays, BlockStore, OnBatch, in_blocks
from diffusion_distill.metrics.classifier import LabelJudge
from diffusion_distill.metrics.features import FeatureNetwork
from diffusion_distill.metrics.frechet import (
    Statistics,
    frechet_distance,
    merge,
    moments,
    rank,
    to_statistics,
)
from diffusion_distill.metrics.inception_score import SPLITS, inception_score
from diffusion_distill.metrics.kid import kernel_distance
from diffusion_distill.metrics.names import check_count, is_biased, metric_name
from diffusion_distill.metrics.precision_recall import K, precision_recall
from diffusion_distill.metrics.reference import Reference


@dataclasses.dataclass(frozen=True)
class Sample:
    """What one pass over a set of images leaves.

    Attributes:
        statistics: of the features.
        arrays: features float32 [N, D]; logits [N, K] and uint8 images [N, H, W, C] where kept.
    """

    statistics: Statistics
    arrays: Arrays


@dataclasses.dataclass(frozen=True)
class Metric:
    """A metric that can be asked for.

    Attributes:
        compute: (sample, reference) -> {label: value}; a label with "_std" is the spread of that
            without.
        needs_features: features of the reference, not its statistics alone.
        needs_logits: of a classifier.
        has_reference: whether it compares with one.
        least: images, on either side.
    """

    compute: Callable[[Sample, Reference], dict[str, float]]
    needs_features: bool = False
    needs_logits: bool = False
    has_reference: bool = True
    least: int = 2


def _fd(sample, reference):
    return {"fd": frechet_distance(sample.statistics, reference.statistics)}


def _kid(sample, reference):
    mean, spread = kernel_distance(sample.arrays["features"], reference.features)
    return {"kid": mean} if spread is None else {"kid": mean, "kid_std": spread}


def _precision_recall(sample, reference):
    precision, recall = precision_recall(
        sample.arrays["features"], reference.features, reference.radii
    )
    return {"precision": precision, "recall": recall}


def _inception_score(sample, reference):
    mean, spread = inception_score(sample.arrays["logits"])
    return {"is": mean, "is_std": spread}


# What config.eval.metrics may name.
METRICS: dict[str, Metric] = {
    "fd": Metric(_fd),
    "kid": Metric(_kid, needs_features=True),
    "precision_recall": Metric(_precision_recall, needs_features=True, least=K + 1),
    "inception_score": Metric(
        _inception_score, needs_logits=True, has_reference=False, least=SPLITS
    ),
}


@dataclasses.dataclass(frozen=True)
class Measured:
    """What was measured of one set of images.

    Attributes:
        values: by the metric's name, in the order asked for; a spread is under the name with
            "_std". Label agreement is under "label_agreement".
        notes: by the metric's name or what was asked for: why there is no value, or what one must
            know of it.
    """

    values: dict[str, float]
    notes: dict[str, str]

    @property
    def metrics(self) -> list[str]:
        """Names of what was measured, spreads and label agreement left out."""
        return [n for n in self.values if not n.endswith("_std") and n != "label_agreement"]


class Evaluator:
    """Measures sets of images against one reference."""

    def __init__(
        self,
        network: FeatureNetwork,
        reference: Reference,
        metrics: Sequence[str] = ("fd",),
        allow_biased: bool = False,
        judge: LabelJudge | None = None,
    ):
        """
        Args:
            network: the one that the reference's features come from.
            reference: what to compare with.
            metrics: names in METRICS.
            allow_biased: whether a Frechet distance of too few images may be measured; its name
                then says so.
            judge: of labels.

        Raises:
            UserError: the reference has too few images.
        """
        self.reference, self.judge = reference, judge
        self._network, self._metrics = network, tuple(metrics)
        self._allow_biased = allow_biased
        if "fd" in metrics and reference.count is not None:
            self._check_count(reference.count, f"the number of images of {reference.name}")

    def measure(
        self,
        images_fn: Callable[[np.ndarray], jax.Array | np.ndarray],
        count: int,
        batch_size: int,
        labels: np.ndarray | None = None,
        store: BlockStore | None = None,
        on_batch: OnBatch = lambda done, count: None,
        only: str | None = None,
    ) -> Measured:
        """All metrics of a set of images that is a function of indices.

        Args:
            images_fn: indices [B] -> uint8 images [B, H, W, C]; stays on the devices where it is.
            count: of the images.
            batch_size: images at once, as many as the network's `apply` can take.
            labels: what the images were asked to show, [N]; for the judge.
            store: where blocks are kept for a measurement that is stopped and goes on.
            on_batch: see `OnBatch`.
            only: one of the metrics asked for, in place of all, and no judge.

        Raises:
            UserError: there are too few images, the reference's features are of another size, or
                none of the metrics can be measured.
        """
        asked = self._metrics if only is None else (only,)
        judge = self.judge if only is None and labels is not None else None
        if "fd" in asked:
            self._check_count(count, "the number of images")
        if count < 2:
            raise UserError(f"the number of images is {count}; it must be at least 2")
        kept = {name for name in asked if name != "fd"}
        keep = ["features"] * bool(kept) + ["logits"] * any(METRICS[n].needs_logits for n in kept)
        keep += ["images"] * (judge is not None)
        batch_fn = self._batch_fn(images_fn, keep)
        blocks = in_blocks(batch_fn, count, batch_size, store, on_batch)
        sample = _gather(blocks, keep, self.reference)
        values, notes = {}, {}
        for name in asked:
            reason = self._why_not(METRICS[name], sample, count)
            if reason:
                notes[name] = reason
                continue
            values |= self._named(METRICS[name].compute(sample, self.reference), count, name)
        if not values:
            raise UserError(f"nothing can be measured: {'; '.join(notes.values())}")
        if "fd" in asked:
            notes |= self._singular(sample, count)
        if judge is not None:
            values["label_agreement"] = judge.agreement(sample.arrays["images"], labels)
        return Measured(values, notes)

    def name(self, label: str, count: int) -> str:
        """The name of a metric of so many images; see `metric_name`."""
        biased = label == "fd" and is_biased(self._network.name, self._least(count))
        reference = "" if label == "is" else self.reference.name
        return metric_name(label, self._network.name, count, reference, biased)

    def _named(self, results: dict[str, float], count: int, metric: str) -> dict[str, float]:
        return {
            self.name(label.removesuffix("_std"), count) + "_std" * label.endswith("_std"): value
            for label, value in results.items()
        }

    def _check_count(self, count: int, what: str) -> None:
        check_count(self._network.name, count, self._allow_biased, what)

    def _least(self, count: int) -> int:
        return min(count, self.reference.count or count)

    def _batch_fn(self, images_fn, keep):
        def batch_fn(indices):
            images = images_fn(indices)
            features, logits = self._network.apply(self._network.params, images)
            arrays = {"features": features}
            if "logits" in keep and logits is not None:
                arrays["logits"] = logits
            if "images" in keep:
                arrays["images"] = images
            return arrays

        return batch_fn

    def _why_not(self, metric: Metric, sample: Sample, count: int) -> str:
        """Why a metric cannot be measured; "" where it can."""
        if metric.needs_logits and "logits" not in sample.arrays:
            return f"the network {self._network.name} gives no logits"
        if metric.needs_features and self.reference.features is None:
            return f"{self.reference.name} has statistics only, and it compares features"
        least = self._least(count) if metric.has_reference else count
        if least < metric.least:
            return f"it takes at least {metric.least} images, not {least}"
        return ""

    def _singular(self, sample: Sample, count: int) -> dict[str, str]:
        ranks = [rank(sample.statistics), rank(self.reference.statistics)]
        if min(ranks) == self.reference.size:
            return {}
        return {
            self.name("fd", count): f"covariances of rank {ranks[0]} (images) and {ranks[1]} "
            f"(reference) in {self.reference.size} dimensions: singular"
        }


def check_size(size: int, reference: Reference) -> None:
    """Raises UserError where features of this size cannot be compared with a reference's."""
    if size != reference.size:
        raise UserError(
            f"features are of size {size}, but those of the reference {reference.name} of size "
            f"{reference.size}: they come from another network, or from images of another size"
        )


def _gather(blocks: Iterable[Arrays], keep: Sequence[str], reference: Reference) -> Sample:
    """Accumulates blocks in order; what is in `keep` is kept."""
    total, kept = None, {}
    for block in blocks:
        check_size(block["features"].shape[1], reference)
        new = moments(block["features"])
        total = new if total is None else merge(total, new)
        for name in keep:
            if name in block:
                kept.setdefault(name, []).append(block[name])
    arrays = {name: np.concatenate(parts) for name, parts in kept.items()}
    return Sample(to_statistics(total), arrays)
