"""Images whose quality is known, measured."""

import dataclasses

import numpy as np
import pytest

from diffusion_distill.data import sources
from diffusion_distill.data.source import from_arrays
from diffusion_distill.errors import UserError
from diffusion_distill.metrics import yardstick
from diffusion_distill.metrics.blocks import BlockStore
from diffusion_distill.metrics.classifier import LabelJudge
from diffusion_distill.metrics.features import FeatureNetwork, pixels
from diffusion_distill.metrics.frechet import Statistics
from diffusion_distill.metrics.reference import Reference, reference_of
from diffusion_distill.metrics.request import Request
from diffusion_distill.metrics.yardstick import METRICS, Yardstick

SOURCE = sources.digits()
REAL = from_arrays(SOURCE.images()[:900], SOURCE.labels[:900])  # so few make KID one value
ALL = tuple(METRICS)


def with_logits(name="random"):
    """A small random network that has logits."""
    rng = np.random.default_rng(0)
    params = {
        "features": rng.normal(size=(64, 6)).astype(np.float32) / 8,
        "logits": rng.normal(size=(6, 5)).astype(np.float32),
    }

    def apply(params, images):
        features = np.tanh(images.reshape(len(images), -1) / 127.5 @ params["features"])
        return features, features @ params["logits"]

    return FeatureNetwork(name, params, apply, "random")


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return reference_of(REAL, pixels(), 500, tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def judge():
    """Fitted on the first 1,200 digits alone."""
    return LabelJudge(SOURCE.images()[:1200], SOURCE.labels[:1200])


def measure(yardstick, images, labels=None, **how):
    request = Request(lambda n: images[n], len(images), 300, labels)
    return yardstick.measure(request, **how)


def test_the_judge_knows_real_digits_and_not_wrong_labels(judge):
    images, labels = SOURCE.images()[1200:], SOURCE.labels[1200:]
    assert judge.agreement(images, labels) > 0.93
    assert judge.agreement(images, (labels + 1) % 10) < 0.05
    assert judge.held_out_accuracy > 0.95


def test_better_images_score_better(digits, judge):
    yardstick = Yardstick(pixels(), digits, ("fd", "kid", "precision_recall"), judge=judge)
    half = np.random.default_rng(0).permutation(len(REAL))[:450]
    noise = np.random.default_rng(1).integers(0, 256, (450, 8, 8, 1), np.uint8)
    sets = [SOURCE.images()[half], SOURCE.images()[half] // 2, noise]
    results = [measure(yardstick, images, SOURCE.labels[half]) for images in sets]
    real, faint, random = (result.values for result in results)
    assert results[0].metrics == [
        "fd_pixels450_train", "kid_pixels450_train",
        "precision_pixels450_train", "recall_pixels450_train",
    ]  # fmt: skip
    fd, kid, precision, recall = results[0].metrics
    assert 0 < real[fd] < 0.3
    assert real[fd] < faint[fd] < random[fd]
    assert real[kid] < faint[kid] < random[kid]
    assert real[precision] == 1.0  # all are among the real ones
    assert random[precision] == random[recall] == 0.0
    assert real["label_agreement"] > 0.98
    assert random["label_agreement"] < 0.2


def test_a_singular_covariance_is_spoken_of(digits):
    """Three pixels of digits are always 0."""
    result = measure(Yardstick(pixels(), digits), SOURCE.images()[:50])
    assert result.notes == {
        "fd_pixels50_train": "covariances of rank 49 (images) and 61 (reference) in 64 dimensions: "
        "singular"
    }


def test_without_logits_the_result_says_why_there_is_no_inception_score(digits):
    result = measure(Yardstick(pixels(), digits, ALL), SOURCE.images()[:100])
    assert result.notes["inception_score"] == "the network pixels gives no logits"
    assert not any(name.startswith("is") for name in result.values)
    with pytest.raises(UserError, match="nothing can be measured: the network pixels gives no"):
        measure(Yardstick(pixels(), digits, ("inception_score",)), SOURCE.images()[:100])


def test_with_logits_everything_is_measured(tmp_path):
    network = with_logits()
    reference = reference_of(REAL, network, 500, tmp_path)
    result = measure(Yardstick(network, reference, ALL), SOURCE.images()[:500])
    assert result.metrics == [
        "fd_random500_train", "kid_random500_train", "precision_random500_train",
        "recall_random500_train", "is_random500",
    ]  # fmt: skip
    assert result.notes == {}
    assert 1 < result.values["is_random500"] < 5
    assert 0 < result.spreads["is_random500"] < 1
    assert result.row()["is_random500_std"] == result.spreads["is_random500"]


def test_a_reference_may_have_any_name(digits, monkeypatch):
    """Also one that ends as what a row calls a spread."""
    monkeypatch.setattr(yardstick, "kernel_distance", lambda a, b: (0.5, 0.25))
    reference = dataclasses.replace(digits, name="vs_my_std")
    result = measure(Yardstick(pixels(), reference, ("fd", "kid")), SOURCE.images()[:100])
    fd, kid = result.metrics
    assert (fd, kid) == ("fd_pixels100_vs_my_std", "kid_pixels100_vs_my_std")
    assert (
        result.values[fd]
        == measure(Yardstick(pixels(), digits), SOURCE.images()[:100]).values["fd_pixels100_train"]
    )
    assert (result.values[kid], result.spreads) == (0.5, {kid: 0.25})
    assert result.row().keys() == {"metrics", fd, kid, f"{kid}_std", "notes"}


def test_statistics_alone_allow_the_frechet_distance_alone(digits):
    reference = Reference("vs_other", digits.statistics, None, None, {})
    result = measure(Yardstick(pixels(), reference, ALL), REAL.images())
    assert result.metrics == ["fd_pixels900_vs_other"]
    assert result.values["fd_pixels900_vs_other"] == pytest.approx(0.0, abs=1e-6)
    for name in ("kid", "precision_recall"):
        assert result.notes[name] == "vs_other has statistics only, and it compares features"


def test_a_reference_of_another_feature_size_is_refused():
    reference = Reference("vs_other", Statistics(np.zeros(5), np.eye(5)), None, None, {})
    with pytest.raises(UserError, match="size 64, but those of the reference vs_other of size 5"):
        measure(Yardstick(pixels(), reference), SOURCE.images()[:100])


def test_too_few_images_for_fid_must_be_asked_for_and_are_named(tmp_path):
    network = with_logits("inception")
    few = from_arrays(SOURCE.images()[:100])
    reference = reference_of(few, network, 100, tmp_path)
    with pytest.raises(UserError, match="of images of train is 100; .* at least 2049 images"):
        measure(Yardstick(network, reference), SOURCE.images()[:100])
    reference = Reference("train", reference.statistics, reference.features, 60_000, {})
    with pytest.raises(UserError, match="the number of images is 100; .* at least 2049 images"):
        measure(Yardstick(network, reference), SOURCE.images()[:100])
    allowed = Yardstick(network, reference, ALL, allow_biased=True)
    assert measure(allowed, SOURCE.images()[:100]).metrics == [
        "fid100_train_biased", "kid100_train", "precision100_train", "recall100_train", "is100",
    ]  # fmt: skip


@pytest.mark.parametrize("count", [1, 3])
def test_fewer_images_than_a_metric_takes(digits, count):
    yardstick = Yardstick(pixels(), digits, ("precision_recall",))
    message = "must be at least 2" if count == 1 else "takes at least 4 images, not 3"
    with pytest.raises(UserError, match=message):
        measure(yardstick, SOURCE.images()[:count])


def test_stopped_it_goes_on_to_the_same_bits(tmp_path, monkeypatch, digits, judge):
    monkeypatch.setattr("diffusion_distill.metrics.blocks.BLOCK", 128)
    yardstick = Yardstick(pixels(), digits, ("fd", "kid", "precision_recall"), judge=judge)
    images, labels = SOURCE.images()[:900], SOURCE.labels[:900]
    expected = measure(yardstick, images, labels)
    store = BlockStore(tmp_path / "blocks", {})

    def stop(done, count):
        if done == 600:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(yardstick, images, labels, store=store, on_batch=stop)
    assert list((tmp_path / "blocks").iterdir())
    assert measure(yardstick, images, labels, store=store) == expected
