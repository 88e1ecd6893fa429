"""Two neighbours of a row as one pixel of twice the channels: the same network, laid out for TPUs.

A TPU keeps channels in lanes of 128, so that an image of 64 channels takes the memory of one of
128. Here [B, H, W, C] lies as [B, H, W / 2, 2 C]: the channels of a pair's first pixel, then those
of its second. Several such arrays, concatenated, keep theirs one after the other.

`pairs`, as layers take it, are the channels of a pixel in each array that was concatenated: (C,) of
one alone. () says that pixels are not paired.
"""

import jax
import jax.numpy as jnp
import numpy as np


def paired(x: jax.Array) -> jax.Array:
    """[B, H, W, C] -> [B, H, W / 2, 2 C]."""
    batch, height, width, channels = x.shape
    return x.reshape(batch, height, width // 2, 2 * channels)


def unpaired(x: jax.Array) -> jax.Array:
    """The inverse of `paired`, of one array: [B, H, W, 2 C] -> [B, H, 2 W, C]."""
    batch, height, width, channels = x.shape
    return x.reshape(batch, height, 2 * width, channels // 2)


def channels_of(x: jax.Array, pairs: tuple[int, ...]) -> int:
    """Those of a pixel of x."""
    return sum(pairs) or x.shape[-1]


def spread(v: jax.Array, pairs: tuple[int, ...]) -> jax.Array:
    """What holds for each channel, for both pixels of a pair: [..., C] -> [..., 2 C]."""
    if not pairs:
        return v
    return jnp.concatenate([part for part in _split(v, pairs) for _ in range(2)], axis=-1)


def summed(v: jax.Array, pairs: tuple[int, ...]) -> jax.Array:
    """The sum over both pixels of a pair: [..., 2 C] -> [..., C]."""
    if not pairs:
        return v
    halves = [jnp.split(part, 2, axis=-1) for part in _split(v, [2 * c for c in pairs])]
    return jnp.concatenate([first + second for first, second in halves], axis=-1)


def paired_kernel(kernel: jax.Array, pairs: tuple[int, ...]) -> jax.Array:
    """The kernel that does to pairs what `kernel` [h, w, I, O] does to pixels: [h, v, 2 I, 2 O].

    w is odd; v is 1 for a w of 1, and 3 for 3, and half of the values are zeros then, so that it
    takes twice the multiplications. Of convolutions with stride 1 and zeros around the image.
    """
    parts = [_of_one(part) for part in _split(kernel, pairs, axis=2)]
    return jnp.concatenate(parts, axis=2)


def _of_one(kernel):
    height, width, ins, outs = kernel.shape
    to_each_side = (width // 2 + 1) // 2  # pairs that are read
    pairs = 2 * to_each_side + 1

    def of_pixel(number):  # of a pair, 0 or 1
        before = 2 * to_each_side + number - width // 2  # pixels of these pairs before its first
        padded = jnp.pad(kernel, ((0, 0), (before, 2 * pairs - before - width), (0, 0), (0, 0)))
        return padded.reshape(height, pairs, 2 * ins, outs)

    return jnp.concatenate([of_pixel(0), of_pixel(1)], axis=-1)


def _split(v, sizes, axis=-1):
    return jnp.split(v, np.cumsum(sizes)[:-1], axis=axis)
