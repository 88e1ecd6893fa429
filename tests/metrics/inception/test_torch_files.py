"""Tensors are read off PyTorch's files, and nothing is run."""

import io
import os
import pickle
import zipfile

import numpy as np
import pytest

from diffusion_distill.errors import UserError
from diffusion_distill.metrics.inception.torch_files import read_torch
from tests.metrics.inception import archives

VALUES = np.arange(24, dtype="<f4")
RAW = VALUES.tobytes()
STORAGE = archives.storage("7", 24)
KERNEL = archives.tensor(STORAGE, 0, (2, 3, 2, 2), (12, 4, 2, 1))


def read(file):
    return read_torch(io.BytesIO(file.getvalue()))


@pytest.mark.parametrize("file", [archives.torch_zip, archives.torch_legacy])
def test_tensors_are_views_of_their_storages(file):
    turned = archives.tensor(STORAGE, 2, (3, 2), (1, 4))
    state = archives.ordered({"a.weight": KERNEL, "a.bias": turned})
    tensors = read(file(state, {"7": RAW}))
    assert list(tensors) == ["a.weight", "a.bias"]
    np.testing.assert_array_equal(tensors["a.weight"], VALUES.reshape(2, 3, 2, 2))
    np.testing.assert_array_equal(tensors["a.bias"], [[2, 6], [3, 7], [4, 8]])
    assert tensors["a.bias"].dtype == np.float32


def test_a_legacy_file_has_its_storages_in_the_order_of_its_keys():
    a = archives.tensor(archives.storage("a", 1, more=b"N"), 0, (1,), (1,))
    b = archives.tensor(archives.storage("b", 2, more=b"N"), 0, (2,), (1,))
    entries = {"b": np.float32([2, 3]).tobytes(), "a": np.float32([1]).tobytes()}
    tensors = read(archives.torch_legacy(archives.ordered({"a": a, "b": b}), entries))
    np.testing.assert_array_equal(tensors["a"], [1])
    np.testing.assert_array_equal(tensors["b"], [2, 3])


def test_counters_are_scalars_of_int64():
    scalar = archives.tensor(archives.storage("0", 1, "LongStorage"), 0, (), ())
    count = np.int64(5).tobytes()
    tensors = read(archives.torch_zip(archives.ordered({"n": scalar}), {"0": count}))
    assert tensors["n"].shape == ()
    assert tensors["n"] == 5


def test_modules_of_torchscript_give_paths():
    layer = archives.module({"weight": KERNEL, "stride": archives.integer(2), "training": b"\x89"})
    net = archives.module({"layers": archives.module({"mixed/conv": layer, "nothing": b"N"})})
    tensors = read(archives.torch_zip(archives.module({"net": net}), {"7": RAW}))
    assert list(tensors) == ["net/layers/mixed/conv/weight"]


RUNS = archives.name("posix", "system") + archives.sequence(archives.text("touch ran")) + b"R"
# Functions that are allowed, on what they are not meant for.
REBUILD = archives.name("torch._utils", "_rebuild_tensor_v2")
CHANGES = archives.sequence(b"N", archives.mapping({"__code__": archives.text("os.system()")}))


@pytest.mark.parametrize(
    "value, message",
    [
        (RUNS, "names 'posix system'"),
        (REBUILD + archives.sequence(RUNS) + b"R", "names 'posix system'"),
        (REBUILD + CHANGES + b"b", "__code__ must be set to a code object"),
        (archives.name("builtins", "eval"), "names 'builtins eval'"),
        (archives.name("torch", "device"), "names 'torch device'"),
        (archives.name("numpy", "ndarray"), "names 'numpy ndarray'"),
        (archives.name("torch", "FloatStorage") + b")R", "'str' object is not callable"),
        (archives.text("posix system") + b")R", "'str' object is not callable"),
        (archives.storage("0", 1, "FloatStorage").replace(b"storage", b"STORAGE"), "STORAGE"),
        (archives.sequence(*[archives.text("storage")] * 5) + b"Q", "refers to a storage of"),
        (b"Pposix system\n", "refers to a p of o"),
        (b"(S'touch ran'\niposix\nsystem\n", "names 'posix system'"),
        (b"(cposix\nsystem\nS'touch ran'\no", "names 'posix system'"),
        (b"\x82\x01", "unregistered extension code"),
        (archives.text("posix") + archives.text("system") + b"\x93", "names 'posix system'"),
    ],
)
def test_pickles_of_more_than_tensors_are_refused(value, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for file in (archives.torch_zip, archives.torch_legacy):
        with pytest.raises(UserError, match=message) as caught:
            read(file(archives.ordered({"a": value}), {"7": RAW}))
        assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


class Runs:
    def __reduce__(self):
        return os.system, ("touch ran",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_what_a_pickle_would_run_is_not_run(protocol, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = pickle.dumps({"a": Runs()}, protocol)
    pickle.loads(content)
    os.remove("ran")  # it would
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("archive/data.pkl", content)
    for data in (archive.getvalue(), content):
        with pytest.raises(UserError, match="names 'posix system'"):
            read_torch(io.BytesIO(data))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "tensor",
    [
        archives.tensor(STORAGE, 20, (5,), (1,)),
        archives.tensor(STORAGE, 0, (5,), (6,)),
        archives.tensor(STORAGE, -1, (5,), (1,)),
        archives.tensor(STORAGE, 10, (5,), (-1,)),
        archives.tensor(STORAGE, 0, (-5,), (1,)),
        archives.tensor(STORAGE, 0, (5, 1), (1,)),
        archives.tensor(archives.storage("7", 25), 0, (5,), (1,)),
        archives.tensor(archives.storage("7", 23), 0, (5,), (1,)),
        archives.tensor(archives.storage("7", -1), 0, (5,), (1,)),
        archives.tensor(archives.storage("8", 24), 0, (5,), (1,)),
        archives.tensor(archives.text("7"), 0, (5,), (1,)),
    ],
)
def test_tensors_outside_their_storages_are_refused(tensor):
    for file in (archives.torch_zip, archives.torch_legacy):
        with pytest.raises(UserError, match="damaged"):
            read(file(archives.ordered({"a": tensor}), {"7": RAW}))


@pytest.mark.parametrize("file", [archives.torch_zip, archives.torch_legacy])
def test_files_that_were_cut_are_refused(file):
    data = file(archives.ordered({"a": KERNEL}), {"7": RAW}).getvalue()
    assert read_torch(io.BytesIO(data))["a"].shape == (2, 3, 2, 2)
    for size in range(0, len(data) - 1, 3):
        with pytest.raises(UserError, match="damaged"):
            read_torch(io.BytesIO(data[:size]))


def test_a_dictionary_within_itself_is_refused():
    with pytest.raises(UserError, match="damaged"):
        read(archives.torch_zip(b"}q\x00" + archives.text("a") + b"h\x00s", {}))


@pytest.mark.parametrize("zipped", [True, False])
def test_what_torch_saves(zipped):
    torch = pytest.importorskip("torch")
    layer = torch.nn.Sequential(torch.nn.Conv2d(2, 3, (1, 5)), torch.nn.BatchNorm2d(3))
    state = layer.state_dict() | {"turned": torch.arange(6.0).reshape(2, 3).T}
    buffer = io.BytesIO()
    torch.save(state, buffer, _use_new_zipfile_serialization=zipped)
    tensors = read(buffer)
    assert list(tensors) == list(state)
    for name, expected in state.items():
        np.testing.assert_array_equal(tensors[name], expected.numpy())
