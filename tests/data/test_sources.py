"""Folders, arrays and what TensorFlow Datasets prepared, read by index."""

import sys
import types
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from diffusion_distill.config import base
from diffusion_distill.data import sources
from diffusion_distill.errors import UserError

RNG = np.random.default_rng(0)


def data(name, path="", **fields):
    config = base().data
    config.name, config.path = name, str(path)
    config.update(fields)
    return config


@pytest.fixture
def folder(tmp_path):
    """Two labels of 3 and 2 images, 6x8 pixels; the arrays in the order that is expected."""
    images = RNG.integers(0, 256, (5, 6, 8, 3), np.uint8)
    names = ["cat/1.png", "cat/2.png", "cat/3.PNG", "dog/1.png", "dog/2.png"]
    for name, image in zip(names, images, strict=True):
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / "set" / name, format="png")
    (tmp_path / "set" / "cat" / "notes.txt").write_text("not an image")
    return tmp_path / "set", images


def test_a_folder_gives_its_images_by_index_with_subfolders_as_labels(folder):
    source = sources.load(data("folder", folder[0]))
    assert (len(source), source.image_shape, source.num_classes) == (5, (6, 8, 3), 2)
    np.testing.assert_array_equal(source.labels, [0, 0, 0, 1, 1])
    np.testing.assert_array_equal(source.images(), folder[1])
    np.testing.assert_array_equal(source.images([4, 0, 4]), folder[1][[4, 0, 4]])
    assert source.image_name(3).endswith("dog/1.png")


def test_a_folder_without_labels_is_read_at_any_depth(folder):
    source = sources.load(data("folder", folder[0], folder_labels=False))
    assert (len(source), source.num_classes, set(source.labels)) == (5, 0, {0})


def test_a_folder_is_cropped_and_resized_and_says_so(folder):
    source = sources.load(data("folder", folder[0], image_size=2))
    means = folder[1][0][:, 1:7].reshape(2, 3, 2, 3, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(source.images([0])[0], means, atol=0.5 + 1e-4)
    assert source.preprocessing == "central square crop, area resize to 2"


def test_a_split_may_be_a_subfolder(folder):
    (folder[0].parent / "both").mkdir()
    folder[0].rename(folder[0].parent / "both" / "test")
    source = sources.load(data("folder", folder[0].parent / "both", split="train"), split="test")
    assert (len(source), source.split, source.name) == (5, "test", "both")


def test_fingerprints_tell_contents_and_preprocessing_apart(folder):
    variants = {}, {"image_size": 2}, {"image_size": 3}, {"folder_labels": False}
    prints = {sources.load(data("folder", folder[0], **v)).fingerprint for v in variants}
    assert len(prints) == 4
    assert sources.load(data("folder", folder[0])).fingerprint in prints
    Image.fromarray(folder[1][0] // 2).save(folder[0] / "cat/1.png")
    assert sources.load(data("folder", folder[0])).fingerprint not in prints


def test_a_split_that_is_not_there_is_never_another_under_its_name(folder, tmp_path):
    with pytest.raises(UserError, match="set has no split 'test'"):
        sources.load(data("folder", folder[0]), split="test")
    (tmp_path / "both").mkdir()
    folder[0].rename(tmp_path / "both" / "train")
    for split in (None, "test"):
        with pytest.raises(
            UserError, match="both has no split 'test'; it|both has no split 'test':"
        ):
            sources.load(data("folder", tmp_path / "both", split="test"), split=split)
    np.savez(tmp_path / "a.npz", images=np.zeros((2, 4, 4, 3), np.uint8))
    with pytest.raises(UserError, match="a.npz has no split 'test': it is the split 'train' alone"):
        sources.load(data("npz", tmp_path / "a.npz"), split="test")


def test_a_damaged_first_image_is_not_the_end(folder):
    (folder[0] / "cat/1.png").write_bytes(b"")
    source = sources.load(data("folder", folder[0]))
    assert source.image_shape == (6, 8, 3)
    with pytest.raises(UserError, match="cat/1.png cannot be read"):
        source.images([0])


def test_the_usual_shape_is_the_norm_and_not_the_first(folder):
    Image.fromarray(folder[1][0][..., 0]).save(folder[0] / "cat/1.png")
    source = sources.load(data("folder", folder[0]))
    np.testing.assert_array_equal(source.images([1, 2, 3, 4]), folder[1][1:])
    with pytest.raises(UserError, match=r"cat/1.png is 6x8x1, where .*cat/2.png is 6x8x3"):
        source.images([0])


@pytest.mark.parametrize("labels", [True, False])
def test_a_label_called_as_a_split_is_is_never_taken_for_all(folder, labels):
    (folder[0] / "cat").rename(folder[0] / "train")
    for split in ("train", "val"):
        with pytest.raises(UserError, match="has train, .* beside dog, which is none: give config"):
            sources.load(data("folder", folder[0], folder_labels=labels, split=split))
    for image in (folder[0] / "dog").iterdir():
        image.unlink()
    assert len(sources.load(data("folder", folder[0], folder_labels=False))) == 3


def test_rights_alone_do_not_change_the_fingerprint(folder):
    before = sources.load(data("folder", folder[0])).fingerprint
    (folder[0] / "cat/1.png").chmod(0o600)
    assert sources.load(data("folder", folder[0])).fingerprint == before


def test_images_of_two_sizes_are_refused_by_name(folder):
    Image.fromarray(folder[1][0][:4]).save(folder[0] / "dog/1.png")
    with pytest.raises(UserError, match=r"dog/1.png is 4x8x3, where .*cat/1.png is 6x8x3"):
        sources.load(data("folder", folder[0])).images()


def test_grey_among_colour_is_refused_by_name_or_made_colour(folder):
    Image.fromarray(folder[1][3][..., 0]).save(folder[0] / "dog/1.png")
    with pytest.raises(UserError, match=r"dog/1.png is 6x8x1, where .* config.data.channels"):
        sources.load(data("folder", folder[0])).images()
    images = sources.load(data("folder", folder[0], channels=3)).images()
    np.testing.assert_array_equal(images[3], np.repeat(folder[1][3][..., :1], 3, axis=-1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: (root / "new").mkdir(), "new has no images: a label would have none"),
        (lambda root: (root / "cat/1.png").rename(root / "1.png"), "1.png for one; .*subfolder"),
        (lambda root: [p.unlink() for p in root.rglob("*.[pP][nN][gG]")], "cat has no images"),
        (lambda root: root.rename(root.parent / "other"), "there is no folder"),
    ],
)  # fmt: skip
def test_a_folder_that_is_not_as_it_should_be(folder, change, message):
    change(folder[0])
    with pytest.raises(UserError, match=f"^config.data.path: .*{message}"):
        sources.load(data("folder", folder[0]))


def test_an_empty_folder(tmp_path):
    for labels in (False, True):
        with pytest.raises(UserError, match="has no images"):
            sources.load(data("folder", tmp_path, folder_labels=labels))


def test_a_path_that_is_not_given():
    for name in ("folder", "npz", "prepared", "cifar10"):
        with pytest.raises(UserError, match="config.data.path is ''"):
            sources.load(data(name))


def test_an_image_size_that_is_not_the_datas():
    with pytest.raises(
        UserError, match="config.data.image_size is 32, but digits has images of 8x8"
    ):
        sources.load(data("digits", image_size=32))
    assert len(sources.load(data("digits", image_size=8))) == 1797


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("image_size", 32, "config.data.image_size is 32, but .* has images of 32x48"),
        ("image_size", 48, "config.data.image_size is 48, but .* has images of 32x48"),
        ("channels", 1, "config.data.channels is 1, but .*a.npz has images of 3; only folder"),
        ("resize", "antialias", "config.data.resize is 'antialias', but .*a.npz is not resized"),
    ],
)
def test_a_conversion_that_a_source_does_not_make_is_refused(tmp_path, field, value, message):
    np.savez(tmp_path / "a.npz", images=np.zeros((2, 32, 48, 3), np.uint8))
    sources.load(data("npz", tmp_path / "a.npz", channels=3))
    with pytest.raises(UserError, match=message):
        sources.load(data("npz", tmp_path / "a.npz", **{field: value}))


def test_npz_gives_images_with_labels_or_without(tmp_path):
    images = RNG.integers(0, 256, (5, 4, 4, 3), np.uint8)
    np.savez(tmp_path / "a.npz", images=images, labels=np.array([0, 2, 1, 0, 2]))
    np.savez_compressed(tmp_path / "b.npz", images)
    labelled = sources.load(data("npz", tmp_path / "a.npz"))
    np.testing.assert_array_equal(labelled.images([1, 4]), images[[1, 4]])
    np.testing.assert_array_equal(labelled.labels, [0, 2, 1, 0, 2])
    plain = sources.load(data("npz", tmp_path / "b.npz", split="test"))
    assert (labelled.num_classes, plain.num_classes, plain.split) == (3, 0, "test")
    np.testing.assert_array_equal(plain.images(), images)


@pytest.mark.parametrize("other", ["arr_1", "label", "y"])
def test_labels_of_another_name_are_named(tmp_path, other, capsys):
    arrays = {"arr_0": np.zeros((2, 4, 4, 3), np.uint8), other: np.array([0, 1])}
    np.savez(tmp_path / "a.npz", **arrays, mean=np.zeros(2), size=np.array(4))
    assert sources.load(data("npz", tmp_path / "a.npz")).num_classes == 0
    said = capsys.readouterr().out
    assert said == f"{tmp_path}/a.npz: {other} is not read; labels must be called labels\n"
    np.savez(tmp_path / "a.npz", **arrays, labels=np.array([1, 0]))
    assert sources.load(data("npz", tmp_path / "a.npz")).labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": np.zeros((2, 4, 4, 3), np.float32)}, "images are float32.*must be uint8"),
        ({"images": np.zeros((2, 4, 4), np.uint8)}, r"images are uint8 \[2, 4, 4\]"),
        ({"x": np.zeros(2), "y": np.zeros(2)}, "has the arrays x, y; it must have images"),
        ({"images": np.zeros((2, 4, 4, 3), np.uint8), "labels": np.array([0, -1])},
         "label -1 of image 1 is out of range"),
        ({"images": np.zeros((2, 4, 4, 3), np.uint8), "labels": np.array([1, 2])},
         "labels are 1 to 2, and 0 has no image"),
        ({"images": np.zeros((2, 3, 8, 8), np.uint8)}, r"np.transpose\(images, \(0, 2, 3, 1\)\)"),
        ({"images": np.zeros((2, 4, 4, 3), np.uint8), "labels": np.array([0])},
         "one for each of the 2 images"),
        ({"images": np.array([None])}, "cannot be read as .npz: its array"),
    ],
)  # fmt: skip
def test_npz_with_other_arrays_is_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(UserError, match=message) as error:
        sources.load(data("npz", tmp_path / "a.npz"))
    assert str(error.value).startswith("config.data.path: ") and "a.npz" in str(error.value)


def test_a_damaged_npz_is_named(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, images=np.zeros((2, 8, 8, 3), np.uint8))
    whole = path.read_bytes()
    for content in (b"", b"not a zip", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(UserError, match="a.npz cannot be read as .npz"):
            sources.load(data("npz", path))
    with pytest.raises(UserError, match="there is no .*b.npz"):
        sources.load(data("npz", tmp_path / "b.npz"))


def test_tfds_gives_images_and_labels_without_tensorflow(tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")
    with tfds.testing.mock_data(num_examples=12):
        source = sources.load(data("tfds", tmp_path, tfds_name="cifar10", split="test"))
        assert (len(source), source.image_shape, source.num_classes) == (12, (32, 32, 3), 10)
        assert source.split == "test"
        images = source.images([3, 7, 3])
        assert images.dtype == np.uint8
        np.testing.assert_array_equal(images[0], images[2])
        assert np.any(images[0] != images[1])
        assert len(set(source.labels)) > 1
        small = sources.load(data("tfds", tmp_path, tfds_name="cifar10", image_size=16))
        assert small.images([0]).shape == (1, 16, 16, 3)
        assert small.fingerprint != source.fingerprint
    assert "tensorflow" not in sys.modules


def test_labels_of_tfds_are_read_without_their_images_and_by_few_tasks(tmp_path, monkeypatch):
    tfds = pytest.importorskip("tensorflow_datasets")
    opened, tasks = [], []
    submit = ThreadPoolExecutor.submit

    class Records:
        def __len__(self):
            return 5000

        def __getitem__(self, index):
            if index == 17:
                raise ValueError("damaged")
            return {"image": np.zeros((8, 8, 3), np.uint8), "label": index % 10}

    def as_data_source(split, decoders=None):
        opened.append(decoders)
        return Records()

    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(8, 8, 3)),
            "label": tfds.features.ClassLabel(num_classes=10),
        }
    )
    info = types.SimpleNamespace(splits={"train": 0}, features=features, full_name="x/1")
    builder = types.SimpleNamespace(info=info, as_data_source=as_data_source)
    monkeypatch.setattr(tfds, "builder", lambda name, data_dir: builder)
    monkeypatch.setattr(
        ThreadPoolExecutor, "submit", lambda *args: tasks.append(args) or submit(*args)
    )
    source = sources.load(data("tfds", tmp_path, tfds_name="x"))
    expected = np.arange(5000) % 10
    expected[17] = 0
    np.testing.assert_array_equal(source.labels, expected)
    assert isinstance(opened[-1]["image"], tfds.decode.SkipDecoding)
    assert len(tasks) < 50


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tfds_name": ""}, "config.data.tfds_name is ''"),
        ({"tfds_name": "cifar10"}, "tfds build cifar10 --file_format=array_record --data_dir="),
        ({"tfds_name": "no_such_set"}, "no_such_set cannot be read from"),
    ],
)
def test_tfds_that_is_not_there_ends_with_the_command_that_gets_it(tmp_path, fields, message):
    pytest.importorskip("tensorflow_datasets")
    with pytest.raises(UserError, match=message):
        sources.load(data("tfds", tmp_path, **fields))


def test_a_split_that_tfds_does_not_have(tmp_path, monkeypatch):
    tfds = pytest.importorskip("tensorflow_datasets")
    builder = types.SimpleNamespace(info=types.SimpleNamespace(splits={"train": 0, "test": 0}))
    monkeypatch.setattr(tfds, "builder", lambda name, data_dir: builder)
    with pytest.raises(UserError, match="config.data.split is 'valid'; cifar10 has train, test"):
        sources.load(data("tfds", tmp_path, tfds_name="cifar10", split="valid"))
