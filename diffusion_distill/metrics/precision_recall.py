"""Precision and recall of one set of features against another."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

K = 3
ROWS = 1024  # whose distances to all others are in memory at once


def precision_recall(
    generated: np.ndarray, real: np.ndarray, k: int = K, rows: int = ROWS
) -> tuple[float, float]:
    """(precision, recall) by k nearest neighbours (Kynkaanniemi et al. 2019, equations 1 and 2).

    Each set's manifold is the union of balls around its features, each as wide as to the k-th
    nearest other feature of the set. Precision is the share of generated features inside that of
    the real ones, recall the share of real ones inside that of the generated. The paper takes
    features of VGG-16; Dhariwal & Nichol 2021, and we with `inception`, those of Inception.

    Distances are computed in float32, `rows` x M at a time.

    Args:
        generated: features [N, D], N more than k.
        real: features [M, D], M more than k.
    """
    # Without the mean, less cancels in |a|^2 + |b|^2 - 2 a.b.
    mean = real.mean(axis=0, dtype=np.float64).astype(np.float32)
    generated, real = jnp.asarray(generated - mean), jnp.asarray(real - mean)
    return _share_within(generated, real, k, rows), _share_within(real, generated, k, rows)


def _share_within(points: jax.Array, of: jax.Array, k: int, rows: int) -> float:
    """The share of points in the union of balls of `of`."""
    radii = jnp.concatenate([_radii(of[n : n + rows], of, n, k) for n in range(0, len(of), rows)])
    inside = [_inside(points[n : n + rows], of, radii) for n in range(0, len(points), rows)]
    return float(np.mean(np.concatenate(inside)))


def _squared_distances(a, b):
    # In full precision on accelerators, too: neighbours are closer to each other than to 0.
    products = jnp.matmul(a, b.T, precision="highest")
    return jnp.maximum((a * a).sum(1)[:, None] + (b * b).sum(1) - 2.0 * products, 0.0)


@functools.partial(jax.jit, static_argnames="k")
def _radii(some, all_of_them, first, k):
    """Squared distance to the k-th nearest other, for those from index `first` on."""
    distances = _squared_distances(some, all_of_them)
    itself = first + jnp.arange(len(some))[:, None] == jnp.arange(len(all_of_them))
    return -jax.lax.top_k(-jnp.where(itself, jnp.inf, distances), k)[0][:, -1]


@jax.jit
def _inside(points, centres, radii):
    return (_squared_distances(points, centres) <= radii).any(axis=1)
