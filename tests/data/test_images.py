"""Anybody's images, by path."""

import numpy as np
import pytest
from PIL import Image

from diffusion_distill.data.sources import load_images
from diffusion_distill.errors import UserError

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 5, 4, 3), np.uint8)


def write_folder(path, images, suffix=".png"):
    path.mkdir()
    for n, image in enumerate(images):
        Image.fromarray(image.squeeze()).save(path / f"{n:02d}{suffix}")
    return path


@pytest.mark.parametrize("channels", [1, 3])
def test_a_folder_gives_every_pixel_in_the_order_of_names(tmp_path, channels):
    source = load_images(write_folder(tmp_path / "a", IMAGES[..., :channels]))
    assert source.image_shape == (5, 4, channels)
    np.testing.assert_array_equal(source.images(), IMAGES[..., :channels])
    np.testing.assert_array_equal(source.images([4, 1]), IMAGES[[4, 1], ..., :channels])


@pytest.mark.parametrize("name", ["images", "arr_0", "samples"])
def test_an_npz(tmp_path, name):
    np.savez(tmp_path / "a.npz", **{name: IMAGES})
    np.testing.assert_array_equal(load_images(tmp_path / "a.npz").images(), IMAGES)


def test_samples_of_one_label_are_images_like_others(tmp_path):
    np.savez(tmp_path / "a.npz", images=IMAGES, labels=np.full(6, 3))
    assert len(load_images(tmp_path / "a.npz")) == 6


def test_the_fingerprint_tells_sets_apart(tmp_path):
    a = write_folder(tmp_path / "a", IMAGES)
    other = write_folder(tmp_path / "c", IMAGES[::-1])
    assert load_images(a).fingerprint == load_images(a).fingerprint
    assert load_images(a).fingerprint != load_images(other).fingerprint


def test_lossy_files_are_spoken_of(tmp_path):
    said = []
    load_images(write_folder(tmp_path / "a", IMAGES, ".jpg"), said.append)
    assert said[0].startswith(f"warning: 6 files in {tmp_path / 'a'} are lossy, like 00.jpg")


def test_images_of_two_sizes_are_refused_with_their_names(tmp_path):
    folder = write_folder(tmp_path / "a", IMAGES)
    Image.fromarray(IMAGES[0, :3]).save(folder / "zz.png")
    with pytest.raises(UserError, match=r"a/zz.png is 3x4x3, where .*a/00.png is 5x4x3"):
        load_images(folder).images()


def test_what_holds_no_images_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    np.savez(tmp_path / "floats.npz", images=np.zeros((2, 4, 4, 3)))
    np.savez(tmp_path / "two.npz", a=IMAGES, b=IMAGES)
    (tmp_path / "cut.npz").write_bytes((tmp_path / "two.npz").read_bytes()[:200])
    for name, message in [
        ("empty", "has no images"),
        ("none", "is neither a folder of images nor an .npz"),
        ("floats.npz", "images are float64"),
        ("two.npz", "has the arrays a, b; it must have images"),
        ("cut.npz", "cut.npz cannot be read as .npz"),
    ]:
        with pytest.raises(UserError, match=message):
            load_images(tmp_path / name)
