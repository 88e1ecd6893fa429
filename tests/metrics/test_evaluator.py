"""Evaluation of images whose quality is known."""

import numpy as np
import pytest

from configs.digits_distill import get_config
from diffusion_distill.data import sources
from diffusion_distill.metrics.classifier import LabelJudge
from diffusion_distill.metrics.evaluator import Evaluator

SOURCE = sources.digits()


def test_the_judge_knows_real_digits_and_not_wrong_labels():
    judge = LabelJudge(SOURCE.images()[:1200], SOURCE.labels[:1200])
    images, labels = SOURCE.images()[1200:], SOURCE.labels[1200:]
    assert judge.agreement(images, labels) > 0.93
    assert judge.agreement(images, (labels + 1) % 10) < 0.05
    assert judge.held_out_accuracy > 0.95


def test_better_images_score_better():
    config = get_config().eval
    config.num_images = 898
    evaluator = Evaluator(config, SOURCE)
    assert evaluator.metric == "fd_pixels898_train"
    half = np.random.default_rng(0).permutation(len(SOURCE))[:898]
    noise = np.random.default_rng(1).integers(0, 256, (898, 8, 8, 1), np.uint8)
    real = evaluator.measure(SOURCE.images()[half], SOURCE.labels[half])
    faint = evaluator.measure(SOURCE.images()[half] // 2, SOURCE.labels[half])
    random = evaluator.measure(noise, SOURCE.labels[half])
    assert 0 < real["fd_pixels898_train"] < 0.3
    assert real["fd_pixels898_train"] < faint["fd_pixels898_train"] < random["fd_pixels898_train"]
    assert real["label_agreement"] > 0.98
    assert random["label_agreement"] < 0.2


def test_another_count_than_the_name_says_is_refused():
    config = get_config().eval
    with pytest.raises(ValueError, match="takes 1000 images, not 10"):
        Evaluator(config, SOURCE).measure(SOURCE.images()[:10], SOURCE.labels[:10])
