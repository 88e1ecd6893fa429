"""The U-Net: the paper's sizes, what reaches the output, what is refused."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_distill.models import unet
from diffusion_distill.models.unet import UNet, dropout

SMALL = UNet(
    out_channels=3,
    channels=8,
    channel_multipliers=(1, 2),
    num_blocks=1,
    emb_channels=16,
    attention_resolutions=(4,),
    num_classes=5,
    num_groups=4,
)


def inputs(batch=2, side=8, channels=3, classes=5):
    rng = np.random.default_rng(0)
    z = jnp.float32(rng.normal(size=(batch, side, side, channels)))
    return z, jnp.linspace(-3.0, 3.0, batch), jnp.arange(batch) % classes


def random_params(model, *arguments):
    """Weights without zeros: at the start the last convolutions hide the rest of the network."""
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), *arguments))
    leaves, tree = jax.tree.flatten(shapes)
    rng = np.random.default_rng(1)
    return tree.unflatten([jnp.float32(0.2 * rng.normal(size=s.shape)) for s in leaves])


@pytest.fixture(scope="module")
def small():
    params = random_params(SMALL, *inputs())
    return params, jax.jit(SMALL.apply)


def test_starts_at_zero_and_in_float32():
    """As small as it can be: at any size it ends in the same convolution."""
    model = dataclasses.replace(SMALL, channel_multipliers=(1,), attention_resolutions=())
    out, params = jax.jit(model.init_with_output)(jax.random.key(0), *inputs(side=4))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    np.testing.assert_array_equal(out, 0.0)


def test_labels_time_and_image_reach_the_output(small):
    params, apply = small
    z, logsnr, labels = inputs()
    before = apply(params, z, logsnr, labels)
    assert before.shape == z.shape
    changed = [
        apply(params, z, logsnr, (labels + 1) % 5),
        apply(params, z, logsnr + 0.5, labels),
        apply(params, z + 0.1, logsnr, labels),
    ]
    for after in changed:
        assert np.all(np.abs(after - before).max(axis=(1, 2, 3)) > 1e-3)


def test_images_do_not_reach_each_other(small):
    params, apply = small
    z, logsnr, labels = inputs()
    before = apply(params, z, logsnr, labels)
    after = apply(params, z.at[1].add(1.0), logsnr.at[1].add(1.0), labels.at[1].set(3))
    np.testing.assert_allclose(after[0], before[0], atol=1e-6)


def test_one_pixel_reaches_all_others(small):
    """Through the lower resolution and attention; so labels and layout are not local either."""
    params, apply = small
    z, logsnr, labels = inputs()
    before = apply(params, z, logsnr, labels)
    after = apply(params, z.at[0, 0, 0].add(1.0), logsnr, labels)
    assert np.all(np.abs(after - before)[0].max(axis=-1) > 0)


@pytest.mark.parametrize(
    "change",
    [
        {"channel_multipliers": (1,), "attention_resolutions": ()},  # it has attention all the same
        pytest.param({}, marks=pytest.mark.slow),
    ],
    ids=["one resolution", "two"],
)
def test_rematerialisation_changes_no_gradient(change):
    model = dataclasses.replace(SMALL, **change)
    arguments = inputs(side=4)
    params = random_params(model, *arguments)

    def gradient(model):
        return jax.jit(jax.grad(lambda p: jnp.square(model.apply(p, *arguments)).sum()))(params)

    plain = gradient(model)
    saved = gradient(dataclasses.replace(model, remat=True))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), plain, saved)


@pytest.mark.parametrize(
    "change",
    [
        {"dropout": 0.5},
        {"resample_blocks": False, "patch_size": 2, "attention_resolutions": (2,)},
        {"channel_multipliers": (2, 1, 3), "num_groups": 8, "dtype": jnp.bfloat16},
    ],
    ids=["dropout", "plain resampling of patches", "three resolutions, bfloat16"],
)
def test_a_network_of_pixel_pairs_is_the_network(change):
    """Its output and its gradients; groups lie over the border of what is concatenated."""
    model = dataclasses.replace(SMALL, **change)
    arguments = inputs()
    keys = jax.random.split(jax.random.key(1), 2) if model.dropout else None
    params = random_params(model, *arguments)
    weight = jnp.float32(np.random.default_rng(2).normal(size=arguments[0].shape))

    @functools.partial(jax.jit, static_argnums=0)
    def both(model, params):
        def weighed(params):
            out = model.apply(params, *arguments, dropout_keys=keys)
            return (out * weight).sum(), out

        return jax.grad(weighed, has_aux=True)(params)

    gradients, out = both(model, params)
    paired_gradients, paired_out = both(dataclasses.replace(model, pixel_pairs=True), params)
    near = 1e-5 if model.dtype == jnp.float32 else 0.02  # bfloat16 has 8 bits

    def assert_near(a, b):
        """Beside the largest: gradients of biases ahead of a norm are rounding alone."""
        largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(b))
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=near * largest), a, b
        )

    assert_near(paired_out, out)
    assert_near(paired_gradients, gradients)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"channel_multipliers": (1,), "attention_resolutions": ()},
        {"attention_resolutions": (8,)},
    ],
    ids=["two resolutions", "one", "attention at the highest"],
)
def test_pixels_are_paired_where_the_network_can_be(change):
    model = dataclasses.replace(SMALL, **change)
    programs = [
        str(jax.make_jaxpr(m.init)(jax.random.key(0), *inputs()))
        for m in (model, dataclasses.replace(model, pixel_pairs=True))
    ]
    assert (programs[0] == programs[1]) == bool(change)


def test_bfloat16_computes_apart_from_float32_parameters(small):
    params, apply = small
    model = dataclasses.replace(SMALL, dtype=jnp.bfloat16)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), *inputs()))
    assert {p.dtype for p in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
    out, intermediates = jax.eval_shape(
        lambda p: model.apply(p, *inputs(), capture_intermediates=True), params
    )
    assert out.dtype == jnp.float32
    captured = intermediates["intermediates"]
    assert captured["conv_in"]["__call__"][0].dtype == jnp.bfloat16
    assert captured["mid.block_1"]["conv1"]["__call__"][0].dtype == jnp.bfloat16
    exact, rounded = apply(params, *inputs()), jax.jit(model.apply)(params, *inputs())
    assert 0 < np.abs(rounded - exact).max() < 0.05 * np.abs(exact).max()


def test_dropout_acts_in_training_only(small):
    params, _ = small
    model = dataclasses.replace(SMALL, dropout=0.5)
    arguments = inputs()
    without = [str(jax.make_jaxpr(m.apply)(params, *arguments)) for m in (model, SMALL)]
    assert without[0] == without[1]
    apply = jax.jit(model.apply)
    keys = jax.random.split(jax.random.key(0), 2)
    a, b, c = (apply(params, *arguments, dropout_keys=k) for k in (keys, keys[::-1], keys))
    assert np.abs(a - b).max() > 1e-3
    np.testing.assert_array_equal(a, c)


def test_dropout_zeros_its_share_and_keeps_the_mean():
    h = jnp.ones((4, 50, 50, 2))
    out = np.asarray(dropout(h, 0.2, jax.random.split(jax.random.key(0), 4), "down_0.block_1"))
    assert set(np.unique(out)) == {0.0, np.float32(1.0 / 0.8)}
    # 20,000 draws: the share's standard deviation is 0.0028.
    assert np.mean(out == 0.0) == pytest.approx(0.2, abs=0.012)
    assert out.mean() == pytest.approx(1.0, abs=0.015)


def test_dropout_of_an_example_is_a_function_of_its_key_and_the_layer():
    keys = jax.random.split(jax.random.key(0), 4)
    h = jnp.ones((4, 8, 8, 2))
    whole = dropout(h, 0.5, keys, "a")
    np.testing.assert_array_equal(dropout(h[2:3], 0.5, keys[2:3], "a")[0], whole[2])
    assert np.any(np.asarray(whole[0]) != whole[1])
    assert np.any(np.asarray(dropout(h, 0.5, keys, "b")) != whole)


@pytest.mark.parametrize("resample_blocks", [True, False])
def test_both_ways_of_resampling(resample_blocks):
    model = dataclasses.replace(SMALL, resample_blocks=resample_blocks)
    out, params = jax.eval_shape(model.init_with_output, jax.random.key(0), *inputs())
    inside = "conv1" if resample_blocks else "conv"
    for name in ("down_0.downsample", "up_1.upsample"):
        assert inside in params["params"][name]
    assert out.shape == (2, 8, 8, 3)


def test_resampling_averages_and_repeats():
    x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    np.testing.assert_array_equal(unet.downsample(x)[0, ..., 0], [[2.5, 4.5], [10.5, 12.5]])
    up = unet.upsample(x)
    np.testing.assert_array_equal(up[0, :, :, 0], np.kron(x[0, ..., 0], np.ones((2, 2))))
    np.testing.assert_array_equal(unet.downsample(up), x)


def test_patches_are_the_pixels_of_each_as_channels_and_go_back():
    x = jnp.arange(2.0 * 4 * 6 * 3).reshape(2, 4, 6, 3)
    patches = unet.to_patches(x, 2)
    assert patches.shape == (2, 2, 3, 12)
    np.testing.assert_array_equal(patches[1, 0, 2].reshape(2, 2, 3), x[1, 0:2, 4:6])
    np.testing.assert_array_equal(unet.from_patches(patches, 2), x)


def test_a_network_on_patches_is_one_on_pixels_between_taking_them_apart_and_putting_them_back():
    """With attention where the patches have its height."""
    model = dataclasses.replace(SMALL, channel_multipliers=(1,), patch_size=2)
    inner = dataclasses.replace(model, patch_size=1, out_channels=12)
    z, logsnr, labels = inputs()
    params = random_params(model, z, logsnr, labels)
    assert "down_0.attn_0" in params["params"]
    out = jax.jit(model.apply)(params, z, logsnr, labels)
    expected = jax.jit(inner.apply)(params, unet.to_patches(z, 2), logsnr, labels)
    assert out.shape == z.shape
    np.testing.assert_array_equal(out, unet.from_patches(expected, 2))


def test_timestep_embedding_by_its_formula():
    time, channels = np.array([0.0, 0.1, 0.731, 1.0]), 32
    half = channels // 2
    arguments = 1000.0 * time[:, None] * 10000.0 ** (-np.arange(half) / (half - 1))[None]
    expected = np.concatenate([np.sin(arguments), np.cos(arguments)], axis=1)
    got = unet.timestep_embedding(jnp.float32(time), channels)
    # Arguments reach 1000, where float32 has steps of 6e-5.
    np.testing.assert_allclose(got, expected, atol=2e-4)
    assert unet.timestep_embedding(jnp.float32(time), 9).shape == (4, 9)


def test_time_inputs():
    logsnr = np.array([-20.0, -2.0, 0.0, 2.0, 20.0])
    expected = {
        "arctan": np.arctan(np.exp(-logsnr / 2)) * 2 / np.pi,
        "linear": (logsnr + 20) / 40,
        "sigmoid": 1 / (1 + np.exp(-logsnr)),
    }
    for name, time_input in unet.TIME_INPUTS.items():
        np.testing.assert_allclose(
            time_input(jnp.float32(logsnr), -20.0, 20.0), expected[name], rtol=1e-5, atol=1e-7
        )


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        ({}, inputs(side=9), "9x9 pixels do not halve 1 times.*divisible by 2"),
        ({"patch_size": 4}, inputs(side=12), "do not halve .* in patches of 4.*divisible by 8"),
        ({"num_groups": 32}, inputs(), "8 channels do not divide into 32 groups"),
        ({"num_groups": 3}, inputs(), "8 channels do not divide into 3 groups"),
        ({}, (*inputs()[:2], None), r"needs labels of shape \(2,\), not None"),
        ({"num_classes": 0}, inputs(), "labels were given to a network that has none"),
        ({}, (inputs()[0], jnp.zeros(3), inputs()[2]), r"logsnr has shape \(3,\)"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_numbers(change, arguments, message):
    model = dataclasses.replace(SMALL, **change)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: model.init(jax.random.key(0), *arguments))
