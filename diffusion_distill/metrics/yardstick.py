"""The metrics there are, and all that are asked for from one pass over a set of images."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from diffusion_distill.errors import UserError
from diffusion_distill.metrics import frechet
from diffusion_distill.metrics.blocks import Arrays, BlockStore, OnBatch, in_blocks
from diffusion_distill.metrics.classifier import LabelJudge
from diffusion_distill.metrics.features import FeatureNetwork
from diffusion_distill.metrics.frechet import Statistics, frechet_distance
from diffusion_distill.metrics.inception_score import SPLITS, inception_score
from diffusion_distill.metrics.kid import kernel_distance
from diffusion_distill.metrics.names import check_count, is_biased, metric_name
from diffusion_distill.metrics.precision_recall import K, precision_recall
from diffusion_distill.metrics.reference import Reference
from diffusion_distill.metrics.request import Request, Result


@dataclasses.dataclass(frozen=True)
class Sample:
    """What one pass over a set of images leaves."""

    statistics: Statistics  # of the features
    # features float32 [N, D]; logits [N, K] and uint8 images [N, H, W, C] where kept
    arrays: Arrays


@dataclasses.dataclass(frozen=True)
class Metric:
    """A metric that can be asked for."""

    # (sample, reference) -> {label: (value, its spread)}; None where it has no spread
    compute: Callable[[Sample, Reference], dict[str, tuple[float, float | None]]]
    needs_features: bool = False  # features of the reference, not its statistics alone
    needs_logits: bool = False  # of a classifier
    has_reference: bool = True  # whether it compares with one
    least: int = 2  # images, on either side


def _fd(sample, reference):
    return {"fd": (frechet_distance(sample.statistics, reference.statistics), None)}


def _kid(sample, reference):
    return {"kid": kernel_distance(sample.arrays["features"], reference.features)}


def _precision_recall(sample, reference):
    features = sample.arrays["features"]
    precision, recall = precision_recall(features, reference.features, reference.radii)
    return {"precision": (precision, None), "recall": (recall, None)}


def _inception_score(sample, reference):
    return {"is": inception_score(sample.arrays["logits"])}


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
class Yardstick:
    """What images are measured by."""

    network: FeatureNetwork  # turns images into features
    reference: Reference  # what they are compared with; its features come from the same network
    metrics: tuple[str, ...] = ("fd",)  # names in METRICS, in order
    # whether a Frechet distance of too few images may be measured; its name then says so
    allow_biased: bool = False
    judge: LabelJudge | None = None  # of labels, where the images have some

    def measure(
        self,
        request: Request,
        store: BlockStore | None = None,
        on_batch: OnBatch = lambda done, count: None,
    ) -> Result:
        """All metrics of a set of images, from one pass over it.

        `store` keeps blocks for a measurement that is stopped and goes on.

        Raises:
            UserError: there are too few images on either side, the reference's features are of
                another size, or none of the metrics can be measured.
        """
        count, labels = request.count, request.labels
        asked = self.metrics if request.only is None else (request.only,)
        judge = self.judge if request.only is None and labels is not None else None
        if "fd" in asked:
            real = self.reference.count
            if real is not None:
                self._check_count(real, f"the number of images of {self.reference.name}")
            self._check_count(count, "the number of images")
        if count < 2:
            raise UserError(f"the number of images is {count}; it must be at least 2")
        kept = {name for name in asked if name != "fd"}
        keep = ["features"] * bool(kept) + ["logits"] * any(METRICS[n].needs_logits for n in kept)
        keep += ["images"] * (judge is not None)
        batch_fn = self._batch_fn(request.images_fn, keep)
        blocks = in_blocks(batch_fn, count, request.batch_size, store, on_batch)
        sample = _accumulate(blocks, keep, self.reference)
        values, spreads, notes = {}, {}, {}
        for name in asked:
            if reason := self._why_not(METRICS[name], sample, count):
                notes[name] = reason
                continue
            for label, (value, spread) in METRICS[name].compute(sample, self.reference).items():
                metric = self.name(label, count)
                values[metric] = value
                if spread is not None:
                    spreads[metric] = spread
        if not values:
            raise UserError(f"nothing can be measured: {'; '.join(notes.values())}")
        if "fd" in asked:
            notes |= self._singular(sample, count)
        if judge is not None:
            values["label_agreement"] = judge.agreement(sample.arrays["images"], labels)
        return Result(values, spreads, notes)

    def name(self, label: str, count: int) -> str:
        """The name of a metric of so many images; see `metric_name`."""
        biased = label == "fd" and is_biased(self.network.name, self._least(count))
        reference = "" if label == "is" else self.reference.name
        return metric_name(label, self.network.name, count, reference, biased)

    def _check_count(self, count: int, what: str) -> None:
        check_count(self.network.name, count, self.allow_biased, what)

    def _least(self, count: int) -> int:
        return min(count, self.reference.count or count)

    def _batch_fn(self, images_fn, keep):
        def batch_fn(indices):
            images = images_fn(indices)
            features, logits = self.network.apply(self.network.params, images)
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
            return f"the network {self.network.name} gives no logits"
        if metric.needs_features and self.reference.features is None:
            return f"{self.reference.name} has statistics only, and it compares features"
        least = self._least(count) if metric.has_reference else count
        if least < metric.least:
            return f"it takes at least {metric.least} images, not {least}"
        return ""

    def _singular(self, sample: Sample, count: int) -> dict[str, str]:
        ranks = [frechet.rank(s.statistics) for s in (sample, self.reference)]
        if min(ranks) == self.reference.size:
            return {}
        both = f"covariances of rank {ranks[0]} (images) and {ranks[1]} (reference)"
        return {self.name("fd", count): f"{both} in {self.reference.size} dimensions: singular"}


def check_feature_size(size: int, reference: Reference) -> None:
    """Raises UserError where features of this size cannot be compared with a reference's."""
    if size != reference.size:
        raise UserError(
            f"features are of size {size}, but those of the reference {reference.name} of size "
            f"{reference.size}: they come from another network, or from images of another size"
        )


def _accumulate(blocks: Iterable[Arrays], keep: Sequence[str], reference: Reference) -> Sample:
    """Accumulates blocks in order; what is in `keep` is kept."""
    total, kept = None, {}
    for block in blocks:
        check_feature_size(block["features"].shape[1], reference)
        new = frechet.moments(block["features"])
        total = new if total is None else frechet.merge(total, new)
        for name in keep:
            if name in block:
                kept.setdefault(name, []).append(block[name])
    arrays = {name: np.concatenate(pieces) for name, pieces in kept.items()}
    return Sample(frechet.to_statistics(total), arrays)
