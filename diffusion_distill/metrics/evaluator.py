"""Measures images against a data set, as config.eval says."""

import ml_collections
import numpy as np

from diffusion_distill.data.source import Source
from diffusion_distill.metrics.classifier import LabelJudge
from diffusion_distill.metrics.features import FEATURES, metric_name
from diffusion_distill.metrics.frechet import frechet_distance, statistics


class Evaluator:
    """Measures sets of images against the training split of one data set.

    Attributes:
        metric: the name of the distance, with its count and its reference.
        judge: of labels; None where config.eval.label_agreement is off.
    """

    def __init__(self, config: ml_collections.ConfigDict, source: Source):
        """`config` is a run's config.eval."""
        self._count = config.num_images
        self._network = FEATURES[config.features]("")
        self._reference = statistics(self._features(source.images()))
        self.metric = metric_name(config.features, config.num_images, source.split)
        self.judge = None
        if config.label_agreement:
            self.judge = LabelJudge(source.images(), source.labels)

    def _features(self, images: np.ndarray) -> np.ndarray:
        return np.asarray(self._network.apply(self._network.params, images)[0])

    def measure(self, images: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """The distance, and label agreement where there is a judge.

        Args:
            images: uint8 [N, H, W, C], N as many as the metric's name says.
            labels: what they were asked to show, [N].

        Raises:
            ValueError: there are more or fewer images.
        """
        if len(images) != self._count:
            raise ValueError(f"{self.metric} takes {self._count} images, not {len(images)}")
        distance = frechet_distance(statistics(self._features(images)), self._reference)
        result = {self.metric: distance}
        if self.judge is not None:
            result["label_agreement"] = self.judge.agreement(images, labels)
        return result
