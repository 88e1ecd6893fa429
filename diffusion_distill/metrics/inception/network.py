"""The Inception network of FID, layer by layer, and how images enter it.

It is the TensorFlow graph of 2015-12-05 that the Inception Score (Salimans et al. 2016) and FID
(Heusel et al. 2017) are defined on. It is Inception-v3 (Szegedy et al. 2015) but for these, which
change FID if they are missed:

- batch norm has no gamma, and epsilon 0.001;
- average pools leave the padding out of the count;
- the last block, mixed_10, has a max pool where Inception-v3 has an average pool;
- images are resized as TensorFlow 1 did, with pixel i of the output at i * size / 299.

All arithmetic is float32, with precision HIGHEST: by default TPUs multiply in bfloat16 and GPUs in
TF32, and FID would depend on the hardware. Names are those of the graph.
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

SIZE = 299  # of an image inside the network
EPSILON = 0.001


class Conv(nn.Module):
    """Convolution without bias, batch norm with fixed statistics and without gamma, ReLU."""

    channels: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: str = "SAME"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (*self.kernel, x.shape[-1], self.channels)
        weight = self.param("weight", nn.initializers.he_normal(), shape)
        beta = self.param("beta", nn.initializers.zeros, shape[-1:])
        mean = self.param("mean", nn.initializers.zeros, shape[-1:])
        var = self.param("var", nn.initializers.ones, shape[-1:])
        how = {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), "precision": lax.Precision.HIGHEST}
        strides = (self.stride, self.stride)
        x = lax.conv_general_dilated(x, weight, strides, self.padding, **how)
        return nn.relu((x - mean) * lax.rsqrt(var + EPSILON) + beta)


class Tower(nn.Module):
    """Convolutions in a row: of these channels, with these kernels.

    The last may have a stride of 2; it then has no padding, all others keep height and width.
    """

    channels: tuple[int, ...]
    kernels: tuple[tuple[int, int], ...]
    last_stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for i, (channels, kernel) in enumerate(zip(self.channels, self.kernels, strict=True)):
            halves = self.last_stride > 1 and i == len(self.channels) - 1
            how = (self.last_stride, "VALID") if halves else ()
            x = Conv(channels, kernel, *how, name=f"conv_{i}" if i else "conv")(x)
        return x


class Mixed(nn.Module):
    """Towers beside one another: what `towers` makes of x, joined along the channels."""

    towers: Callable[[jax.Array], list[jax.Array]]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.concatenate(self.towers(x), axis=-1)


def at_35(pool_channels: int, x: jax.Array) -> list[jax.Array]:
    """At 35x35 (mixed, mixed_1, mixed_2)."""
    return [
        Conv(64, name="conv")(x),
        Tower((48, 64), ((1, 1), (5, 5)), name="tower")(x),
        Tower((64, 96, 96), ((1, 1), (3, 3), (3, 3)), name="tower_1")(x),
        Tower((pool_channels,), ((1, 1),), name="tower_2")(average_pool(x)),
    ]


def from_35_to_17(x: jax.Array) -> list[jax.Array]:
    """From 35x35 to 17x17 (mixed_3)."""
    return [
        Conv(384, (3, 3), 2, "VALID", name="conv")(x),
        Tower((64, 96, 96), ((1, 1), (3, 3), (3, 3)), last_stride=2, name="tower")(x),
        halving_pool(x),
    ]


def at_17(c: int, x: jax.Array) -> list[jax.Array]:
    """At 17x17 (mixed_4 to mixed_7), with c channels inside of its towers."""
    across, down = (1, 7), (7, 1)
    return [
        Conv(192, name="conv")(x),
        Tower((c, c, 192), ((1, 1), across, down), name="tower")(x),
        Tower((c, c, c, c, 192), ((1, 1), down, across, down, across), name="tower_1")(x),
        Tower((192,), ((1, 1),), name="tower_2")(average_pool(x)),
    ]


def from_17_to_8(x: jax.Array) -> list[jax.Array]:
    """From 17x17 to 8x8 (mixed_8)."""
    kernels = ((1, 1), (1, 7), (7, 1), (3, 3))
    return [
        Tower((192, 320), ((1, 1), (3, 3)), last_stride=2, name="tower")(x),
        Tower((192,) * 4, kernels, last_stride=2, name="tower_1")(x),
        halving_pool(x),
    ]


def at_8(pool: Callable, x: jax.Array) -> list[jax.Array]:
    """At 8x8 (mixed_9, mixed_10)."""
    a = Conv(384, name="tower_conv")(x)
    b = Conv(448, name="tower_1_conv")(x)
    b = Conv(384, (3, 3), name="tower_1_conv_1")(b)
    pooled = pool(x)
    return [
        Conv(320, name="conv")(x),
        Conv(384, (1, 3), name="tower_mixed_conv")(a),
        Conv(384, (3, 1), name="tower_mixed_conv_1")(a),
        Conv(384, (1, 3), name="tower_1_mixed_conv")(b),
        Conv(384, (3, 1), name="tower_1_mixed_conv_1")(b),
        Conv(192, name="tower_2_conv")(pooled),
    ]


class Inception(nn.Module):
    """Float32 [B, H, W, 3] about in [-1, 1], H and W 299 in use, to pool3's features [B, 2048]."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = Conv(32, (3, 3), 2, "VALID", name="conv")(x)
        x = Conv(32, (3, 3), 1, "VALID", name="conv_1")(x)
        x = Conv(64, (3, 3), name="conv_2")(x)
        x = halving_pool(x)
        x = Conv(80, name="conv_3")(x)
        x = Conv(192, (3, 3), 1, "VALID", name="conv_4")(x)
        x = halving_pool(x)
        x = Mixed(partial(at_35, 32), name="mixed")(x)
        x = Mixed(partial(at_35, 64), name="mixed_1")(x)
        x = Mixed(partial(at_35, 64), name="mixed_2")(x)
        x = Mixed(from_35_to_17, name="mixed_3")(x)
        x = Mixed(partial(at_17, 128), name="mixed_4")(x)
        x = Mixed(partial(at_17, 160), name="mixed_5")(x)
        x = Mixed(partial(at_17, 160), name="mixed_6")(x)
        x = Mixed(partial(at_17, 192), name="mixed_7")(x)
        x = Mixed(from_17_to_8, name="mixed_8")(x)
        x = Mixed(partial(at_8, average_pool), name="mixed_9")(x)
        x = Mixed(partial(at_8, max_pool), name="mixed_10")(x)
        return x.mean(axis=(1, 2))


def average_pool(x: jax.Array) -> jax.Array:
    """The mean of each pixel's 3x3 neighbourhood inside the image: fewer than 9 at its edges."""
    return nn.avg_pool(x, (3, 3), (1, 1), "SAME", count_include_pad=False)


def max_pool(x: jax.Array) -> jax.Array:
    """The maximum of each pixel's 3x3 neighbourhood."""
    return nn.max_pool(x, (3, 3), (1, 1), "SAME")


def halving_pool(x: jax.Array) -> jax.Array:
    """The maximum of 3x3, in steps of 2, without padding."""
    return nn.max_pool(x, (3, 3), (2, 2), "VALID")


def network_input(images: jax.Array) -> jax.Array:
    """Uint8 images [B, H, W, 3 or 1] as the network takes them: float32 [B, 299, 299, 3].

    Resized bilinearly, then (x - 128) / 128. Grey images get three equal channels.

    Raises:
        ValueError: the images are of another type or shape.
    """
    if images.dtype != jnp.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise ValueError(
            f"images are {images.dtype} {list(images.shape)}; "
            "Inception takes uint8 [B, H, W, 3], or [B, H, W, 1] for grey"
        )
    _, height, width, channels = images.shape
    rows, columns = resize_matrix(height), resize_matrix(width)
    x = images.astype(jnp.float32)
    x = jnp.einsum("ih,bhwc->biwc", rows, x, precision=lax.Precision.HIGHEST)
    x = jnp.einsum("jw,biwc->bijc", columns, x, precision=lax.Precision.HIGHEST)
    x = (x - 128.0) / 128.0
    return jnp.repeat(x, 3, axis=-1) if channels == 1 else x


def resize_matrix(size: int) -> np.ndarray:
    """Float32 [299, size]: TensorFlow 1's bilinear resize of `size` pixels, as a linear map.

    Output i is read at i * size / 299, between the pixels below and above it, and at the last
    pixel where there is none above. Neither pixel centres nor corners are aligned, and nothing is
    smoothed before images are made smaller: `jax.image.resize` does not do this.
    """
    source = np.arange(SIZE) * size / SIZE
    below = np.floor(source).astype(int)
    above = np.minimum(below + 1, size - 1)
    matrix = np.zeros((SIZE, size))
    np.add.at(matrix, (np.arange(SIZE), below), 1.0 - (source - below))
    np.add.at(matrix, (np.arange(SIZE), above), source - below)
    return matrix.astype(np.float32)
