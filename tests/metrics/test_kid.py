"""The kernel distance against a double loop."""

import numpy as np
import pytest

from diffusion_distill.metrics.kid import kernel_distance, squared_mmd


def direct(a, b):
    def kernel(x, y):
        return (np.dot(x, y) / len(x) + 1.0) ** 3

    n, m = len(a), len(b)
    within_a = sum(kernel(a[i], a[j]) for i in range(n) for j in range(n) if i != j)
    within_b = sum(kernel(b[i], b[j]) for i in range(m) for j in range(m) if i != j)
    between = sum(kernel(x, y) for x in a for y in b)
    return within_a / (n * (n - 1)) + within_b / (m * (m - 1)) - 2 * between / (n * m)


def features(seed, count=30, shift=0.0):
    return np.random.default_rng(seed).normal(size=(count, 6)).astype(np.float32) + shift


def test_agrees_with_a_double_loop_in_float64():
    a, b = features(0, 12), features(1, 9, 0.5)
    expected = direct(a.astype(np.float64), b.astype(np.float64))
    assert squared_mmd(a, b) == pytest.approx(expected, rel=1e-10)


def test_one_subset_of_everything_is_the_whole():
    a, b = features(0), features(1, shift=0.3)
    mean, spread = kernel_distance(a, b, subsets=1, subset_size=30)
    assert mean == pytest.approx(squared_mmd(a, b), rel=1e-10)
    assert spread is None


def test_is_unbiased():
    """Of two draws from one distribution the mean over many is 0, within four standard errors."""
    values = [squared_mmd(features(2 * n, 10), features(2 * n + 1, 10)) for n in range(400)]
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(len(values))
    assert min(values) < 0 < max(values)


def test_a_fixed_seed_and_its_spread():
    a, b = features(0, 100), features(1, 80, 0.3)
    mean, spread = kernel_distance(a, b, subsets=50, subset_size=20)
    assert (mean, spread) == kernel_distance(a, b, subsets=50, subset_size=20)
    assert spread > 0
    # Means over subsets are unbiased estimates of what all features give, which is one of the
    # same; subsets share features, so the error of their mean is well under the spread.
    assert abs(mean - squared_mmd(a, b)) < spread
