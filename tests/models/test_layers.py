"""Normalisation and convolution: their values, their gradients, and what each platform is given."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_distill.devices import compiler
from diffusion_distill.models import layers
from diffusion_distill.models.layers import Conv, GroupNorm

RNG = np.random.default_rng(0)


def normal(*shape):
    return jnp.float32(RNG.normal(size=shape))


def norm_by_its_formula(params, x, scale, shift, num_groups, activated=True):
    """Two passes, the mean first; of whatever dtype x is; swish where `activated`."""
    batch, height, width, channels = x.shape
    grouped = x.reshape(batch, height * width, num_groups, channels // num_groups)
    centred = grouped - grouped.mean(axis=(1, 3), keepdims=True)
    h = centred / jnp.sqrt(jnp.square(centred).mean(axis=(1, 3), keepdims=True) + 1e-6)
    h = h.reshape(x.shape) * params["scale"] + params["bias"]
    h = h * (1 + scale[:, None, None]) + shift[:, None, None]
    return h / (1 + jnp.exp(-h)) if activated else h


@pytest.fixture
def norm_case():
    params = {"scale": normal(6), "bias": normal(6)}
    return params, 3.0 + 2.0 * normal(4, 5, 3, 6), normal(4, 6), normal(4, 6), normal(4, 5, 3, 6)


def test_group_norm_and_its_gradients_by_the_formula_in_float64(norm_case, x64):
    *arguments, weight = norm_case
    norm = GroupNorm(num_groups=3, activation=nn.swish)

    def ours(params, *rest):
        return norm.apply({"params": params}, *rest)

    def formula(*arguments):
        return norm_by_its_formula(*arguments, num_groups=3)

    exact = jax.tree.map(lambda a: a.astype(jnp.float64), arguments)
    np.testing.assert_allclose(ours(*arguments), formula(*exact), rtol=1e-5, atol=1e-5)

    def gradients(function, arguments):
        def weighed(*a):
            return (function(*a) * weight).sum()

        return jax.jit(
            jax.grad(weighed, argnums=range(4)), compiler_options=compiler.options("cpu")
        )(*arguments)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5),
        gradients(ours, arguments),
        gradients(formula, exact),
    )


def test_group_norm_keeps_the_dtype_and_computes_in_float32(norm_case):
    params, *images, _ = norm_case
    norm = GroupNorm(num_groups=3)
    images = [a.astype(jnp.bfloat16) for a in images]
    small = norm.apply({"params": params}, *images)
    assert small.dtype == jnp.bfloat16
    same = norm.apply({"params": params}, *[a.astype(jnp.float32) for a in images])
    np.testing.assert_array_equal(small, same.astype(jnp.bfloat16))


@pytest.mark.parametrize("activation", [None, nn.swish])
def test_group_norms_gradient_in_16_bits_is_that_of_its_formula(norm_case, activation):
    """Its result and its gradient are rounded to 8 bits, sums over pixels are not."""
    params, *images, weight = norm_case
    norm = GroupNorm(num_groups=3, activation=activation)
    x, scale, shift = (a.astype(jnp.bfloat16) for a in images)

    def formula(*arguments):
        result = norm_by_its_formula(*arguments, 3, activation is not None)
        return (result * weight).sum()

    def ours(params, *rest):
        return (norm.apply({"params": params}, *rest).astype(jnp.float32) * weight).sum()

    arguments = params, x, scale, shift
    exact = jax.grad(formula, argnums=range(4))(*jax.tree.map(lambda a: a.astype(float), arguments))
    gradients = jax.jit(jax.grad(ours, argnums=range(4)))(*arguments)
    assert gradients[1].dtype == jnp.bfloat16
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
            a.astype(jnp.float32), b, rtol=0.02, atol=0.02 * np.abs(b).max()
        ),
        gradients,
        exact,
    )


def test_forward_mode_agrees_with_reverse_mode(norm_case):
    params, x, _, _, weight = norm_case
    norm = GroupNorm(num_groups=3, activation=nn.swish)

    def function(x):
        return norm.apply({"params": params}, x)

    direction = normal(*x.shape)
    _, pushed = jax.jvp(function, (x,), (direction,))
    (pulled,) = jax.vjp(function, x)[1](weight)
    assert float((pushed * weight).sum()) == pytest.approx(float((pulled * direction).sum()), 1e-4)


@pytest.mark.parametrize("strides", [1, 2])
def test_convolution_is_that_of_flax_with_its_gradients(strides):
    x, ours, flax = normal(2, 6, 8, 3), Conv(5, strides=strides), nn.Conv(5, (3, 3), strides)
    params = ours.init(jax.random.key(0), x)
    jax.tree.map(np.testing.assert_array_equal, params, flax.init(jax.random.key(0), x))
    weight = normal(2, 6 // strides, 8 // strides, 5)

    def gradients(module, **how):
        def weighed(params, x):
            return (module.apply(params, x) * weight).sum()

        return jax.jit(jax.value_and_grad(weighed, argnums=(0, 1)), **how)(params, x)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        gradients(ours, compiler_options=compiler.options("cpu")),
        gradients(flax),
    )


def test_sums_and_spreads_over_pixels():
    x, v = normal(2, 3, 4, 5), normal(2, 5)
    np.testing.assert_allclose(layers.sum_pixels(x), np.sum(x, (1, 2)), rtol=1e-5, atol=1e-6)
    spread, pull = jax.vjp(lambda v: layers.spread_pixels(v, 3) * jnp.ones(x.shape), v)
    np.testing.assert_array_equal(spread, np.broadcast_to(v[:, None, None], x.shape))
    np.testing.assert_allclose(pull(x)[0], np.sum(x, (1, 2)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("platform", "bounds"), [("cpu", 2), ("cuda", 0), ("tpu", 0)])
def test_only_the_cpu_has_bounds_to_fusion(platform, bounds):
    def loss(x):
        return layers.materialize(layers.materialize_gradient(x)).sum()

    lowered = jax.jit(jax.grad(loss)).trace(normal(3)).lower(lowering_platforms=(platform,))
    assert lowered.as_text().count("optimization_barrier") == bounds
