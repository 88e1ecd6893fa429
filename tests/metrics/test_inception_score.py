"""The Inception Score against a direct form, and where it is known."""

import numpy as np
import pytest

from diffusion_distill.metrics.inception_score import inception_score


def test_agrees_with_a_direct_form():
    logits = np.random.default_rng(0).normal(size=(40, 7)) * 2
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    scores, order = [], np.random.default_rng(0).permutation(40)
    for n in range(10):
        part = p[order[4 * n : 4 * n + 4]]
        marginal = sum(part) / 4
        kl = [sum(q * np.log(q / m) for q, m in zip(row, marginal, strict=True)) for row in part]
        scores.append(np.exp(sum(kl) / 4))
    mean, spread = inception_score(logits.astype(np.float32))
    assert mean == pytest.approx(np.mean(scores), rel=1e-6)  # logits rounded to float32
    assert spread == pytest.approx(np.std(scores), rel=1e-5)


def test_images_that_come_class_by_class_score_as_in_any_order():
    """A thousand of each of ten classes, each recognised: 10, but for the draw of the splits."""
    mean, spread = inception_score(np.repeat(np.eye(10) * 1e4, 1000, axis=0))
    assert mean == pytest.approx(10.0, rel=0.01)
    assert spread < 0.05


def test_sure_and_even_over_classes_gives_their_number():
    logits = np.tile(np.eye(5) * 1e4, (20, 1))
    assert inception_score(logits, splits=1) == pytest.approx((5.0, 0.0))


def test_always_the_same_answer_gives_one():
    assert inception_score(np.tile([3.0, -1.0, -1e4], (30, 1))) == pytest.approx((1.0, 0.0))
