"""CIFAR-10 is read from each of its forms, and nothing that is not it is."""

import gzip
import hashlib
import io
import pickle
import struct
import tarfile

import numpy as np
import pytest

from diffusion_distill.config import base
from diffusion_distill.data import cifar10, sources
from diffusion_distill.errors import UserError

BATCHES = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5")
COUNT = 7  # images in each batch of the small release


def load(path, **fields):
    config = base().data
    config.update({"name": "cifar10", "path": str(path), **fields})
    return sources.load(config)


def _text(value):
    """A Python 2 string: its opcode, and a memo that nothing asks for."""
    if len(value) < 256:
        return b"U" + bytes([len(value)]) + value + b"q\x01"
    return b"T" + struct.pack("<i", len(value)) + value + b"r" + struct.pack("<i", 300)


def _list(items):
    """A list as Python 2 writes it, a thousand items at a time."""
    groups = [items[i : i + 1000] for i in range(0, len(items), 1000)]
    return b"]q\x01" + b"".join(b"(" + b"".join(group) + b"e" for group in groups)


def python2_pickle(records, order="C", filenames=None):
    """The bytes that Python 2 writes for a batch of the Python version, protocol 2."""
    pixels = records[:, 1:]
    data = (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nq\x01K\x00\x85U\x01b\x87R("
        + b"K\x01J" + struct.pack("<i", len(pixels)) + b"M" + struct.pack("<H", 3072) + b"\x86"
        + b"cnumpy\ndtype\nq\x01U\x02u1K\x00K\x01\x87R"
        + b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        + {"C": b"\x89", "F": b"\x88"}[order] + _text(pixels.tobytes(order)) + b"tb"
    )  # fmt: skip
    names = [_text(f"tabby_s_{n:06d}.png".encode()) for n in range(len(records))]
    items = (
        _text(b"batch_label") + _text(b"training batch 1 of 5")
        + _text(b"labels") + _list([b"K" + bytes([label]) for label in records[:, 0]])
        + _text(b"data") + data
        + _text(b"filenames") + (filenames or _list(names))
    )  # fmt: skip
    return b"\x80\x02}q\x01(" + items + b"u."


def write_tar(archive, files):
    with tarfile.open(archive, "w:gz", compresslevel=1) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


@pytest.fixture
def records(monkeypatch):
    """Records of a release of a few images, whose checksums are the expected ones."""
    rng = np.random.default_rng(0)
    made = {name: rng.integers(0, 256, (COUNT, 3073), np.uint8) for name in cifar10.RECORDS_SHA1}
    for name, batch in made.items():
        batch[:, 0] %= 10
        monkeypatch.setitem(cifar10.RECORDS_SHA1, name, hashlib.sha1(batch).hexdigest())
        content = python2_pickle(batch)
        monkeypatch.setitem(cifar10.PICKLES_MD5, name, hashlib.md5(content).hexdigest())
    return made


@pytest.fixture
def files(records):
    """Name inside the archive -> content, of both versions."""
    binary = {f"cifar-10-batches-bin/{n}.bin": r.tobytes() for n, r in records.items()}
    python = {f"cifar-10-batches-py/{n}": python2_pickle(r) for n, r in records.items()}
    return {"binary": binary, "python": python}


@pytest.fixture
def release(files, tmp_path):
    """(version, form) -> the path of the release in that form."""

    def release(version, form):
        home = tmp_path / f"{version} {form}"
        home.mkdir()
        archive = home / f"cifar-10-{version}.tar.gz"
        if "archive" in form:
            write_tar(archive, {"cifar-10-batches-bin/readme.html": b"...", **files[version]})
            return archive if form == "archive" else home
        for name, content in files[version].items():
            (home / name).parent.mkdir(exist_ok=True)
            (home / name).write_bytes(content)
        return next(home.iterdir()) if form == "folder" else home

    return release


FORMS = ("folder", "folder's parent", "archive", "archive's parent")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("version", ["binary", "python"])
def test_every_form_gives_the_same_images(release, records, version, form):
    path = release(version, form)
    for split, names in (("train", BATCHES), ("test", ("test_batch",))):
        source = load(path, split=split)
        expected = np.concatenate([records[name] for name in names])
        images = np.empty((len(expected), 32, 32, 3), np.uint8)
        for channel in range(3):  # red, green, blue: each 32 rows of 32 pixels
            plane = expected[:, 1 + 1024 * channel : 1 + 1024 * (channel + 1)]
            for row in range(32):
                images[:, row, :, channel] = plane[:, 32 * row : 32 * (row + 1)]
        np.testing.assert_array_equal(source.images(), images)
        np.testing.assert_array_equal(source.labels, expected[:, 0])
        assert (source.name, source.split, source.num_classes) == ("cifar10", split, 10)
        assert (source.image_shape, source.images().dtype) == ((32, 32, 3), np.uint8)


def test_versions_have_one_fingerprint_and_splits_have_two(release):
    binary, python = release("binary", "folder"), release("python", "archive")
    assert load(binary).fingerprint == load(python).fingerprint
    assert load(binary).fingerprint != load(binary, split="test").fingerprint


def test_an_archive_may_have_any_name(release, tmp_path):
    renamed = tmp_path / "download (1)"
    release("python", "archive").rename(renamed)
    assert len(load(renamed)) == 5 * COUNT


@pytest.mark.parametrize("order", ["C", "F"])
def test_the_pickles_of_these_tests_are_what_python_2_wrote(order):
    records = np.random.default_rng(1).integers(0, 10, (1234, 3073), np.uint8)
    content = python2_pickle(records, order)
    batch = pickle.loads(content, encoding="bytes")  # made here: nothing to fear
    np.testing.assert_array_equal(batch[b"data"], records[:, 1:])
    assert batch[b"labels"] == records[:, 0].tolist()
    assert batch[b"filenames"][1233] == b"tabby_s_001233.png"
    np.testing.assert_array_equal(cifar10._pickled_records(content), records)


def test_a_pickle_is_never_executed(release, records, tmp_path, monkeypatch):
    folder, marker = release("python", "folder"), tmp_path / "executed"
    command = b"cos\nsystem\n" + _text(f"touch '{marker}'".encode()) + b"\x85R"
    content = python2_pickle(records["test_batch"], filenames=command)
    pickle.loads(content, encoding="bytes")
    assert marker.exists()  # it would
    marker.unlink()

    (folder / "test_batch").write_bytes(content)
    with pytest.raises(UserError, match="test_batch is damaged"):
        load(folder, split="test")
    # Even where the checksum is right.
    monkeypatch.setitem(cifar10.PICKLES_MD5, "test_batch", hashlib.md5(content).hexdigest())
    with pytest.raises(UserError, match="a pickle names 'os system', which is no part of CIFAR-10"):
        load(folder, split="test")
    assert not marker.exists()


def test_what_was_read_off_a_pickle_is_checked_too(release, records, monkeypatch):
    folder = release("python", "folder")
    monkeypatch.setitem(cifar10.RECORDS_SHA1, "test_batch", "0" * 40)
    with pytest.raises(UserError, match="what was read from .*test_batch .* not 0000000000"):
        load(folder, split="test")


@pytest.mark.parametrize("version", ["binary", "python"])
@pytest.mark.parametrize("form", ["folder", "archive"])
@pytest.mark.parametrize("damage", ["bit", "cut", "longer", "empty"])
def test_a_damaged_file_is_named_with_both_sums(release, files, version, form, damage):
    name = next(name for name in files[version] if "data_batch_3" in name)
    good = files[version][name]
    bad = {
        "bit": good[:5000] + bytes([good[5000] ^ 1]) + good[5001:],
        "cut": good[:-1],
        "longer": good + b"\0",
        "empty": b"",
    }[damage]
    files[version][name] = bad
    algorithm = {"binary": "sha1", "python": "md5"}[version]
    expected, found = (hashlib.new(algorithm, content).hexdigest() for content in (good, bad))
    path = release(version, form)
    with pytest.raises(UserError) as caught:
        load(path)
    file = f"{path}: {name}" if form == "archive" else str(path / name.partition("/")[2])
    assert str(caught.value).startswith(f"config.data.path: {file} is damaged")
    assert f"its {algorithm} is {found}, not {expected}" in str(caught.value)


@pytest.mark.parametrize("version", ["binary", "python"])
def test_a_missing_batch_is_named(release, files, version):
    name = next(name for name in files[version] if "data_batch_2" in name)
    del files[version][name]
    folder, archive = release(version, "folder"), release(version, "archive")
    with pytest.raises(UserError, match="data_batch_2[.bin]* is missing"):
        load(folder)
    with pytest.raises(UserError, match="tar.gz: CIFAR-10's data_batch_2 is not in it"):
        load(archive)
    assert len(load(folder, split="test")) == len(load(archive, split="test")) == COUNT


@pytest.mark.parametrize("damage", ["cut", "bits", "gzip", "text", "empty", "tar"])
def test_a_damaged_archive_is_named(release, tmp_path, damage):
    archive = release("binary", "archive")
    good = archive.read_bytes()
    middle = len(good) // 2
    archive.write_bytes(
        {
            "cut": good[:middle],
            "bits": good[:middle] + bytes(100) + good[middle + 100 :],
            "gzip": gzip.compress(gzip.decompress(good)[:50_000], 1)[:-8] + bytes(8),  # its sum
            "text": b"<html>Please log in</html>" * 1000,
            "empty": b"",
            "tar": tarfile.TarInfo("x").tobuf() + bytes(10_000),
        }[damage]
    )
    with pytest.raises(UserError) as caught:
        load(archive)
    assert str(caught.value).startswith(f"config.data.path: {archive}")
    assert "damaged" in str(caught.value)


def test_no_such_path_says_what_gets_it(tmp_path):
    path = tmp_path / "nowhere"
    with pytest.raises(UserError) as caught:
        load(path)
    message = str(caught.value)
    assert f"there is no {path}" in message
    command = f"python -m diffusion_distill.data.prepare --dataset=cifar10 --out={path}"
    assert message.endswith(command)


def test_a_folder_without_it_lists_what_was_looked_for(tmp_path):
    (tmp_path / "holiday.jpg").write_bytes(b"")
    with pytest.raises(UserError) as caught:
        load(tmp_path)
    for name in (
        "cifar-10-batches-bin cifar-10-batches-py cifar-10-binary.tar.gz cifar-10-python.tar.gz "
        "data_batch_1.bin"
    ).split():
        assert name in str(caught.value)


def test_fields_that_cifar10_cannot_have(release):
    path = release("binary", "folder")
    with pytest.raises(UserError, match="config.data.split is 'val'; CIFAR-10 has train and test"):
        load(path, split="val")
    with pytest.raises(UserError, match="config.data.image_size is 64; .* 0 or 32"):
        load(path, image_size=64)
    assert len(load(path, image_size=32)) == 5 * COUNT


@pytest.fixture
def published(release, server, monkeypatch):
    """The server has the binary version's archive, with the expected checksum."""
    server.content = release("binary", "archive").read_bytes()
    md5 = hashlib.md5(server.content).hexdigest()
    monkeypatch.setattr(cifar10, "ARCHIVE_CHECKSUM", f"md5:{md5}")
    monkeypatch.setattr(cifar10, "ARCHIVE_SIZE", len(server.content))
    return server


def test_download_gets_what_load_reads_and_only_once(published, tmp_path):
    out = tmp_path / "data" / "cifar10"
    archive = cifar10.download(out, published.url)
    assert list(out.iterdir()) == [archive]
    assert len(load(out)) == 5 * COUNT
    assert len(load(archive, split="test")) == COUNT
    assert cifar10.download(out, published.url) == archive
    assert published.asked == 1


def test_download_keeps_nothing_that_load_would_refuse(published, tmp_path, monkeypatch):
    monkeypatch.setitem(cifar10.RECORDS_SHA1, "test_batch", "0" * 40)
    out = tmp_path / "out"
    with pytest.raises(UserError, match="cifar-10-batches-bin/test_batch.bin is damaged"):
        cifar10.download(out, published.url)
    assert list(out.iterdir()) == []


@pytest.mark.slow  # to unpack them, that is
def test_the_real_training_images(cifar10_dir):
    source = load(cifar10_dir.parent)
    images = source.images()
    assert images.shape == (50_000, 32, 32, 3)
    assert np.bincount(source.labels).tolist() == [5000] * 10
    # The widely published mean, to its four digits.
    mean = images.mean(axis=(0, 1, 2), dtype=np.float64) / 255
    np.testing.assert_allclose(mean, [0.4914, 0.4822, 0.4465], atol=0.00005)


def test_the_real_test_images(cifar10_test_dir):
    source = load(cifar10_test_dir, split="test")
    assert source.images().shape == (10_000, 32, 32, 3)
    assert np.bincount(source.labels).tolist() == [1000] * 10
    assert source.labels[:10].tolist() == [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]


@pytest.mark.parametrize("order", ["C", "F"])
def test_the_real_test_images_in_a_pickle(cifar10_test_dir, tmp_path, monkeypatch, order):
    content = (cifar10_test_dir / "test_batch.bin").read_bytes()
    pickled = python2_pickle(np.frombuffer(content, np.uint8).reshape(-1, 3073), order)
    (tmp_path / "test_batch").write_bytes(pickled)
    monkeypatch.setitem(cifar10.PICKLES_MD5, "test_batch", hashlib.md5(pickled).hexdigest())
    expected = load(cifar10_test_dir, split="test")
    source = load(tmp_path, split="test")
    np.testing.assert_array_equal(source.images(), expected.images())
    np.testing.assert_array_equal(source.labels, expected.labels)
