"""The Frechet distance between two sets of features."""

from typing import NamedTuple

import numpy as np


class Statistics(NamedTuple):
    """Mean [D] and covariance [D, D] of features, in float64."""

    mean: np.ndarray
    covariance: np.ndarray


def statistics(features: np.ndarray) -> Statistics:
    """Mean and unbiased covariance of features [N, D], N at least 2."""
    features = np.asarray(features, np.float64)
    mean = features.mean(axis=0)
    centred = features - mean
    return Statistics(mean, centred.T @ centred / (len(features) - 1))


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """The squared 2-Wasserstein distance between Gaussians of these means and covariances.

    |mean_a - mean_b|^2 + tr(A) + tr(B) - 2 tr((A B)^(1/2)), in float64. With S the symmetric root
    of A, A B has the eigenvalues of S B S, which is symmetric: the trace of its root is the sum of
    the roots of its eigenvalues, and nothing imaginary can arise. Eigenvalues that rounding made
    negative count as 0, so singular covariances are no special case.
    """
    values, vectors = np.linalg.eigh(a.covariance)
    root = vectors * np.sqrt(np.maximum(values, 0.0)) @ vectors.T
    cross = np.linalg.eigvalsh(root @ b.covariance @ root)
    difference = a.mean - b.mean
    return float(
        difference @ difference
        + np.trace(a.covariance)
        + np.trace(b.covariance)
        - 2.0 * np.sqrt(np.maximum(cross, 0.0)).sum()
    )
