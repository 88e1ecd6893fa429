"""A source is images by index, with labels that are what labels must be, and a fingerprint."""

import ast
import dataclasses

import numpy as np
import pytest

from diffusion_distill.data.source import checked_labels, from_arrays
from diffusion_distill.errors import UserError


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (6, 4, 5, 3), np.uint8)


@pytest.fixture
def labels():
    return np.array([0, 2, 1, 1, 0, 2], np.uint8)


def test_images_come_by_index(images, labels):
    source = from_arrays(images, labels, 4, name="mine", split="validation")
    assert (source.name, source.split) == ("mine", "validation")
    assert (len(source), source.image_shape, source.num_classes) == (6, (4, 5, 3), 4)
    assert source.nbytes == images.nbytes
    np.testing.assert_array_equal(source.images(), images)
    np.testing.assert_array_equal(source.images([5, 0, 5]), images[[5, 0, 5]])
    assert source.labels.dtype == np.int32
    np.testing.assert_array_equal(source.labels, labels)
    assert source.image_name(3) == "image 3"


def test_without_labels_there_are_no_classes(images):
    source = from_arrays(images)
    assert source.num_classes == 0
    np.testing.assert_array_equal(source.labels, np.zeros(6, np.int32))


def test_classes_are_counted_where_nobody_says(images, labels):
    assert from_arrays(images, labels).num_classes == 3


@pytest.mark.parametrize(
    ("made", "match"),
    [
        (lambda x: x.astype(np.float32), r"float32 \[6, 4, 5, 3\]"),
        (lambda x: x.astype(np.int8), r"int8 \[6, 4, 5, 3\]"),
        (lambda x: x[..., 0], r"uint8 \[6, 4, 5\]"),
        (lambda x: x[None], r"uint8 \[1, 6, 4, 5, 3\]"),
        (lambda x: x[:0], r"uint8 \[0, 4, 5, 3\]"),
    ],
)
def test_images_of_another_kind_are_refused(images, made, match):
    with pytest.raises(UserError, match=f"mine: images are {match}; they must be uint8"):
        from_arrays(made(images), name="mine")


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("way", [(0, 3, 1, 2), (1, 2, 3, 0)])
def test_other_orders_of_axes_are_refused_with_the_way_back(channels, way):
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 5, channels), np.uint8)
    with pytest.raises(UserError, match="mine: images are .* channels; if not, np") as error:
        from_arrays(images.transpose(way), name="mine")
    back = ast.literal_eval(
        str(error.value).partition("np.transpose(images, ")[2].removesuffix(")")
    )
    np.testing.assert_array_equal(images.transpose(way).transpose(back), images)


@pytest.mark.parametrize("shape", [(3, 8, 1), (8, 3, 3), (1, 1, 4), (8, 8, 8)])
def test_narrow_images_and_more_channels_are_taken_as_they_are(shape):
    assert from_arrays(np.zeros((2, *shape), np.uint8)).image_shape == shape


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        (np.zeros(6, np.float32), r"float32 \[6\]"),
        (np.zeros(6, bool), r"bool \[6\]"),
        (np.zeros(5, np.int64), r"int64 \[5\]"),
        (np.zeros((6, 10), np.int64), r"int64 \[6, 10\]"),
        (np.array(list("abcdef")), r"<U1 \[6\]"),
    ],
)
def test_labels_of_another_kind_are_refused(images, wrong, match):
    with pytest.raises(UserError, match=f"mine: labels are {match}; .* each of the 6 images"):
        from_arrays(images, wrong, name="mine")


@pytest.mark.parametrize(
    ("values", "num_classes", "match"),
    [
        ([0, 1, 2, 3, 4, 1], 3, "label 3 of image 3 is out of range 0 to 2"),
        ([0, 1, -1, 1, 1, 1], 3, "label -1 of image 2 is out of range 0 to 2"),
        ([0, 1, -1, 1, 1, 1], None, "label -1 of image 2 is out of range 0 to 1"),
        ([1, 2, 3, 4, 1, 2], None, "labels are 1 to 4, and 0 has no image; they must be 0 to"),
        ([0, 1, 3, 0, 1, 3], None, "labels are 0 to 3, and 2 has no image"),
        ([0, 2**31, 2**40, 0, 0, 0], None, f"labels are 0 to {2**40}, and 1 has no image"),
        ([0, 0, 0, 0, 0, 2**40], 3, f"label {2**40} of image 5 is out of range 0 to 2"),
    ],
)
def test_the_first_label_out_of_range_is_named(values, num_classes, match):
    with pytest.raises(UserError, match=f"mine: {match}"):
        checked_labels(np.array(values), 6, num_classes, "mine")


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.int64, np.uint64])
def test_labels_of_any_integers_become_int32(labels, dtype):
    checked, num_classes = checked_labels(labels.astype(dtype), 6, None, "mine")
    assert (checked.dtype, num_classes) == (np.int32, 3)
    np.testing.assert_array_equal(checked, labels)


def test_a_label_without_an_image_is_named_where_somebody_said_how_many_there_are(capsys):
    for name, values in (("a", [0, 2, 2]), ("b", [0, 1, 1])):
        assert checked_labels(np.array(values), 3, 4, name)[1] == 4
    said = capsys.readouterr().out.splitlines()
    assert [line[:33] for line in said] == [
        "warning: a: label 1 has no image,",
        "warning: b: label 2 has no image,",
    ]


def test_the_fingerprint_is_of_the_content_alone(images, labels):
    fingerprint = from_arrays(images, labels, 3).fingerprint
    assert len(bytes.fromhex(fingerprint)) == 32
    same = [
        from_arrays(images.copy(), labels.astype(np.int64), 3, name="other", split="other"),
        from_arrays(np.asfortranarray(images), labels),
        dataclasses.replace(from_arrays(images, labels), image_name=str),
    ]
    assert [source.fingerprint for source in same] == [fingerprint] * 3


def test_the_fingerprint_tells_any_other_content(images, labels):
    pixel, label = images.copy(), labels.copy()
    pixel[5, 3, 4, 2] ^= 1
    label[5] = 1
    others = [
        from_arrays(images, labels, 3),
        from_arrays(pixel, labels, 3),
        from_arrays(images, label, 3),
        from_arrays(images, labels, 4),
        from_arrays(images[::-1], labels, 3),
        from_arrays(images.reshape(6, 5, 4, 3), labels, 3),
        from_arrays(images[:5], labels[:5], 3),
        from_arrays(images),
    ]
    assert len({source.fingerprint for source in others}) == len(others)
