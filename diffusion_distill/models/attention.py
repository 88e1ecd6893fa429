"""Self-attention over the pixels of an image, by one kernel where there is one.

Images are [B, H, W, C].
"""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion_distill.devices import onednn
from diffusion_distill.models.layers import DenseGeneral, GroupNorm, materialize, written


class AttentionBlock(nn.Module):
    """Self-attention over all pixels, added to its input; its output layer is zero at the start."""

    num_heads: int | None
    head_dim: int | None
    num_groups: int
    dtype: Any
    fused: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        b, height, width, channels = x.shape
        heads, head_dim = attention_heads(channels, self.num_heads, self.head_dim)
        h = GroupNorm(self.num_groups, name="norm")(x).reshape(b, height * width, channels)
        q, k, v = (
            DenseGeneral((heads, head_dim), dtype=self.dtype, name=name)(h) for name in "qkv"
        )
        h = attention(q, k, v, self.fused)
        h = DenseGeneral(
            channels,
            axis=(-2, -1),
            dtype=self.dtype,
            kernel_init=nn.initializers.zeros,
            name="proj_out",
        )(h)
        return materialize(x + h.reshape(x.shape))


def attention(q: jax.Array, k: jax.Array, v: jax.Array, fused: bool) -> jax.Array:
    """Attention of [B, T, N, H], scaled by 1 / sqrt(H), softmax in float32.

    `fused`: by one kernel, where there is one that takes such heads.
    """
    how = attention_implementation(fused and has_cudnn(), q.dtype, q.shape[-1])
    if how == "xla" and q.dtype.itemsize == 2:
        return attention_in_16_bits(q, k, v)
    if how == "xla" and onednn.is_used():
        logits = onednn.einsum("btnh,bsnh->bnts", q, k) / math.sqrt(q.shape[-1])
        return onednn.einsum("bnts,bsnh->btnh", jax.nn.softmax(logits), v)
    return jax.nn.dot_product_attention(q, k, v, implementation=how)


@jax.custom_vjp
def attention_in_16_bits(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """jax.nn.dot_product_attention of [B, T, N, H], all of one 16-bit dtype, with less in memory.

    Logits, exponentials and sums are float32, but no matrix of T x T lies in memory in more than 16
    bits: for the gradient, exponentials not yet divided by their sums are kept.
    """
    return _attention_forward(q, k, v)[0]


def _softmax(q, k):
    """exp(logits - their maximum) [B, N, T, S] of q's dtype, and its sums, float32 [B, N, T, 1].

    Written so that TPUs' compiler makes one operation of it.
    """
    logits = onednn.einsum("btnh,bsnh->bnts", q, k, jnp.float32)
    logits /= math.sqrt(q.shape[-1])
    weights = jnp.exp(logits - logits.max(axis=-1, keepdims=True))
    total = weights.sum(axis=-1, keepdims=True)
    return written(weights, q.dtype), total


def _attention_forward(q, k, v):
    weights, total = _softmax(q, k)
    sums = onednn.einsum("bnts,bsnh->bnth", weights, v, jnp.float32)
    result = (sums / total).astype(q.dtype).swapaxes(1, 2)
    return result, (q, k, v, result, weights, total)


def _attention_backward(kept, gradient):
    q, k, v, result, weights, total = kept
    share = 1.0 / total
    of_sums = (gradient * share.swapaxes(1, 2)).astype(q.dtype)
    by_v = onednn.einsum("bnts,btnh->bsnh", weights, of_sums)
    by_weights = onednn.einsum("btnh,bsnh->bnts", gradient, v, jnp.float32)
    mean = jnp.einsum("btnh,btnh->bnt", gradient, result, preferred_element_type=jnp.float32)
    by_logits = weights.astype(jnp.float32) * share * (by_weights - mean[..., None])
    by_logits = written(by_logits / math.sqrt(q.shape[-1]), q.dtype)
    by_q = onednn.einsum("bnts,bsnh->btnh", by_logits, k)
    return by_q, onednn.einsum("bnts,btnh->bsnh", by_logits, q), by_v


attention_in_16_bits.defvjp(_attention_forward, _attention_backward)


def attention_implementation(fused: bool, dtype: Any, head_dim: int) -> str:
    """Of jax.nn.dot_product_attention: "cudnn", one kernel, where it takes such heads, else "xla".

    It takes 16-bit types, and heads of up to 128 channels in eights (256 on some GPUs). `fused`
    says whether it is there and wanted.
    """
    takes = jnp.dtype(dtype).itemsize == 2 and head_dim % 8 == 0 and head_dim <= 128
    return "cudnn" if fused and takes else "xla"


@functools.cache
def has_cudnn() -> bool:
    """Whether programs run on NVIDIA's GPUs of compute capability 8 or more, with cuDNN's kernel.

    The compilers for TPUs and CPUs make their own of "xla".
    """
    device = jax.devices()[0]
    if device.platform != "gpu" or "cuda" not in device.client.platform_version.lower():
        return False
    return float(device.compute_capability) >= 8.0


def attention_heads(channels: int, num_heads: int | None, head_dim: int | None) -> tuple[int, int]:
    """(number of heads, channels in each), from whichever of the two is given.

    Raises:
        ValueError: both or neither is given, or the channels do not divide.
    """
    if (num_heads is None) == (head_dim is None):
        raise ValueError(
            f"give one of num_heads ({num_heads}) and head_dim ({head_dim}), not both or neither"
        )
    divisor = num_heads or head_dim
    if channels % divisor:
        name = "num_heads" if num_heads else "head_dim"
        raise ValueError(f"attention over {channels} channels does not divide by {name} {divisor}")
    heads = num_heads or channels // head_dim
    return heads, channels // heads
