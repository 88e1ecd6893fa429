"""What a run writes for its report: samples, real images, nearest training images."""

import dataclasses

import numpy as np

from diffusion_distill.data import sources
from diffusion_distill.data.source import from_arrays
from diffusion_distill.report.pictures import real_indices, write_real, write_samples
from diffusion_distill.storage.files import read_npz

DIGITS = sources.digits()


def test_real_images_have_the_labels_asked_for_and_their_distance_to_another(tmp_path):
    labels = np.resize(np.arange(10), 25).astype(np.int32)
    write_real(tmp_path / "real.npz", DIGITS, labels, mirror=False)
    real = read_npz(tmp_path / "real.npz")
    np.testing.assert_array_equal(real["labels"], labels)
    assert (real["total"], real["compared"]) == (1797, 1797)
    everything = DIGITS.images().astype(float)
    for image, distance in zip(real["images"], real["distances"], strict=True):
        all_distances = np.sqrt(np.mean((everything - image) ** 2, (1, 2, 3)))
        least, second = np.sort(all_distances)[:2]
        assert least == 0  # itself
        np.testing.assert_allclose(distance, second)
    before = (tmp_path / "real.npz").stat().st_mtime_ns
    write_real(tmp_path / "real.npz", DIGITS, labels[:3], mirror=False)
    assert (tmp_path / "real.npz").stat().st_mtime_ns == before


def test_a_model_that_copies_is_found_out(tmp_path):
    copied = np.arange(0, 100, 7)
    write_samples(
        tmp_path / "samples.npz", DIGITS.images(copied), DIGITS.labels[copied], DIGITS, mirror=False
    )
    found = read_npz(tmp_path / "samples.npz")
    np.testing.assert_array_equal(found["distances"], 0)
    np.testing.assert_array_equal(found["nearest"][:, 0], DIGITS.images(copied[:8]))
    assert found["nearest"].shape == (8, 3, 8, 8, 1)
    assert np.all(found["nearest_distances"][:, 1] > 0)


def test_data_without_labels_or_with_few_images_is_shown_too():
    plain = dataclasses.replace(DIGITS, num_classes=0)
    assert len(set(real_indices(plain, np.zeros(40, np.int32)))) == 40
    few = from_arrays(DIGITS.images(np.arange(3)), np.array([0, 1, 1]))
    chosen = real_indices(few, np.array([0, 1, 0, 1, 1]))
    np.testing.assert_array_equal(few.labels[chosen], [0, 1, 0, 1, 1])


def test_a_single_image_has_no_other_to_be_near(tmp_path):
    one = from_arrays(DIGITS.images(np.arange(1)), np.array([0]))
    write_real(tmp_path / "real.npz", one, np.zeros(4, np.int32), mirror=False)
    assert len(read_npz(tmp_path / "real.npz")["distances"]) == 0
    write_samples(tmp_path / "samples.npz", one.images(), np.zeros(1, np.int32), one, mirror=True)
    assert read_npz(tmp_path / "samples.npz")["nearest"].shape == (1, 1, 8, 8, 1)
