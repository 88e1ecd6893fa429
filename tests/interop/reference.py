"""The published network written down a second time, in plain NumPy and float64, and its files.

From the paper's appendix and the description of its published code; no line of it is ours. Where
those leave a point open (skip connections are taken last in, first out, each in front of its block
and behind the main path; GroupNorm's epsilon is 1e-6), it follows models/unet.py.
"""

import jax
import numpy as np
from flax import serialization, traverse_util

EPSILON = 1e-6


def swish(x):
    return x / (1.0 + np.exp(-x))


def dense(x, p):
    return x @ p["kernel"] + p["bias"]


def conv(x, p):
    """3x3, stride 1, zeros around."""
    height, width = x.shape[1:3]
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return p["bias"] + sum(
        padded[:, i : i + height, j : j + width] @ p["kernel"][i, j]
        for i in range(3)
        for j in range(3)
    )


def norm(x, p, groups):
    b, h, w, c = x.shape
    grouped = x.reshape(b, h * w, groups, c // groups)
    centred = grouped - grouped.mean(axis=(1, 3), keepdims=True)
    variance = np.square(centred).mean(axis=(1, 3), keepdims=True)
    return (centred / np.sqrt(variance + EPSILON)).reshape(x.shape) * p["scale"] + p["bias"]


def pool(x):
    return (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4.0


def repeat(x):
    return np.kron(x, np.ones((1, 2, 2, 1)))


def resnet(x, emb, p, groups, resample=lambda x: x):
    h = resample(swish(norm(x, p["norm1"], groups)))
    h = conv(h, p["conv1"])
    scale, shift = np.split(dense(swish(emb), p["temb_proj"])[:, None, None], 2, axis=-1)
    h = swish(norm(h, p["norm2"], groups) * (1.0 + scale) + shift)
    h = conv(h, p["conv2"])
    x = resample(x)
    return h + (dense(x, p["nin_shortcut"]) if "nin_shortcut" in p else x)


def attention(x, p, groups):
    b, height, width, c = x.shape
    h = norm(x, p["norm"], groups).reshape(b, height * width, c)
    q, k, v = (np.tensordot(h, p[n]["kernel"], 1) + p[n]["bias"] for n in "qkv")  # [B, T, N, D]
    out = np.zeros_like(h)
    for head in range(q.shape[2]):
        logits = q[:, :, head] @ k[:, :, head].transpose(0, 2, 1) / np.sqrt(q.shape[-1])
        weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        out += weights @ v[:, :, head] @ p["proj_out"]["kernel"][head]
    return x + (out + p["proj_out"]["bias"]).reshape(x.shape)


def unet(p, z, logsnr, labels, channels, multipliers, num_blocks, groups, later=0.0):
    """The network's output, [B, H, W, out], for noisy images z and logSNR [B].

    Attention is wherever the tree has it; heads are read off its kernels. `later` is added to the
    time input.
    """
    p = jax.tree.map(lambda w: np.asarray(w, np.float64), p)
    half = channels // 2
    time = 2.0 / np.pi * np.arctan(np.exp(-0.5 * logsnr)) + later
    arguments = 1000.0 * time[:, None] * np.exp(-np.log(10000.0) * np.arange(half) / (half - 1))
    emb = np.concatenate([np.sin(arguments), np.cos(arguments)], axis=1)
    emb = dense(swish(dense(emb, p["dense0"])), p["dense1"])
    if "class_emb" in p:
        emb = emb + dense(np.eye(len(p["class_emb"]["kernel"]))[labels], p["class_emb"])

    def block(h, name, n):
        h = resnet(h, emb, p[f"{name}.block_{n}"], groups)
        return attention(h, p[f"{name}.attn_{n}"], groups) if f"{name}.attn_{n}" in p else h

    h = conv(z, p["conv_in"])
    skips = [h]
    last = len(multipliers) - 1
    for level in range(last + 1):
        for n in range(num_blocks):
            h = block(h, f"down_{level}", n)
            skips.append(h)
        if level < last:
            h = resnet(h, emb, p[f"down_{level}.downsample"], groups, pool)
            skips.append(h)
    h = resnet(h, emb, p["mid.block_1"], groups)
    h = attention(h, p["mid.attn_1"], groups)
    h = resnet(h, emb, p["mid.block_2"], groups)
    for level in range(last, -1, -1):
        for n in range(num_blocks + 1):
            h = block(np.concatenate([h, skips.pop()], axis=-1), f"up_{level}", n)
        if level > 0:
            h = resnet(h, emb, p[f"up_{level}.upsample"], groups, repeat)
    assert not skips
    return conv(swish(norm(h, p["norm_out"], groups)), p["conv_out"])


def x_hat(output, z, logsnr, parameterization):
    """The image that an output stands for; logSNR [B]."""
    logsnr = np.asarray(logsnr, np.float64)[:, None, None, None]
    alpha, sigma = np.sqrt(1 / (1 + np.exp(-logsnr))), np.sqrt(1 / (1 + np.exp(logsnr)))
    if parameterization == "x":
        return output
    if parameterization == "eps":
        return (z - sigma * output) / alpha
    if parameterization == "v":
        return alpha * z - sigma * output
    x, eps = np.split(output, 2, axis=-1)
    return sigma**2 * x + alpha**2 * (z - sigma * eps) / alpha


def random_weights(shapes, seed=0):
    """Weights for a tree of shapes: none is zero, and activations keep their size."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        values = rng.normal(size=leaf.shape)
        if path[-1].key == "kernel":
            fan_out = 2 if path[-2].key in "qkv" else 1  # kernels of q, k, v: [in, heads, head_dim]
            return np.float32(values / np.sqrt(np.prod(leaf.shape[:-fan_out])))
        return np.float32(0.1 * values + (path[-1].key == "scale"))

    return jax.tree_util.tree_map_with_path(draw, shapes)


def write_published(path, params, num_steps=None, old_norm=False, level=False):
    """A file as the paper's authors published them; num_steps None leaves it out."""
    flat = traverse_util.flatten_dict(params)
    if old_norm:
        flat = {
            name: np.reshape(w, (1, 1, 1, -1)) if name[-2].startswith("norm") else w
            for name, w in flat.items()
        }
    tree = traverse_util.unflatten_dict(flat)
    fields = {"step": 7, "ema_params": {"params": tree} if level else tree, "optimizer": {}}
    if num_steps is not None:
        fields["num_sample_steps"] = num_steps
    path.write_bytes(serialization.msgpack_serialize(fields))
    return path
