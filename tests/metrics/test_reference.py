"""References: computed once, reused only where all of it matches, read from other projects."""

import concurrent.futures
import dataclasses
import threading

import numpy as np
import pytest

from diffusion_distill.data.source import from_arrays
from diffusion_distill.errors import UserError
from diffusion_distill.metrics import blocks, reference
from diffusion_distill.metrics.features import pixels
from diffusion_distill.metrics.reference import reference_from_file, reference_of

IMAGES = np.random.default_rng(0).integers(0, 256, (90, 2, 2, 1), np.uint8)
SOURCE = from_arrays(IMAGES, name="mine", split="test")


def float64_pixels(images):
    return images.reshape(len(images), -1) / 127.5 - 1


class Counting:
    """A source's reading, counted."""

    def __init__(self, source):
        self.read = 0
        self.source = dataclasses.replace(source, read=lambda n: self._read(source, n))

    def _read(self, source, indices):
        self.read += 1
        return source.read(indices)


def test_statistics_are_those_of_all_images(tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 16)
    made = reference_of(SOURCE, pixels(), 7, tmp_path, say=lambda line: None)
    features = float64_pixels(IMAGES)
    # Features are float32: 1e-7 of values up to 1, and their products.
    np.testing.assert_allclose(made.statistics.mean, features.mean(0), atol=1e-6)
    np.testing.assert_allclose(
        made.statistics.covariance, np.cov(features, rowvar=False), atol=1e-6
    )
    np.testing.assert_allclose(made.features, features, atol=1e-6)
    assert (made.name, made.count, made.size) == ("test", 90, 4)


def test_is_computed_once_and_then_read(tmp_path):
    counting = Counting(SOURCE)
    first = reference_of(counting.source, pixels(), 30, tmp_path)
    assert counting.read == 3
    second = reference_of(counting.source, pixels(), 50, tmp_path)
    assert counting.read == 3
    for a, b in zip(first.statistics, second.statistics, strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(first.features, second.features)
    (file,) = [p for p in (tmp_path / "references").rglob("*") if p.is_file()]
    assert file.name.startswith("mine-test-pixels-")


def changed_pixel():
    images = IMAGES.copy()
    images[80, 1, 1, 0] ^= 1
    return from_arrays(images, name="mine", split="test")


@pytest.mark.parametrize(
    "other",
    [
        (changed_pixel(), pixels()),
        (dataclasses.replace(SOURCE, split="train"), pixels()),
        (dataclasses.replace(SOURCE, preprocessing="cropped"), pixels()),
        (SOURCE, dataclasses.replace(pixels(), fingerprint="other weights")),
    ],
)
def test_is_computed_again_where_anything_differs(tmp_path, other):
    reference_of(SOURCE, pixels(), 30, tmp_path)
    source, network = other
    counting = Counting(source)
    reference_of(counting.source, network, 30, tmp_path)
    assert counting.read


def test_a_damaged_cache_is_never_used(tmp_path, capsys):
    expected = reference_of(SOURCE, pixels(), 30, tmp_path)
    (file,) = (tmp_path / "references").glob("*.npz")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    again = reference_of(SOURCE, pixels(), 30, tmp_path)
    assert f"warning: {file} is " in capsys.readouterr().out
    np.testing.assert_array_equal(again.features, expected.features)


@pytest.mark.parametrize("kept", [1000, 7])
def test_stopped_it_goes_on_to_the_same_bits(tmp_path, monkeypatch, kept):
    monkeypatch.setattr(blocks, "BLOCK", 16)
    monkeypatch.setattr(reference, "KEPT", kept)
    expected = reference_of(SOURCE, pixels(), 10, tmp_path / "never")
    monkeypatch.setattr(reference, "SAVED_EVERY", 0.0)
    counting = Counting(SOURCE)

    def stop(done, count):
        if done >= 50:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reference_of(counting.source, pixels(), 10, tmp_path / "stopped", on_batch=stop)
    counting.read = 0
    if kept < len(SOURCE):  # what is on disk is statistics, not every feature
        files = (tmp_path / "stopped").rglob("*.npz")
        stored = [np.load(path)["features"] for path in files if not path.match("000000.npz")]
        assert 0 < sum(map(len, stored)) <= kept
    again = reference_of(counting.source, pixels(), 10, tmp_path / "stopped")
    assert counting.read == 6  # 48 images were saved: the batch of 40 to 49 is made again
    np.testing.assert_array_equal(again.features, expected.features)
    for a, b in zip(again.statistics, expected.statistics, strict=True):
        np.testing.assert_array_equal(a, b)


def test_of_two_that_need_it_one_computes_and_the_other_waits(tmp_path, monkeypatch):
    monkeypatch.setattr(reference.time, "sleep", lambda seconds: threading.Event().wait(0.01))
    counting, waiting, said = Counting(SOURCE), threading.Event(), []

    def first_batch(done, count):
        assert waiting.wait(60)  # the first goes on once the second is waiting

    def waiter_says(line):
        said.append(line)
        waiting.set()

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        begun = threading.Event()
        one = pool.submit(
            reference_of, counting.source, pixels(), 90, tmp_path, lambda line: begun.set(),
            first_batch,
        )  # fmt: skip
        assert begun.wait(60)
        other = pool.submit(reference_of, counting.source, pixels(), 90, tmp_path, waiter_says)
        np.testing.assert_array_equal(one.result().features, other.result().features)
    assert counting.read == 1
    assert said == ["reference: another process computes it; waiting"]
    assert [p.suffix for p in (tmp_path / "references").iterdir()] == [".npz"]


def test_of_many_images_a_fixed_subset_of_features_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(reference, "KEPT", 20)
    monkeypatch.setattr(blocks, "BLOCK", 16)
    made = reference_of(SOURCE, pixels(), 10, tmp_path)
    every = float64_pixels(IMAGES).astype(np.float32)
    places = [np.flatnonzero(np.all(np.isclose(every, row, atol=1e-6), 1)) for row in made.features]
    indices = np.concatenate(places)
    assert len(indices) == len(set(indices)) == 20
    assert list(indices) == sorted(indices)
    np.testing.assert_allclose(made.statistics.mean, every.mean(0), atol=1e-6)


def write_npz(path, **arrays):
    np.savez(path, **arrays)
    return path


def test_statistics_of_other_projects(tmp_path):
    mu, sigma = np.arange(3.0), np.diag([1.0, 2.0, 3.0])
    made = reference_from_file(write_npz(tmp_path / "cifar10_train.npz", mu=mu, sigma=sigma))
    np.testing.assert_array_equal(made.statistics.mean, mu)
    np.testing.assert_array_equal(made.statistics.covariance, sigma)
    assert (made.name, made.count, made.features) == ("vs_cifar10-train", None, None)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mean": np.zeros(3)}, "has no arrays mu and sigma"),
        ({"mu": np.zeros(3), "sigma": np.eye(4)}, r"mu is \[3\] and sigma \[4, 4\]"),
        ({"mu": np.full(2, np.nan), "sigma": np.eye(2)}, "a value that is not finite"),
        ({"mu": np.zeros(2), "sigma": np.array([[1.0, 2], [0, 1]])}, "sigma is not symmetric"),
        ({"mu": np.array([{}]), "sigma": np.eye(1)}, "cannot be read as .npz: its array"),
    ],
)
def test_files_that_hold_no_statistics(tmp_path, arrays, message):
    with pytest.raises(UserError, match=message):
        reference_from_file(write_npz(tmp_path / "a.npz", **arrays))


def test_a_file_that_is_not_there_or_cut_off(tmp_path):
    with pytest.raises(UserError, match="there is no file"):
        reference_from_file(tmp_path / "none.npz")
    path = write_npz(tmp_path / "a.npz", mu=np.zeros(9), sigma=np.eye(9))
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(UserError, match="a.npz cannot be read as .npz"):
        reference_from_file(path)
