"""Which images make up a batch, and how they become network input."""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Batch(NamedTuple):
    """Training images: uint8 [B, H, W, C] and labels int32 [B]; of a resident set, all of them."""

    images: jax.Array
    labels: jax.Array


@functools.lru_cache(maxsize=4)
def _epoch_order(seed: int, rng_id: int, epoch: int, size: int) -> np.ndarray:
    return np.random.default_rng([seed, rng_id, epoch]).permutation(size)


def batch_indices(seed: int, rng_id: int, step: int, batch_size: int, size: int) -> np.ndarray:
    """The global batch after `step` updates of a stage: int32 [batch_size], in 0..size - 1.

    A function of its arguments alone; `rng_id` is its `Stage.rng_id`. Images come in a new random
    order each epoch, each exactly once; a batch may span two epochs.
    """
    positions = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs, within = np.divmod(positions, size)
    parts = [
        _epoch_order(seed, rng_id, int(epoch), size)[within[epochs == epoch]]
        for epoch in np.unique(epochs)
    ]
    return np.concatenate(parts).astype(np.int32)


def batches_of(count: int, batch_size: int, first: int = 0) -> Iterator[np.ndarray]:
    """Indices of images `first` to count - 1, int [batch_size] each, so that one program makes all.

    The last batch is filled up with the last index; whoever asked drops what is too many.
    """
    for start in range(first, count, batch_size):
        yield np.minimum(np.arange(start, start + batch_size), count - 1)


def subset(count: int, size: int) -> np.ndarray:
    """Indices in 0 to count - 1: all, or where they are more, `size` drawn once and for all."""
    if count <= size:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).choice(count, size, replace=False))


def gather(data: Batch, indices: jax.Array) -> Batch:
    """The images and labels at indices [B] of a resident data set, inside the step."""
    return Batch(data.images[indices], data.labels[indices])


def to_network(images: jax.Array, key: jax.Array, random_flip: bool) -> jax.Array:
    """uint8 images -> float32 in [-1, 1], some mirrored left to right where asked."""
    x = images.astype(jnp.float32) / 127.5 - 1.0
    if not random_flip:
        return x
    flip = jax.random.bernoulli(key, shape=(x.shape[0], 1, 1, 1))
    return jnp.where(flip, x[:, :, ::-1, :], x)


def to_uint8(x: jax.Array) -> jax.Array:
    """float images in [-1, 1] -> uint8 by rounding, values outside clipped."""
    return jnp.clip(jnp.round((x.astype(jnp.float32) + 1.0) * 127.5), 0, 255).astype(jnp.uint8)
