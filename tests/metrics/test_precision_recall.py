"""Precision and recall against a double loop, and where they are known."""

import numpy as np
import pytest

from diffusion_distill.metrics.precision_recall import precision_recall


def direct(points, of, k):
    """The share of points in a ball of `of`, one distance at a time in float64."""
    points, of = points.astype(np.float64), of.astype(np.float64)
    radii = []
    for i, x in enumerate(of):
        others = sorted(np.linalg.norm(x - y) for j, y in enumerate(of) if j != i)
        radii.append(others[k - 1])
    inside = [
        any(np.linalg.norm(x - y) <= r for y, r in zip(of, radii, strict=True)) for x in points
    ]
    return np.mean(inside)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("rows", [7, 1024])
def test_agrees_with_a_double_loop(k, rows):
    rng = np.random.default_rng(0)
    generated = rng.normal(size=(40, 4)).astype(np.float32) * 1.5 + 20
    real = rng.normal(size=(55, 4)).astype(np.float32) + 20
    expected = direct(generated, real, k), direct(real, generated, k)
    assert min(expected) > 0.1
    assert max(expected) < 0.99
    assert precision_recall(generated, real, None, k, rows) == pytest.approx(expected, abs=1e-12)


def test_of_a_set_to_itself_both_are_one():
    x = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    assert precision_recall(x, x) == (1.0, 1.0)


def test_copies_of_the_real_features_cover_them():
    """Balls of no radius hold their own centre, whatever rounding says."""
    x = np.random.default_rng(0).normal(size=(200, 64)).astype(np.float32) + 30
    assert precision_recall(np.repeat(x, 4, axis=0), x) == (1.0, 1.0)


def test_one_mode_of_two_is_precise_and_recalls_half():
    rng = np.random.default_rng(0)
    left, right = (rng.uniform(size=(50, 2)).astype(np.float32) + shift for shift in (0, 100))
    precision, recall = precision_recall(left[:25], np.concatenate([left, right]))
    assert precision == 1.0
    assert 0.4 < recall <= 0.5
    precision, recall = precision_recall(np.concatenate([left, right]), left)
    assert precision == 0.5
    assert recall == 1.0
