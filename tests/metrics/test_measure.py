"""Measuring: the same numbers, stopped or not; what is not measured."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.digits_distill import get_config
from diffusion_distill.data import sources
from diffusion_distill.data.source import from_arrays
from diffusion_distill.devices.sharding import make_mesh
from diffusion_distill.errors import UserError
from diffusion_distill.metrics.classifier import LabelJudge, check_labels
from diffusion_distill.metrics.measure import Measurer, feature_network, for_run
from diffusion_distill.metrics.request import of_images
from diffusion_distill.metrics.stage_row import Subject, first_images, stage_row
from diffusion_distill.stages import plan

DIGITS = sources.digits()
SOME = from_arrays(DIGITS.images()[:400], DIGITS.labels[:400])

MADE = []  # (name, num_steps, seed, first index) of each batch that NoisyDigits made


class NoisyDigits:
    """Stands in for a sampler: digits with noise that falls with the number of steps."""

    def __init__(self, name, num_steps, guidance=None):
        self.name, self.num_steps, self.guidance = name, num_steps, guidance or 0.0

    def fingerprint(self):
        return "weights"

    def image_labels(self, count):
        return np.zeros(count, np.int32)

    def checked_labels(self, seed, count):
        return self.image_labels(count)

    def batch_size(self, count):
        return min(count, 50)

    def on_devices(self, seed, indices, labels):
        assert labels.shape[0] > indices.max()
        MADE.append((self.name, self.num_steps, seed, int(indices[0])))
        noise = np.random.default_rng([seed, self.num_steps]).integers(0, 256, 64)
        images = DIGITS.images(indices) + noise.reshape(8, 8, 1) // self.num_steps
        images = images + int(10 * self.guidance)
        return jnp.asarray(images % 256, jnp.uint8)


@pytest.fixture
def config():
    config = get_config()
    config.distill.start_steps = 32
    config.eval.num_images = 200
    config.eval.baselines = ("ddim", "ancestral")
    config.eval.label_agreement = False
    MADE.clear()
    return config


def row_of(config, name, folder, check=lambda: None, fixed_steps=None, guidance=None):
    stages = {stage.name: stage for stage in plan(config)}
    measurer = for_run(config, SOME, make_mesh())
    measurer.check = check
    all_steps = tuple(stage.num_steps for stage in stages.values())
    subject = Subject(stages[name], config.eval, all_steps, fixed_steps, guidance)
    return stage_row(measurer, subject, NoisyDigits, folder)


def test_a_row_says_what_its_numbers_are_numbers_of(config, tmp_path):
    config.eval.metrics = ("fd", "kid", "precision_recall", "inception_score")
    row = row_of(config, "student_0004", tmp_path)
    assert row["metric"] == "fd_pixels200_train"
    assert row["metrics"] == [
        "fd_pixels200_train", "kid_pixels200_train",
        "precision_pixels200_train", "recall_pixels200_train",
    ]  # fmt: skip
    assert all(np.isfinite(row[name]) for name in row["metrics"])
    assert row["notes"]["inception_score"] == "the network pixels gives no logits"
    assert (row["num_images"], row["seed"], row["measured_steps"]) == (200, 1, 4)
    assert row["weights"] == "averaged"
    assert row["device_kind"] == jax.devices()[0].device_kind
    assert row["code_version"]
    assert json.loads(json.dumps(row)) == row


def test_no_sampling_of_more_steps_than_the_config_allows_is_measured(config, tmp_path):
    config.eval.max_steps = 8
    config.eval.baseline_images = 100
    row = row_of(config, "teacher", tmp_path / "teacher")
    assert row["measured_steps"] == 8
    assert row["baseline_metric"] == "fd_pixels100_train"
    for values in row["baselines"].values():
        assert list(values) == ["8", "4", "2", "1"]
    assert max(num_steps for _, num_steps, _, _ in MADE) == 8
    MADE.clear()
    row = row_of(config, "student_0016", tmp_path / "student")
    assert row == {"not_measured": "16 steps are more than config.eval.max_steps, 8"}
    assert MADE == []


def test_a_teacher_of_fixed_steps_is_measured_at_those_alone(config, tmp_path):
    row = row_of(config, "teacher", tmp_path, fixed_steps=4)
    assert (row["measured_steps"], row["baselines"]) == (4, {})
    assert "baseline_metric" not in row
    assert {num_steps for _, num_steps, _, _ in MADE} == {4}
    work = Subject(plan(config)[0], config.eval, (16, 8), 4).work()
    assert work == {"ddim, 4 steps": 5 * 200}


def test_a_guided_stage_is_measured_at_each_w_that_it_knows(config, tmp_path):
    config.eval.guidance = (0.0, 1.5, 9.0)
    config.distill.start_steps = 4
    row = row_of(config, "student_0002", tmp_path, guidance=(0.0, 4.0))
    assert list(row["guidance"]) == ["0", "1.5"]
    values = [found["fd_pixels200_train"] for found in row["guidance"].values()]
    assert values[0] == row["fd_pixels200_train"] != values[1]
    unguided = row_of(config, "student_0002", tmp_path / "unguided")
    assert "guidance" not in unguided


def test_first_images_are_the_measured_ones(config):
    measurer = for_run(config, DIGITS, make_mesh())
    stage = plan(config)[0]
    images = first_images(measurer, Subject(stage, config.eval, (32,)), NoisyDigits, 70)
    sampler = NoisyDigits("ddim", 32)
    expected = sampler.on_devices(1, np.arange(70), np.zeros(70, np.int32))
    np.testing.assert_array_equal(images, expected)


def test_stopped_while_measuring_it_goes_on_to_the_same_bits(config, tmp_path, monkeypatch):
    """Nothing is sampled again but what was not saved: less than a block and a batch."""
    monkeypatch.setattr("diffusion_distill.metrics.blocks.BLOCK", 50)
    expected = row_of(config, "teacher", tmp_path / "never")
    every = list(MADE)
    assert len(every) == len(set(every)) == 4 * (6 + 6)
    MADE.clear()

    def stop_at(count):
        def check():
            if len(MADE) >= count:
                raise KeyboardInterrupt

        return check

    for count in (3, 25, 38):
        with pytest.raises(KeyboardInterrupt):
            row_of(config, "teacher", tmp_path / "stopped", stop_at(count))
    assert row_of(config, "teacher", tmp_path / "stopped") == expected
    assert set(MADE) == set(every)
    assert len(MADE) <= len(every) + 3 * 2


def test_results_of_other_weights_or_settings_are_not_taken(config, tmp_path, monkeypatch):
    first = row_of(config, "student_0004", tmp_path)
    MADE.clear()
    assert row_of(config, "student_0004", tmp_path) == first
    assert MADE == []
    config.eval.seed = 2
    assert row_of(config, "student_0004", tmp_path) != first
    MADE.clear()
    monkeypatch.setattr(NoisyDigits, "fingerprint", lambda self: "others")
    row_of(config, "student_0004", tmp_path)
    assert len(MADE) == 4


def test_a_set_of_images_is_measured_and_found_again(config, tmp_path):
    """Its note is there both times; a set of others in the same folder is another."""
    measurer = for_run(config, DIGITS, make_mesh())
    request = of_images(SOME, 200, 50)
    first = measurer.measure(request, tmp_path, "some")
    assert first.metrics == ["fd_pixels200_train"]
    assert first.notes["images"] == "200 of 400, drawn at random, the same at each start"
    assert 0 < first.values["fd_pixels200_train"] < 3

    def never(indices):
        raise AssertionError

    again = dataclasses.replace(request, images_fn=never)
    assert measurer.measure(again, tmp_path, "some") == first
    dark = from_arrays(SOME.images()[:200] // 2)
    assert measurer.measure(of_images(dark, 200, 50), tmp_path, "dark").values != first.values


def statistics_of_size(tmp_path, size):
    np.savez(tmp_path / "other.npz", mu=np.zeros(size), sigma=np.eye(size))
    return str(tmp_path / "other.npz")


def test_what_cannot_be_measured_is_refused_before_anything_is_trained(config, tmp_path):
    def refused(message):
        with pytest.raises(UserError, match=message):
            for_run(config, DIGITS, make_mesh())

    config.eval.metrics = ("inception_score", "fd")
    refused("the first of them cannot be measured: config.eval.features, pixels, gives no logits")
    config.eval.metrics = ("fd",)
    config.eval.split = "test"
    refused("config.data.split is 'test'; digits have only 'train'")
    config.eval.reference = statistics_of_size(tmp_path, 10)
    refused("features are of size 64, but those of the reference vs_other of size 10")
    config.eval.reference = statistics_of_size(tmp_path, 64)
    config.eval.metrics = ("kid",)
    refused("cannot be measured: config.eval.reference has statistics only")
    config.eval.metrics = ("fd", "kid")
    for_run(config, DIGITS, make_mesh())
    config.eval.reference = str(tmp_path / "none.npz")
    refused("there is no file")


def few(count, labels=None):
    return from_arrays(DIGITS.images()[:count], labels if labels is None else np.array(labels))


@pytest.mark.parametrize(
    ("source", "changed", "message"),
    [
        (few(1), {}, "the number of images of arrays, train, is 1; a reference takes at least 2"),
        (few(3), {"metrics": ("precision_recall",)}, "it takes at least 4 images, not 3"),
        (few(9, [0] * 9), {"label_agreement": True}, "9 images of 1 labels; it takes two labels"),
        (few(9, [0] * 8 + [1]), {"label_agreement": True}, "9 images of 2 labels; it takes two"),
        (few(6, [0] * 4 + [1] * 2), {"label_agreement": True}, "images, one of them of 5"),
        (few(9), {"cache": True}, "the cache .* cannot be written to: .*config.runtime.cache_dir"),
    ],
)
def test_data_that_cannot_be_measured_against_is_refused_then_too(
    config, tmp_path, source, changed, message
):
    (tmp_path / "file").touch()
    if changed.pop("cache", False):
        config.runtime.cache_dir = str(tmp_path / "file/cache")
    config.eval.update(changed)
    with pytest.raises(UserError, match=message):
        for_run(config, source, make_mesh())


@pytest.mark.filterwarnings("ignore:The least populated class")
def test_the_fewest_labels_that_are_accepted_can_be_judged():
    labels = np.array([0] * 5 + [1] * 2)
    check_labels(labels, "few")
    judge = LabelJudge(DIGITS.images()[:7], labels)
    assert 0 <= judge.held_out_accuracy <= 1


def test_a_reference_of_images_of_another_size_is_refused(config):
    small = from_arrays(DIGITS.images()[:, :4])
    network = feature_network(config, make_mesh())
    with pytest.raises(UserError, match="arrays, train, has images of another size, 4x8x1"):
        Measurer(config, make_mesh(), network, (8, 8, 1), small)


def test_the_network_takes_uint8_from_host_or_devices(config):
    network = feature_network(config, make_mesh())
    images = DIGITS.images()[:6]
    for given in (images, jnp.asarray(images)):
        got, logits = network.apply(network.params, given)
        assert logits is None
        np.testing.assert_allclose(got, images.reshape(6, -1) / 127.5 - 1, atol=1e-6)
