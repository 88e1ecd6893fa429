"""The U-Net of Ho et al. 2020 as used by Salimans & Ho 2022 (their appendix on architecture).

Images are [B, H, W, C]. Parameters are float32; `dtype` is what convolutions, dense layers and
attention compute in. Normalisation, softmax and the output are float32 whatever `dtype` is.
"""

import math
import zlib
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion_distill.models.attention import AttentionBlock
from diffusion_distill.models.layers import Conv, Dense, GroupNorm, materialize
from diffusion_distill.models.pairs import channels_of, paired, unpaired

# How logSNR enters the network: each maps logsnr [B] to about [0, 1], and the embedding
# takes 1000 times that.
TIME_INPUTS: dict[str, Callable[[jax.Array, float, float], jax.Array]] = {
    # 2 phi / pi: the cosine schedule's own angle. The paper's choice.
    "arctan": lambda logsnr, low, high: jnp.arctan(jnp.exp(-0.5 * logsnr)) * (2.0 / math.pi),
    "linear": lambda logsnr, low, high: (logsnr - low) / (high - low),
    "sigmoid": lambda logsnr, low, high: jax.nn.sigmoid(logsnr),
}


# The label of an example that has none: it reaches the network as a one-hot of zeros.
NO_LABEL = -1

# What w is multiplied by for `timestep_embedding`: its frequencies are then 10 and less.
GUIDANCE_SCALE = 0.01


def timestep_embedding(time: jax.Array, channels: int) -> jax.Array:
    """sin, then cos, of 1000 time at channels / 2 frequencies from 1 to 1 / 10000: [B, channels].

    time is in [0, 1], [B]. An odd number of channels is filled up with a zero.
    """
    half = channels // 2
    frequencies = jnp.exp(-math.log(10000.0) / max(half - 1, 1) * jnp.arange(half))
    arguments = 1000.0 * time.astype(jnp.float32)[:, None] * frequencies[None, :]
    embedding = jnp.concatenate([jnp.sin(arguments), jnp.cos(arguments)], axis=-1)
    return jnp.pad(embedding, ((0, 0), (0, channels % 2)))


def downsample(x: jax.Array) -> jax.Array:
    """Averages of 2x2 pixels: [B, H, W, C] -> [B, H / 2, W / 2, C]."""
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).mean(axis=(2, 4))


def downsample_pairs(x: jax.Array) -> jax.Array:
    """`downsample` where pixels are paired (models/pairs.py): [B, H, W, 2 C] -> [B, H / 2, W, C].

    Written for TPUs: `downsample` of `unpaired` is the same, and reads and writes more.
    """
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    b, h, w, c = first.shape
    return (0.5 * (first + second)).reshape(b, h // 2, 2, w, c).mean(axis=2).astype(x.dtype)


def upsample(x: jax.Array) -> jax.Array:
    """Each pixel four times: [B, H, W, C] -> [B, 2H, 2W, C]."""
    return x.repeat(2, axis=1).repeat(2, axis=2)


def to_patches(x: jax.Array, size: int) -> jax.Array:
    """The pixels of each patch as channels: [B, H, W, C] -> [B, H / size, W / size, size^2 C]."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // size, size, w // size, size, c).swapaxes(2, 3)
    return x.reshape(b, h // size, w // size, size * size * c)


def from_patches(x: jax.Array, size: int) -> jax.Array:
    """The inverse of `to_patches`: [B, H, W, size^2 C] -> [B, size H, size W, C]."""
    b, h, w, c = x.shape
    c //= size * size
    return x.reshape(b, h, w, size, size, c).swapaxes(2, 3).reshape(b, h * size, w * size, c)


RESAMPLE: dict[str, Callable[[jax.Array], jax.Array]] = {"down": downsample, "up": upsample}


class ResnetBlock(nn.Module):
    """Two convolutions with the embedding between them, added to a shortcut.

    norm1, swish, (resample), conv1; norm2, scaled and shifted by the embedding, swish, dropout,
    conv2 (zero at the start). Resampling acts on both the main path and the shortcut.
    """

    channels: int
    num_groups: int
    dropout: float
    dtype: Any
    resample: str | None = None
    pairs: tuple[int, ...] = ()  # of x (models/pairs.py); those of the result: none if resampled

    @nn.compact
    def __call__(self, x: jax.Array, emb: jax.Array, dropout_keys: jax.Array | None) -> jax.Array:
        pairs, channels = self.pairs, channels_of(x, self.pairs)
        h = GroupNorm(self.num_groups, nn.swish, pairs=pairs, name="norm1")(x)
        if self.resample is not None:
            resample = downsample_pairs if pairs else RESAMPLE[self.resample]
            h, x, pairs = materialize(resample(h)), materialize(resample(x)), ()
        h = Conv(self.channels, dtype=self.dtype, pairs=pairs, name="conv1")(h)
        own = pairs and (self.channels,)
        scale_shift = nn.Dense(2 * self.channels, dtype=self.dtype, name="temb_proj")(nn.swish(emb))
        scale, shift = jnp.split(scale_shift, 2, axis=-1)
        h = GroupNorm(self.num_groups, nn.swish, pairs=own, name="norm2")(h, scale, shift)
        if dropout_keys is not None and self.dropout:
            h = dropout(h, self.dropout, dropout_keys, self.name, own)
        zeros = nn.initializers.zeros
        h = Conv(self.channels, dtype=self.dtype, kernel_init=zeros, pairs=own, name="conv2")(h)
        if channels != self.channels:
            x = Dense(self.channels, dtype=self.dtype, pairs=pairs, name="nin_shortcut")(x)
        return materialize(x + h)


def dropout(
    h: jax.Array, rate: float, keys: jax.Array, layer: str, pairs: tuple[int, ...] = ()
) -> jax.Array:
    """Zeros each value with probability `rate`, and scales the others by 1 / (1 - rate).

    What is zeroed in an example of h [B, ...] is a function of its own key, of keys [B], and the
    layer's name alone: the same however a batch is split over devices or in time, and whether its
    pixels are paired.
    """
    number = zlib.crc32(layer.encode())
    shape = unpaired(h).shape[1:] if pairs else h.shape[1:]

    def drawn(key):
        return jax.random.bernoulli(jax.random.fold_in(key, number), 1.0 - rate, shape)

    kept = jax.vmap(drawn)(keys)
    return jnp.where(paired(kept) if pairs else kept, h / (1.0 - rate), 0.0)


class Resample(nn.Module):
    """Resampling by a plain convolution: stride 2 down, or repeated pixels and stride 1 up."""

    resample: str
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if self.resample == "up":
            x = upsample(x)
        strides = 2 if self.resample == "down" else 1
        return Conv(x.shape[-1], strides=strides, dtype=self.dtype, name="conv")(x)


class UNet(nn.Module):
    """The U-Net: (z, logsnr, labels) -> output of `out_channels` channels, float32."""

    out_channels: int  # channels of the output: those of the image, or twice as many for "both"
    channels: int  # channels at the highest resolution, that of patches
    # channels over `channels` at each resolution, highest first; each is half of the one before
    channel_multipliers: tuple[int, ...]
    num_blocks: int  # residual blocks at each resolution on the way down; one more on the way up
    emb_channels: int  # width of the embedding of time and label
    # heights, in patches, at which attention follows each block
    attention_resolutions: tuple[int, ...] = ()
    patch_size: int = 1  # pixels a side that become channels at the input, and are put back
    num_heads: int | None = 1  # heads of attention; None where head_dim is given
    head_dim: int | None = None  # channels of a head; None where num_heads is given
    num_classes: int = 0  # number of labels; 0 for a network without labels
    told_guidance: bool = False  # whether it is told w of guidance
    num_groups: int = 32  # groups of GroupNorm; every channel count must be a multiple
    dropout: float = 0.0  # rate, when called with dropout_keys
    # whether resampling is done by residual blocks, as in the paper, or by plain convolutions
    resample_blocks: bool = True
    time_input: str = "arctan"  # one of TIME_INPUTS
    # the range that time_input "linear" maps to [0, 1]
    logsnr_min: float = -20.0
    logsnr_max: float = 20.0
    dtype: Any = jnp.float32  # what to compute in
    remat: bool = False  # recompute activations of the blocks in the backward pass, to save memory
    # attention by one kernel, where there is one (`attention_implementation`)
    fused_attention: bool = True
    # whether pixels of the highest resolution lie in pairs (models/pairs.py), which is the same
    # network; not where that resolution is the only one, or has attention
    pixel_pairs: bool = False

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
            z: noisy images, [B, H, W, C]; H and W divisible by patch_size, and that by 2
                for each halving.
            logsnr: their logSNR in nats, [B].
            labels: int32 [B] in 0..num_classes - 1, or NO_LABEL; None where num_classes is 0.
            dropout_keys: one for each example, [B], where dropout acts; None where it does not.
            guidance: w of each, [B], for a network that is told it; None for any other.

        Raises:
            ValueError: a shape, a channel count or the labels do not fit.
        """
        self._check(z, logsnr, labels, guidance)
        emb = self._embedding(logsnr, labels, guidance)
        levels = len(self.channel_multipliers)
        width = [self.channels * m for m in self.channel_multipliers]

        size = self.patch_size
        z = to_patches(z, size) if size > 1 else z
        in_pairs = self.pixel_pairs and levels > 1 and z.shape[1] not in self.attention_resolutions

        def pairs_of(level, *parts):
            """`pairs` of what these, concatenated, are at a level."""
            return tuple(p.shape[-1] // 2 for p in parts) if in_pairs and level == 0 else ()

        z = paired(z) if in_pairs else z
        h = Conv(self.channels, dtype=self.dtype, pairs=pairs_of(0, z), name="conv_in")(z)
        skips = [h]
        for level in range(levels):
            for block in range(self.num_blocks):
                pairs, name = pairs_of(level, h), f"down_{level}.{{}}_{block}"
                h = self._block(h, emb, dropout_keys, width[level], name, pairs)
                skips.append(h)
            if level < levels - 1:
                pairs = pairs_of(level, h)
                h = self._resample(h, emb, dropout_keys, "down", f"down_{level}.downsample", pairs)
                skips.append(h)

        h = self._resnet(width[-1], name="mid.block_1")(h, emb, dropout_keys)
        h = self._attention(name="mid.attn_1")(h)
        h = self._resnet(width[-1], name="mid.block_2")(h, emb, dropout_keys)

        for level in reversed(range(levels)):
            h = paired(h) if in_pairs and level == 0 else h
            for block in range(self.num_blocks + 1):
                pairs = pairs_of(level, h, skips[-1])
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                name = f"up_{level}.{{}}_{block}"
                h = self._block(h, emb, dropout_keys, width[level], name, pairs)
            if level > 0:
                h = self._resample(h, emb, dropout_keys, "up", f"up_{level}.upsample")

        pairs = pairs_of(0, h)
        h = GroupNorm(self.num_groups, nn.swish, pairs=pairs, name="norm_out")(h)
        channels = self.out_channels * size**2
        out = Conv(channels, kernel_init=nn.initializers.zeros, pairs=pairs, name="conv_out")(h)
        out = unpaired(out) if in_pairs else out
        return from_patches(out, size) if size > 1 else out

    def _embedding(self, logsnr, labels, guidance):
        time = TIME_INPUTS[self.time_input](logsnr, self.logsnr_min, self.logsnr_max)
        emb = timestep_embedding(time, self.channels)
        emb = nn.Dense(self.emb_channels, dtype=self.dtype, name="dense0")(emb)
        emb = nn.Dense(self.emb_channels, dtype=self.dtype, name="dense1")(nn.swish(emb))
        if self.num_classes:
            one_hot = jax.nn.one_hot(labels, self.num_classes, dtype=self.dtype)
            emb += nn.Dense(self.emb_channels, dtype=self.dtype, name="class_emb")(one_hot)
        if self.told_guidance:  # of nothing at first: it begins as the network that is not told
            w = timestep_embedding(GUIDANCE_SCALE * guidance, self.channels)
            zeros = nn.initializers.zeros
            dense = nn.Dense(self.emb_channels, kernel_init=zeros, dtype=self.dtype, name="w_emb")
            emb += dense(w)
        return emb

    def _resnet(self, channels, name, resample=None, pairs=()):
        block = nn.remat(ResnetBlock) if self.remat else ResnetBlock
        shared = self.num_groups, self.dropout, self.dtype
        return block(channels, *shared, resample, pairs, name=name)

    def _attention(self, name):
        block = nn.remat(AttentionBlock) if self.remat else AttentionBlock
        heads = self.num_heads, self.head_dim
        return block(*heads, self.num_groups, self.dtype, self.fused_attention, name=name)

    def _block(self, h, emb, dropout_keys, channels, name, pairs):
        h = self._resnet(channels, name.format("block"), pairs=pairs)(h, emb, dropout_keys)
        if h.shape[1] in self.attention_resolutions:
            h = self._attention(name.format("attn"))(h)
        return h

    def _resample(self, h, emb, dropout_keys, resample, name, pairs=()):
        if self.resample_blocks:
            channels = channels_of(h, pairs)
            return self._resnet(channels, name, resample, pairs)(h, emb, dropout_keys)
        return Resample(resample, self.dtype, name=name)(unpaired(h) if pairs else h)

    def _check(self, z, logsnr, labels, guidance):
        batch, height, width, _ = z.shape
        levels = len(self.channel_multipliers)
        factor = self.patch_size * 2 ** (levels - 1)
        if height % factor or width % factor:
            raise ValueError(
                f"images of {height}x{width} pixels do not halve {levels - 1} times, as {levels} "
                f"channel_multipliers ask, in patches of {self.patch_size}: each side must be "
                f"divisible by {factor}"
            )
        if logsnr.shape != (batch,):
            raise ValueError(f"logsnr has shape {logsnr.shape}, expected {(batch,)}")
        if self.num_classes and (labels is None or labels.shape != (batch,)):
            shape = None if labels is None else labels.shape
            known = f"a network of {self.num_classes} labels"
            raise ValueError(f"{known} needs labels of shape {(batch,)}, not {shape}")
        if not self.num_classes and labels is not None:
            raise ValueError("labels were given to a network that has none (num_classes is 0)")
        if self.told_guidance != (guidance is not None):
            was = "not told" if self.told_guidance else "told"
            raise ValueError(f"a network with told_guidance={self.told_guidance} was {was} w")
