"""Precision and recall of one set of features against another."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

K = 3
ROWS = 1024  # whose distances to all others are in memory at once
ROUNDING = 4 * float(np.finfo(np.float32).eps)  # of a squared distance, over |a|^2 + |b|^2


def precision_recall(
    generated: np.ndarray,
    real: np.ndarray,
    real_radii: np.ndarray | None = None,
    k: int = K,
    rows: int = ROWS,
) -> tuple[float, float]:
    """(precision, recall) by k nearest neighbours (Kynkaanniemi et al. 2019, equations 1 and 2).

    Each set's manifold is the union of balls around its features, each as wide as to the k-th
    nearest other feature of the set. Precision is the share of generated features inside that of
    the real ones, recall the share of real ones inside that of the generated. The paper takes
    features of VGG-16; Dhariwal & Nichol 2021, and we with `inception`, those of Inception.

    Distances are computed in float32, `rows` x M at a time; what rounding may have moved out of a
    ball counts as inside, so that copies of one feature are neighbours at no distance.

    Features are [N, D] and [M, D], N and M more than k. `real_radii` is `radii(real)`, where that
    is known: it takes most of the time.
    """
    if real_radii is None:
        real_radii = radii(real, k, rows)
    generated, real = _centred(generated, real), _centred(real, real)
    generated_radii = _radii(generated, k, rows)
    return (
        _share_within(generated, real, real_radii, rows),
        _share_within(real, generated, generated_radii, rows),
    )


def radii(features: np.ndarray, k: int = K, rows: int = ROWS) -> np.ndarray:
    """Squared distance of each feature [N, D] to the k-th nearest other one: float32 [N]."""
    return _radii(_centred(features, features), k, rows)


def _radii(x: jax.Array, k: int, rows: int) -> np.ndarray:
    return np.concatenate([_kth(x[n : n + rows], x, n, k) for n in range(0, len(x), rows)])


def _centred(features: np.ndarray, real: np.ndarray) -> jax.Array:
    """Without the mean of the real ones, less cancels in |a|^2 + |b|^2 - 2 a.b."""
    return jnp.asarray(features - real.mean(axis=0, dtype=np.float64).astype(np.float32))


def _share_within(points: jax.Array, centres: jax.Array, radii: np.ndarray, rows: int) -> float:
    """The share of points in the union of balls."""
    inside = [_inside(points[n : n + rows], centres, radii) for n in range(0, len(points), rows)]
    return float(np.mean(np.concatenate(inside)))


def _squared_distances(a, b):
    # In full precision on accelerators, too: neighbours are closer to each other than to 0.
    products = jnp.matmul(a, b.T, precision="highest")
    return jnp.maximum((a * a).sum(1)[:, None] + (b * b).sum(1) - 2.0 * products, 0.0)


@functools.partial(jax.jit, static_argnames="k")
def _kth(some, all_of_them, first, k):
    """Squared distance to the k-th nearest other, for those from index `first` on."""
    distances = _squared_distances(some, all_of_them)
    itself = first + jnp.arange(len(some))[:, None] == jnp.arange(len(all_of_them))
    return -jax.lax.top_k(-jnp.where(itself, jnp.inf, distances), k)[0][:, -1]


@jax.jit
def _inside(points, centres, radii):
    scale = (points * points).sum(1)[:, None] + (centres * centres).sum(1)
    return (_squared_distances(points, centres) <= radii + ROUNDING * scale).any(axis=1)
