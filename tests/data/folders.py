"""Folders of images, made and read."""

import os

import numpy as np
from PIL import Image

from diffusion_distill.data import sources
from tests.conftest import data_config

COUNT = iter(range(10**6))


def load(root, split="train", **fields):
    return sources.load(data_config("folder", str(root), split=split, **fields))


def put(root, *names, size=8):
    """Images, no two alike."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(next(COUNT)).integers(0, 256, (size, size, 3), np.uint8)
        Image.fromarray(pixels).save(root / name)


def names(source):
    return [os.path.basename(source.image_name(n)) for n in range(len(source))]
