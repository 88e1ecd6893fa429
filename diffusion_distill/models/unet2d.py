"""diffusers' UNet2DModel: the U-Net that most diffusion models on images outside of papers are.

It learns its own discrete levels of noise (diffusion/discrete.py), and is asked by logSNR as every
network here. Modules and fields have the names that diffusers gives them, so that a weight's name
there is its name here but for `weight` and the dots.

Images are [B, H, W, C]. `dtype` is what convolutions, dense layers and attention compute in.
"""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion_distill.diffusion.discrete import level_of
from diffusion_distill.models.attention import attention
from diffusion_distill.models.layers import Conv, Dense, GroupNorm, materialize
from diffusion_distill.models.unet import GUIDANCE_SCALE, RESAMPLE, dropout, timestep_embedding

_ZEROS = nn.initializers.zeros
# Of a level's blocks, by the kind's name: whether attention follows each, and whether resampling
# is done by a residual block, a plain convolution, or as the network's field says (None).
DOWN_BLOCKS = {
    "DownBlock2D": (False, "conv"),
    "AttnDownBlock2D": (True, None),
    "ResnetDownsampleBlock2D": (False, "resnet"),
}
UP_BLOCKS = {
    "UpBlock2D": (False, "conv"),
    "AttnUpBlock2D": (True, None),
    "ResnetUpsampleBlock2D": (False, "resnet"),
}


def level_embedding(level: jax.Array, channels: int, flip: bool, freq_shift: float) -> jax.Array:
    """sin, then cos, of a level [B] at channels / 2 frequencies from 1 down: [B, channels].

    `flip`: cos first. The lowest frequency is 1 / 10000 for a freq_shift of 1, and one further on
    for 0. An odd number of channels is filled up with a zero.
    """
    half = channels // 2
    frequencies = jnp.exp(-math.log(10000.0) * jnp.arange(half) / (half - freq_shift))
    arguments = level[:, None] * frequencies[None, :]
    parts = [jnp.sin(arguments), jnp.cos(arguments)]
    embedding = jnp.concatenate(parts[::-1] if flip else parts, axis=-1)
    return jnp.pad(embedding, ((0, 0), (0, channels % 2)))


class ResnetBlock2D(nn.Module):
    """Two convolutions with the embedding between them, and a shortcut, over `scale_factor`."""

    channels: int
    num_groups: int
    eps: float
    scale_shift: bool  # the embedding scales and shifts what is normalised; else it is added before
    dropout: float
    dtype: Any
    resample: str | None = None
    scale_factor: float = 1.0

    @nn.compact
    def __call__(self, x: jax.Array, emb: jax.Array, dropout_keys: jax.Array | None) -> jax.Array:
        h = GroupNorm(self.num_groups, nn.silu, self.eps, name="norm1")(x)
        if self.resample is not None:
            resample = RESAMPLE[self.resample]
            h, x = materialize(resample(h)), materialize(resample(x))
        h = Conv(self.channels, dtype=self.dtype, name="conv1")(h)
        width = self.channels * (2 if self.scale_shift else 1)
        emb = nn.Dense(width, dtype=self.dtype, name="time_emb_proj")(nn.silu(emb))
        norm2 = GroupNorm(self.num_groups, nn.silu, self.eps, name="norm2")
        if self.scale_shift:
            h = norm2(h, *jnp.split(emb, 2, axis=-1))
        else:
            h = norm2(materialize(h + emb[:, None, None, :]))
        if dropout_keys is not None and self.dropout:
            h = dropout(h, self.dropout, dropout_keys, self.name)
        h = Conv(self.channels, dtype=self.dtype, kernel_init=_ZEROS, name="conv2")(h)
        if x.shape[-1] != self.channels:
            x = Dense(self.channels, dtype=self.dtype, name="conv_shortcut")(x)
        return materialize((x + h) / self.scale_factor)


class Attention(nn.Module):
    """Self-attention over all pixels, added to its input, over `scale_factor`."""

    head_dim: int  # 0: one head
    num_groups: int  # of the normalisation; 0: there is none
    eps: float
    dtype: Any
    fused: bool
    scale_factor: float = 1.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, height, width, channels = x.shape
        head_dim = self.head_dim or channels
        heads = channels // head_dim
        h = (
            GroupNorm(self.num_groups, None, self.eps, name="group_norm")(x)
            if self.num_groups
            else x
        )

        def heads_of(name):
            projected = Dense(heads * head_dim, dtype=self.dtype, name=name)(h)
            return projected.reshape(batch, height * width, heads, head_dim)

        h = attention(*map(heads_of, ("to_q", "to_k", "to_v")), self.fused)
        h = h.reshape(batch, height, width, heads * head_dim)
        h = Dense(channels, dtype=self.dtype, kernel_init=_ZEROS, name="to_out.0")(h)
        return materialize((x + h) / self.scale_factor)


class Resample2D(nn.Module):
    """Resampling by a convolution: stride 2 down, or repeated pixels and stride 1 up."""

    resample: str
    padding: int  # of `down`: zeros on every side, or none and one row and column at the far end
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if self.resample == "up":
            return Conv(x.shape[-1], dtype=self.dtype, name="conv")(RESAMPLE["up"](x))
        padding = ((1, 1), (1, 1)) if self.padding else ((0, 1), (0, 1))
        return Conv(x.shape[-1], strides=2, padding=padding, dtype=self.dtype, name="conv")(x)


class UNet2D(nn.Module):
    """UNet2DModel: (z, logsnr, labels) -> output of `out_channels` channels, float32.

    Fields that are not described are those of config.unet2d.
    """

    out_channels: int
    logsnr_of_levels: tuple[float, ...]  # the levels that it knows
    block_out_channels: tuple[int, ...]
    down_block_types: tuple[str, ...]  # of DOWN_BLOCKS
    up_block_types: tuple[str, ...]  # of UP_BLOCKS
    layers_per_block: int
    center_input_sample: bool
    time_embedding_type: str
    time_embedding_dim: int
    freq_shift: float
    flip_sin_to_cos: bool
    mid_block_scale_factor: float
    downsample_padding: int
    downsample_type: str
    upsample_type: str
    attention_head_dim: int
    norm_num_groups: int
    attn_norm_num_groups: int
    norm_eps: float
    resnet_time_scale_shift: str
    add_attention: bool
    num_classes: int = 0  # num_class_embeds; 0 for a network without labels
    told_guidance: bool = False  # whether it is told w of guidance
    dropout: float = 0.0  # rate, when called with dropout_keys
    dtype: Any = jnp.float32
    remat: bool = False  # recompute activations of the blocks in the backward pass, to save memory
    fused_attention: bool = True

    @nn.compact
    def __call__(
        self,
        z: jax.Array,
        logsnr: jax.Array,
        labels: jax.Array | None = None,
        dropout_keys: jax.Array | None = None,
        guidance: jax.Array | None = None,
    ) -> jax.Array:
        """The network's output for noisy images, float32 [B, H, W, out_channels].

        Args:
            z: noisy images, [B, H, W, C]; H and W divisible by 2 for each halving.
            logsnr: their logSNR in nats, [B].
            labels: int32 [B]; one that is not in 0..num_classes - 1 is none. None where
                num_classes is 0.
            dropout_keys: one for each example, [B], where dropout acts; None where it does not.
            guidance: w of each, [B], for a network that is told it; None for any other.

        Raises:
            ValueError: a shape, a channel count or the labels do not fit.
        """
        self._check(z, labels, guidance)
        emb = self._embedding(logsnr, labels, guidance)
        resnet, attention = self._makers(emb, dropout_keys)
        last = len(self.block_out_channels) - 1
        h = 2.0 * z - 1.0 if self.center_input_sample else z
        h = Conv(self.block_out_channels[0], dtype=self.dtype, name="conv_in")(h)
        skips = [h]
        for level, width in enumerate(self.block_out_channels):
            kind = self.down_block_types[level]
            name, (attends, resampling) = f"down_blocks.{level}", DOWN_BLOCKS[kind]
            for block in range(self.layers_per_block):
                h = resnet(h, f"{name}.resnets.{block}", width)
                h = attention(h, f"{name}.attentions.{block}") if attends else h
                skips.append(h)
            if level < last:
                resampling = resampling or self.downsample_type
                h = self._resample(h, resnet, "down", resampling, f"{name}.downsamplers.0")
                skips.append(h)

        factor, width = self.mid_block_scale_factor, self.block_out_channels[-1]
        h = resnet(h, "mid_block.resnets.0", width, scale_factor=factor)
        if self.add_attention:
            shift = self.resnet_time_scale_shift == "default"
            groups = self.attn_norm_num_groups or (self.norm_num_groups if shift else 0)
            h = attention(h, "mid_block.attentions.0", num_groups=groups, scale_factor=factor)
        h = resnet(h, "mid_block.resnets.1", width, scale_factor=factor)

        for level, width in enumerate(reversed(self.block_out_channels)):
            kind = self.up_block_types[level]
            name, (attends, resampling) = f"up_blocks.{level}", UP_BLOCKS[kind]
            for block in range(self.layers_per_block + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = resnet(h, f"{name}.resnets.{block}", width)
                h = attention(h, f"{name}.attentions.{block}") if attends else h
            if level < last:
                resampling = resampling or self.upsample_type
                h = self._resample(h, resnet, "up", resampling, f"{name}.upsamplers.0")

        h = GroupNorm(self.norm_num_groups, nn.silu, self.norm_eps, name="conv_norm_out")(h)
        return Conv(self.out_channels, kernel_init=_ZEROS, name="conv_out")(h)

    def _embedding(self, logsnr, labels, guidance):
        level, width = level_of(logsnr, self.logsnr_of_levels), self.block_out_channels[0]
        if self.time_embedding_type == "learned":
            emb = LearnedLevels(len(self.logsnr_of_levels), width, name="time_proj")(level)
        else:
            emb = level_embedding(level, width, self.flip_sin_to_cos, self.freq_shift)
        size = self.time_embedding_dim or 4 * width
        emb = nn.Dense(size, dtype=self.dtype, name="time_embedding.linear_1")(emb)
        emb = nn.Dense(size, dtype=self.dtype, name="time_embedding.linear_2")(nn.silu(emb))
        if self.num_classes:
            one_hot = jax.nn.one_hot(labels, self.num_classes, dtype=self.dtype)
            layer = nn.Dense(size, use_bias=False, dtype=self.dtype, name="class_embedding")
            emb += layer(one_hot)
        if self.told_guidance:  # of nothing at first: it begins as the network that is not told
            w = timestep_embedding(GUIDANCE_SCALE * guidance, width)
            emb += nn.Dense(size, kernel_init=_ZEROS, dtype=self.dtype, name="w_emb")(w)
        return emb

    def _makers(self, emb: jax.Array, dropout_keys: jax.Array | None) -> tuple[Callable, Callable]:
        """(a residual block, attention), each applied to h under a name."""
        block = nn.remat(ResnetBlock2D) if self.remat else ResnetBlock2D
        self_attention = nn.remat(Attention) if self.remat else Attention
        scale_shift = self.resnet_time_scale_shift == "scale_shift"

        def resnet(h, name, width, **fields):
            shared = self.norm_num_groups, self.norm_eps, scale_shift, self.dropout, self.dtype
            return block(width, *shared, name=name, **fields)(h, emb, dropout_keys)

        def attention(h, name, num_groups=self.norm_num_groups, **fields):
            shared = self.norm_eps, self.dtype, self.fused_attention
            layer = self_attention(
                self.attention_head_dim, num_groups, *shared, name=name, **fields
            )
            return layer(h)

        return resnet, attention

    def _resample(self, h, resnet, resample, kind, name):
        if kind == "resnet":
            return resnet(h, name, h.shape[-1], resample=resample)
        return Resample2D(resample, self.downsample_padding, self.dtype, name=name)(h)

    def _check(self, z, labels, guidance):
        _, height, width, _ = z.shape
        levels = len(self.block_out_channels)
        factor = 2 ** (levels - 1)
        if height % factor or width % factor:
            raise ValueError(
                f"images of {height}x{width} pixels do not halve {levels - 1} times, as {levels} "
                f"block_out_channels ask: each side must be divisible by {factor}"
            )
        for channels in self.block_out_channels:
            if self.attention_head_dim and channels % self.attention_head_dim:
                size = self.attention_head_dim
                raise ValueError(
                    f"{channels} channels are no multiple of attention_head_dim {size}"
                )
        if bool(self.num_classes) != (labels is not None):
            given = "none were" if labels is None else "some were"
            raise ValueError(f"a network of {self.num_classes} labels; {given} given")
        if self.told_guidance != (guidance is not None):
            was = "not told" if self.told_guidance else "told"
            raise ValueError(f"a network with told_guidance={self.told_guidance} was {was} w")


class LearnedLevels(nn.Module):
    """A learned vector for each level; between two levels it is between theirs."""

    count: int
    channels: int

    @nn.compact
    def __call__(self, level: jax.Array) -> jax.Array:
        """[B], from 0 to count - 1, -> float32 [B, channels]."""
        shape = (self.count, self.channels)
        table = self.param("embedding", nn.initializers.normal(1.0), shape)
        return between_rows(table, level)


def between_rows(table: jax.Array, level: jax.Array) -> jax.Array:
    """The rows of a table [K, channels] at fractional numbers [B]: [B, channels]."""
    below = jnp.floor(level).astype(jnp.int32)
    share = (level - below)[:, None]
    above = jnp.minimum(below + 1, len(table) - 1)
    return (1.0 - share) * table[below] + share * table[above]
