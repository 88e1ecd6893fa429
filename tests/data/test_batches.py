"""Batches are a function of (seed, stage, step), and images survive the way in and out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_distill.config import base
from diffusion_distill.data import sources
from diffusion_distill.data.batches import (
    Batch,
    batch_indices,
    gather,
    to_network,
    to_uint8,
)
from diffusion_distill.errors import UserError


@pytest.mark.parametrize(("batch_size", "size"), [(4, 10), (7, 10), (10, 10), (25, 10), (3, 1797)])
def test_every_epoch_has_every_image_once(batch_size, size):
    steps = 5 * size // batch_size + 1
    order = np.concatenate([batch_indices(0, 0, step, batch_size, size) for step in range(steps)])
    for epoch in range(5):
        np.testing.assert_array_equal(
            np.sort(order[epoch * size : (epoch + 1) * size]), np.arange(size)
        )
    assert not np.array_equal(order[:size], order[size : 2 * size])


def test_a_batch_is_a_function_of_its_arguments():
    batches = {
        (seed, stage, step): tuple(batch_indices(seed, stage, step, 16, 1797))
        for seed in (0, 1) for stage in (0, 8, 16) for step in (0, 3, 1000)
    }  # fmt: skip
    assert len(set(batches.values())) == len(batches)
    for (seed, stage, step), batch in reversed(batches.items()):
        assert tuple(batch_indices(seed, stage, step, 16, 1797)) == batch


def test_batches_of_any_size_come_from_one_order():
    small = np.concatenate([batch_indices(0, 0, step, 8, 100) for step in range(6)])
    large = np.concatenate([batch_indices(0, 0, step, 16, 100) for step in range(3)])
    np.testing.assert_array_equal(small, large)


def test_uint8_survives_the_way_to_the_network_and_back():
    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    x = to_network(jnp.asarray(images), jax.random.key(0), random_flip=False)
    assert x.dtype == jnp.float32
    assert (x.min(), x.max()) == (-1.0, 1.0)
    np.testing.assert_array_equal(to_uint8(x), images)


def test_to_uint8_rounds_and_clips():
    half = 1.0 / 255.0  # of one level
    x = np.float32([-1.5, -1.0, -1.0 + 0.9 * half, -1.0 + 1.1 * half, 1.0 - 0.9 * half, 1.0, 7.0])
    np.testing.assert_array_equal(to_uint8(x), [0, 0, 0, 1, 255, 255, 255])


def test_flips_about_half_of_the_images_left_to_right():
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (400, 4, 6, 1), np.uint8))
    plain = np.asarray(to_network(images, jax.random.key(1), random_flip=False))
    some = np.asarray(to_network(images, jax.random.key(1), random_flip=True))
    kept = np.array([np.array_equal(a, b) for a, b in zip(plain, some, strict=True)])
    mirrored = np.array([np.array_equal(a[:, ::-1], b) for a, b in zip(plain, some, strict=True)])
    assert np.all(kept ^ mirrored)
    assert 150 < kept.sum() < 250


def test_gather_takes_images_with_their_labels():
    source = sources.digits()
    everything = jax.device_put(Batch(source.images(), source.labels))
    images, labels = gather(everything, jnp.array([5, 1700, 5]))
    np.testing.assert_array_equal(images, source.images()[[5, 1700, 5]])
    np.testing.assert_array_equal(labels, source.labels[[5, 1700, 5]])


def test_digits_are_the_real_ones():
    source = sources.load(base().data)
    assert (len(source), source.image_shape, source.num_classes) == (1797, (8, 8, 1), 10)
    assert source.images().dtype == np.uint8
    assert set(np.unique(source.labels)) == set(range(10))
    assert (source.images().min(), source.images().max()) == (0, 255)
    # A zero is dark in the middle, a one is bright there.
    mean = {n: source.images()[source.labels == n].mean(axis=0)[3:5, 3:5].mean() for n in (0, 1)}
    assert mean[0] < 60 < 150 < mean[1]


def test_unknown_source_lists_those_there_are():
    config = base().data
    config.name = "mnist"
    with pytest.raises(UserError, match="'mnist'; there are cifar10, digits, folder"):
        sources.load(config)


def test_digits_have_one_split():
    with pytest.raises(UserError, match="config.data.split is 'test'; digits have only 'train'"):
        sources.load(base().data, split="test")


def test_on_the_device_images_are_rounded_to_the_same_levels():
    """At every half step and the floats beside it, at every level, and outside the range."""
    halves = (np.arange(-4, 516) / 255.0 - 1.0).astype(np.float32)
    x = np.concatenate(
        [
            halves,
            np.nextafter(halves, np.float32(-9)),
            np.nextafter(halves, np.float32(9)),
            np.random.default_rng(0).uniform(-1.2, 1.2, 100_000).astype(np.float32),
        ]
    )
    expected = np.clip(np.round((x + np.float32(1)) * np.float32(127.5)), 0, 255).astype(np.uint8)
    assert len(np.unique(expected)) == 256
    np.testing.assert_array_equal(jax.jit(to_uint8)(x), expected)
    np.testing.assert_array_equal(to_uint8(jnp.asarray(x)), expected)
    assert np.mean(expected != np.clip((x + 1) * 127.5, 0, 255).astype(np.uint8)) > 0.3
