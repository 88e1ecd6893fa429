"""Attention: its values, its heads, and where one kernel computes it."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_distill.models import attention
from tests.models.test_unet import random_params


def test_attention_against_numpy():
    block = attention.AttentionBlock(num_heads=2, head_dim=None, num_groups=4, dtype=jnp.float32)
    x = jnp.float32(np.random.default_rng(0).normal(size=(2, 3, 3, 8)))
    params = random_params(block, x)
    p = jax.tree.map(np.asarray, params["params"])
    grouped = np.asarray(x, np.float64).reshape(2, 9, 4, 2)
    mean = grouped.mean(axis=(1, 3), keepdims=True)
    h = (grouped - mean) / np.sqrt(grouped.var(axis=(1, 3), keepdims=True) + 1e-6)
    h = h.reshape(2, 9, 8) * p["norm"]["scale"] + p["norm"]["bias"]
    q, k, v = (np.einsum("btc,chd->bhtd", h, p[n]["kernel"]) + p[n]["bias"][None, :, None]
               for n in "qkv")  # fmt: skip
    logits = q @ k.transpose(0, 1, 3, 2) / np.sqrt(4)
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    mixed = (weights / weights.sum(axis=-1, keepdims=True)) @ v
    out = np.einsum("bhtd,hdc->btc", mixed, p["proj_out"]["kernel"]) + p["proj_out"]["bias"]
    np.testing.assert_allclose(
        block.apply(params, x), x + out.reshape(x.shape), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    ("fused", "dtype", "head_dim", "expected"),
    [
        (True, jnp.bfloat16, 64, "cudnn"),
        (False, jnp.bfloat16, 64, "xla"),
        (True, jnp.float32, 64, "xla"),
        (True, jnp.bfloat16, 256, "xla"),
        (True, jnp.bfloat16, 12, "xla"),
    ],
)
def test_attention_is_fused_where_the_kernel_takes_it(fused, dtype, head_dim, expected):
    assert attention.attention_implementation(fused, dtype, head_dim) == expected


@pytest.mark.parametrize(
    ("platform", "version", "capability", "expected"),
    [
        ("gpu", "PJRT C API cuda 13000", "9.0", True),
        ("gpu", "PJRT C API cuda 13000", "7.5", False),
        ("gpu", "PJRT C API rocm 60400", "9.0", False),
        ("tpu", "PJRT C API TFRT TPU v5e", None, False),
        ("cpu", "cpu", None, False),
    ],
)
def test_where_there_is_a_kernel(monkeypatch, platform, version, capability, expected):
    client = types.SimpleNamespace(platform_version=version)
    device = types.SimpleNamespace(platform=platform, client=client, compute_capability=capability)
    monkeypatch.setattr(jax, "devices", lambda: [device])
    assert attention.has_cudnn.__wrapped__() is expected


@pytest.mark.parametrize("heads", [1, 3])
def test_attention_in_16_bits_is_that_of_its_formula(heads):
    """Both it and jax.nn's own are off by what rounding to 8 bits makes of them."""
    rng = np.random.default_rng(0)
    *inputs, weight = (jnp.bfloat16(rng.normal(size=(2, 64, heads, 16))) for _ in range(4))

    def formula(q, k, v):
        logits = jnp.einsum("btnh,bsnh->bnts", q, k) / 4.0
        return jnp.einsum("bnts,bsnh->btnh", jax.nn.softmax(logits), v)

    def all_of(function, *arrays):
        result, back = jax.vjp(function, *arrays)
        return result, *back(weight.astype(result.dtype))

    exact = all_of(formula, *(a.astype(jnp.float32) for a in inputs))
    for a, b in zip(all_of(attention.attention_in_16_bits, *inputs), exact, strict=True):
        assert a.dtype == jnp.bfloat16
        np.testing.assert_allclose(a.astype(jnp.float32), b, atol=0.01 * np.abs(b).max())


def test_attention_in_16_bits_keeps_no_matrix_of_32():
    x = jax.ShapeDtypeStruct((2, 64, 1, 16), jnp.bfloat16)
    _, back = jax.eval_shape(lambda *a: jax.vjp(attention.attention_in_16_bits, *a), x, x, x)
    kept = {leaf.dtype for leaf in jax.tree.leaves(back) if leaf.size >= 2 * 64 * 64}
    assert kept == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs an NVIDIA GPU")
def test_fused_attention_gives_what_the_other_gives():
    x = jnp.bfloat16(np.random.default_rng(0).normal(size=(2, 16, 16, 128)))

    def gradient(fused):
        block = attention.AttentionBlock(None, 64, 32, jnp.bfloat16, fused)
        params = random_params(block, x)
        return jax.jit(jax.grad(lambda p: block.apply(p, x).astype(jnp.float32).mean()))(params)

    # bfloat16 has 8 bits: sums in another order differ in the last.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0.05, atol=0.05 * np.abs(b).max()),
        gradient(True),
        gradient(False),
    )


def test_heads_by_count_or_by_size():
    assert attention.attention_heads(96, 4, None) == (4, 24)
    assert attention.attention_heads(192, None, 64) == (3, 64)
    with pytest.raises(ValueError, match="96 channels does not divide by num_heads 5"):
        attention.attention_heads(96, 5, None)
    with pytest.raises(ValueError, match="96 channels does not divide by head_dim 64"):
        attention.attention_heads(96, None, 64)
    with pytest.raises(ValueError, match="not both or neither"):
        attention.attention_heads(96, 2, 48)
