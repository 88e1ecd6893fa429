"""Convolution and normalisation, arranged so that each pass over the pixels is made once.

XLA on CPU fuses a cheap operation into every operation that reads its result. In a network's
backward pass that makes long chains of additions and exponentials over and over, and it runs a sum
over rows and columns together on one thread. So there, and only there, what is read more than once
is computed in full first (`materialize`), and sums over pixels go row by row. On other platforms
all of this is the plain operation. On all of them, what a norm's gradient reads is kept in 16 bits
where the network computes in those (`written`).

Images are [B, H, W, C].
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from diffusion_distill.devices import onednn
from diffusion_distill.models.pairs import channels_of, paired_kernel, spread, summed


def _identity(name: str, transpose: Callable, cpu: Callable | None = None) -> Primitive:
    """A primitive that gives an array back; in programs for CPUs it is `cpu`.

    The gradient goes through `transpose` on its way back.
    """
    primitive = Primitive(name)
    primitive.def_impl(lambda x: x)
    primitive.def_abstract_eval(lambda x: x)
    mlir.register_lowering(primitive, lambda _, x: [x])
    if cpu is not None:
        mlir.register_lowering(primitive, mlir.lower_fun(cpu, multiple_results=False), "cpu")
    ad.deflinear2(primitive, lambda gradient, _: [transpose(gradient)])
    batching.defvectorized(primitive)
    return primitive


def materialize(x: jax.Array) -> jax.Array:
    """x, and on CPU a bound to fusion: computed in full before anything reads it.

    The compiler must be told to keep such bounds: `compiler.options`. The same holds for the
    gradient.
    """
    return _materialize.bind(x)


def materialize_gradient(x: jax.Array) -> jax.Array:
    """x; what is materialized is the gradient that comes back through it."""
    return _materialize_gradient.bind(x)


# jax.lax.platform_dependent would say it without primitives, at twice the time to trace a network.
_materialize = _identity("materialize", materialize, jax.lax.optimization_barrier)
_materialize_gradient = _identity("materialize_gradient", materialize)


def written(x: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
    """x as it lies in memory: cast to dtype, with a bound to fusion.

    Without the bound a compiler may leave out a cast and its undo, and carry the wider type over.
    """
    return jax.lax.optimization_barrier(x.astype(dtype))


def sum_pixels(x: jax.Array) -> jax.Array:
    """The sum over rows and columns: [B, H, W, C] -> [B, C]."""
    return materialize(x.sum(axis=2)).sum(axis=1)


def spread_pixels(v: jax.Array, height: int) -> jax.Array:
    """[B, C] -> [B, H, 1, C], to be combined with images; its gradient is a `sum_pixels`."""
    batch, channels = v.shape
    return materialize(jnp.broadcast_to(v[:, None, None, :], (batch, height, 1, channels)))


class GroupNorm(nn.Module):
    """Group normalisation (Wu & He 2018) in float32, whatever the input's dtype.

    For each example and group, x is brought to mean 0 and variance 1 over the group's channels and
    all pixels; then come a scale and a bias for each channel, those that the caller gives, and
    `activation`. All of it but the last is one multiplication and one addition a value, which are
    computed for each example and channel beforehand. The variance is that of E[x^2] - E[x]^2.
    """

    num_groups: int  # a divisor of the channels
    activation: Callable[[jax.Array], jax.Array] | None = None  # of the result; None for none
    eps: float = 1e-6  # added to the variance
    pairs: tuple[int, ...] = ()  # of x (models/pairs.py)

    @nn.compact
    def __call__(
        self, x: jax.Array, scale: jax.Array | None = None, shift: jax.Array | None = None
    ) -> jax.Array:
        """x, normalised, times 1 + scale [B, C], plus shift [B, C]; of x's shape and dtype.

        Raises:
            ValueError: the channels do not divide into the groups.
        """
        batch, height = x.shape[:2]
        channels = channels_of(x, self.pairs)
        if channels < self.num_groups or channels % self.num_groups:
            raise ValueError(
                f"{channels} channels do not divide into {self.num_groups} groups for GroupNorm: "
                "choose channel counts that are multiples of num_groups"
            )
        gain = self.param("scale", nn.initializers.ones, (channels,))
        offset = self.param("bias", nn.initializers.zeros, (channels,))
        each = channels // self.num_groups
        values = x.astype(jnp.float32)

        def mean(sums):  # of each group, at each of its channels
            sums = summed(sums, self.pairs).reshape(batch, self.num_groups, each).sum(axis=-1)
            return jnp.repeat(sums / (values[0].size // self.num_groups), each, axis=-1)

        first, second = mean(sum_pixels(values)), mean(sum_pixels(jnp.square(values)))
        variance = jnp.maximum(second - jnp.square(first), 0.0)
        factor = gain * jax.lax.rsqrt(variance + self.eps)
        summand = offset - first * factor
        if scale is not None:
            scale, shift = scale.astype(jnp.float32), shift.astype(jnp.float32)
            factor, summand = factor * (1.0 + scale), summand * (1.0 + scale) + shift
        factor, summand = spread(factor, self.pairs), spread(summand, self.pairs)
        if x.dtype.itemsize == 2:
            values = _scaled_in_16_bits(values, factor, summand, self.activation, x.dtype)
            return materialize(values.astype(x.dtype))
        values = values * spread_pixels(factor, height) + spread_pixels(summand, height)
        if self.activation is not None:
            values = self.activation(materialize_gradient(values))
        return materialize(values.astype(x.dtype))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _scaled_in_16_bits(
    values: jax.Array, factor: jax.Array, summand: jax.Array, activation: Callable | None, dtype
) -> jax.Array:
    """activation(values * factor + summand) of values [B, H, W, C], factor and summand [B, C].

    All is float32, but the gradient before the activation lies in memory as `dtype`, of 16 bits,
    between the two passes over it: half of what would be written and read again. The sums over
    pixels are of the float32 gradient, which the first pass has at hand.
    """
    height = values.shape[1]
    scaled = values * spread_pixels(factor, height) + spread_pixels(summand, height)
    return scaled if activation is None else activation(scaled)


def _scaled_forward(values, factor, summand, activation, dtype):
    kept = values.astype(dtype), factor, summand  # values are of dtype, cast: nothing is lost
    return _scaled_in_16_bits(values, factor, summand, activation, dtype), kept


def _scaled_backward(activation, dtype, kept, gradient):
    values, factor, summand = kept[0].astype(jnp.float32), *kept[1:]
    if activation is not None:
        scaled = values * factor[:, None, None, :] + summand[:, None, None, :]
        (gradient,) = jax.vjp(activation, scaled)[1](gradient)
        gradient = materialize(gradient)
    by_factor, by_summand = sum_pixels(gradient * values), sum_pixels(gradient)
    gradient = written(gradient, dtype).astype(jnp.float32)
    return gradient * factor[:, None, None, :], by_factor, by_summand


_scaled_in_16_bits.defvjp(_scaled_forward, _scaled_backward)


class Dense(nn.Module):
    """A linear layer of the channels at each pixel, and a bias; parameters as those of nn.Dense."""

    features: int  # channels of the result
    dtype: Any = jnp.float32  # what to compute in
    kernel_init: Callable = nn.linear.default_kernel_init  # of the kernel
    pairs: tuple[int, ...] = ()  # of the input (models/pairs.py); those of the result: (features,)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., C] -> [..., features]; of pairs, twice as many channels in both."""
        channels = channels_of(x, self.pairs)
        kernel = self.param("kernel", self.kernel_init, (channels, self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        if self.pairs:
            kernel = paired_kernel(kernel[None, None], self.pairs)[0, 0]
            bias = spread(bias, (self.features,))
        return onednn.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ()))) + bias


DenseGeneral = functools.partial(nn.DenseGeneral, dot_general=onednn.dot_general)


class Conv(nn.Module):
    """A convolution with zeros around the image, and a bias; parameters as those of nn.Conv."""

    features: int  # channels of the result
    kernel_size: tuple[int, int] = (3, 3)  # (height, width)
    strides: int = 1  # pixels from one result to the next
    # zeros before and after, of rows and of columns; "SAME": as many results as pixels / strides
    padding: str | tuple[tuple[int, int], tuple[int, int]] = "SAME"
    dtype: Any = jnp.float32  # what to compute in
    kernel_init: Callable = nn.linear.default_kernel_init  # of the kernel
    pairs: tuple[int, ...] = ()  # of the input (models/pairs.py); those of the result: (features,)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, H / strides, W / strides, features].

        Of pairs, with stride 1 and "SAME" alone: [B, H, W, 2 C] -> [B, H, W, 2 features].
        """
        channels = channels_of(x, self.pairs)
        kernel_shape = (*self.kernel_size, channels, self.features)
        kernel = self.param("kernel", self.kernel_init, kernel_shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        if self.pairs:
            kernel, bias = paired_kernel(kernel, self.pairs), spread(bias, (self.features,))
        y = onednn.convolution(x, kernel, self.strides, self.padding)
        batch, height, _, features = y.shape
        bias = jnp.broadcast_to(bias, (batch, features))
        return materialize(y + spread_pixels(bias, height))
