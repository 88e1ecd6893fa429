"""The Frechet distance between two sets of features."""

import functools
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np


class Statistics(NamedTuple):
    """Mean [D] and covariance [D, D] of features, in float64."""

    mean: np.ndarray
    covariance: np.ndarray


class Moments(NamedTuple):
    """What statistics are accumulated as, in float64."""

    count: int  # of the features
    mean: np.ndarray  # their mean, [D]
    scatter: np.ndarray  # the sum of (x - mean)(x - mean)^T over them, [D, D]


def moments(features: np.ndarray) -> Moments:
    """The moments of features [N, D], by the two-pass form: nothing large is subtracted."""
    features = np.asarray(features, np.float64)
    mean = features.mean(axis=0)
    centred = features - mean
    return Moments(len(features), mean, centred.T @ centred)


def merge(a: Moments, b: Moments) -> Moments:
    """The moments of both sets together (Chan, Golub and LeVeque 1979)."""
    count = a.count + b.count
    shift = b.mean - a.mean
    return Moments(
        count,
        a.mean + shift * (b.count / count),
        a.scatter + b.scatter + np.outer(shift, shift) * (a.count * b.count / count),
    )


def to_statistics(of: Moments) -> Statistics:
    """Mean and unbiased covariance; the count is at least 2."""
    return Statistics(of.mean, of.scatter / (of.count - 1))


def statistics(blocks: np.ndarray | Iterable[np.ndarray]) -> Statistics:
    """Mean and unbiased covariance of features [N, D], N at least 2; or of blocks of them."""
    if isinstance(blocks, np.ndarray):
        blocks = [blocks]
    return to_statistics(functools.reduce(merge, map(moments, blocks)))


def rank(of: Statistics) -> int:
    """The rank of the covariance, up to rounding: less than D where it is singular."""
    return int(np.linalg.matrix_rank(of.covariance, hermitian=True))


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """The squared 2-Wasserstein distance between Gaussians of these means and covariances.

    |mean_a - mean_b|^2 + tr(A) + tr(B) - 2 tr((A B)^(1/2)), in float64 (Heusel et al. 2017). With S
    the symmetric root of A, A B has the eigenvalues of S B S, which is symmetric: the trace of its
    root is the sum of the roots of its eigenvalues, and nothing imaginary can arise. Eigenvalues
    that rounding made negative count as 0, so singular covariances are no special case, and no
    multiple of the identity is added to them, as other implementations do.
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
