"""The students that travel with the project draw images of every label, out of the box."""

from pathlib import Path

import numpy as np
import pytest

from diffusion_distill import load_sampler

FOLDER = Path(__file__).parents[1] / "pretrained"
STEPS = {"cifar10_small_4": 4, "cifar10_small_1": 1}


@pytest.fixture(scope="module", params=STEPS)
def sampler(request):
    """Of a folder that README names, as it is."""
    sampler = load_sampler(FOLDER / request.param)
    assert sampler.num_steps == STEPS[request.param]
    return sampler


def test_they_draw_images(sampler):
    images = sampler(seed=0, num_images=20, labels=np.arange(10).repeat(2))
    assert images.shape == (20, 32, 32, 3)
    assert images.dtype == np.uint8
    pixels = images.reshape(20, -1).astype(float)
    # Of real images: CIFAR-10's pixels have a mean of 121 and a deviation of 64. Noise would have
    # neighbours that are unlike; in an image they are alike.
    assert 90 < pixels.mean() < 150
    assert 40 < pixels.std() < 80
    steps = np.abs(np.diff(images.astype(float), axis=1))
    assert steps.mean() < 0.4 * pixels.std()


def test_another_label_is_another_image(sampler):
    """From the same noise, by far more than rounding."""
    cars, frogs = (sampler(seed=0, num_images=4, labels=label).astype(float) for label in (1, 6))
    assert np.abs(cars - frogs).mean() > 10


def test_their_teacher_draws_in_any_number_of_steps():
    sampler = load_sampler(FOLDER / "cifar10_small_teacher", num_steps=3)
    assert sampler(seed=0, num_images=2).std() > 20


def test_they_are_small_enough_to_travel():
    size = sum(file.stat().st_size for file in FOLDER.rglob("*"))
    assert size < 18e6  # two students and their teacher, 6 MB each
