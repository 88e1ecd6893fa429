"""The Frechet distance against closed forms and against scipy."""

import numpy as np
import pytest
import scipy.linalg

from diffusion_distill.metrics.features import pixels, thumbnails
from diffusion_distill.metrics.frechet import Statistics, frechet_distance, statistics
from diffusion_distill.metrics.names import metric_name


def random_statistics(seed, dim=12, rank=40):
    return statistics(
        np.random.default_rng(seed).normal(size=(rank, dim)) @ np.diag(range(1, 1 + dim))
    )


def test_statistics_are_mean_and_unbiased_covariance():
    features = np.random.default_rng(0).normal(size=(50, 7)) + 3
    got = statistics(features.astype(np.float32))
    np.testing.assert_allclose(got.mean, features.mean(0), rtol=1e-6)
    np.testing.assert_allclose(got.covariance, np.cov(features, rowvar=False), rtol=1e-4, atol=1e-6)
    assert got.covariance.dtype == np.float64


def test_one_dimension_by_hand():
    """N(1, 4) and N(4, 9): (1 - 4)^2 + (2 - 3)^2."""
    a = Statistics(np.array([1.0]), np.array([[4.0]]))
    b = Statistics(np.array([4.0]), np.array([[9.0]]))
    assert frechet_distance(a, b) == pytest.approx(10.0)


def test_commuting_covariances_in_closed_form():
    """Same eigenvectors: the sum of (root a - root b)^2 over the eigenvalues."""
    q = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 6)))[0]
    u, v = np.arange(1.0, 7.0), np.array([2.0, 0.5, 9.0, 4.0, 0.0, 1.0])
    a, b = (Statistics(np.zeros(6), q * w @ q.T) for w in (u, v))
    assert frechet_distance(a, b) == pytest.approx(np.sum((np.sqrt(u) - np.sqrt(v)) ** 2))


@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_scipys_matrix_root(seed):
    a, b = random_statistics(seed), random_statistics(seed + 10)
    root = scipy.linalg.sqrtm(a.covariance @ b.covariance)
    expected = np.sum((a.mean - b.mean) ** 2) + np.trace(
        a.covariance + b.covariance - 2 * root.real
    )
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-8)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-8)


def test_of_a_set_to_itself_is_zero_even_when_singular():
    singular = random_statistics(0, dim=12, rank=5)
    assert np.linalg.matrix_rank(singular.covariance) == 4
    scale = np.trace(singular.covariance)
    assert frechet_distance(singular, singular) == pytest.approx(0.0, abs=1e-6 * scale)


def test_thumbnails_are_means_of_blocks():
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 24, 3), np.uint8)
    features, logits = thumbnails().apply({}, images)
    means = [images[:, 2 * i : 2 * i + 2, 3 * j : 3 * j + 3].astype(float).mean(axis=(1, 2))
             for i in range(8) for j in range(8)]  # fmt: skip
    expected = np.stack(means, axis=1).reshape(2, -1) / 127.5 - 1
    np.testing.assert_allclose(features, expected, atol=1e-6)
    assert logits is None


def test_pixels_are_in_minus_one_to_one():
    images = np.array([[[[0], [255]], [[51], [204]]]], np.uint8)
    np.testing.assert_allclose(pixels().apply({}, images)[0], [[-1.0, 1.0, -0.6, 0.6]], rtol=1e-6)


def test_names_say_what_was_measured():
    assert metric_name("fd", "pixels", 50_000, "train") == "fd_pixels50k_train"
    assert metric_name("fd", "pixels", 1797, "test") == "fd_pixels1797_test"
