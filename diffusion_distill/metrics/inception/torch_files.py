"""Tensors out of PyTorch's files, without PyTorch.

Three layouts are read: a TorchScript archive and what torch.save writes since 1.6 (a zip: a pickle
that describes the tensors, and an entry of raw bytes for each), and what torch.save wrote before
(pickles, then the raw bytes). A pickle is a program: whatever it names is looked up in `NAMES`, and
a file that names anything else is refused before that is imported or called.
"""

import collections
import io
import pickle
import struct
import zipfile
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np
from flax.traverse_util import flatten_dict

from diffusion_distill.errors import UserError

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


class Module(dict):
    """What stands for a module of TorchScript: a dictionary of its attributes."""

    __setstate__ = dict.update


def _rebuild_tensor(storage, offset, shape, strides, *_) -> np.ndarray:
    """A view of a storage; offset and strides count values. NumPy keeps it inside the storage."""
    if min(strides, default=0) < 0:
        raise ValueError("a tensor with a negative stride")
    steps = [stride * storage.itemsize for stride in strides]
    return np.ndarray(shape, storage.dtype, storage, offset * storage.itemsize, steps)


DTYPES = {"torch FloatStorage": "<f4", "torch LongStorage": "<i8"}
NAMES = DTYPES | {
    "torch._utils _rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils _rebuild_parameter": lambda tensor, *_: tensor,
    "torch.jit._pickle build_intlist": list,
    "collections OrderedDict": collections.OrderedDict,
}


class _Unpickler(pickle.Unpickler):
    """Follows a pickle that describes plain data and tensors; reads to its end, no further.

    `storage` gives (dtype, key, how many values) -> the values that tensors are views of.
    """

    def __init__(self, file: BinaryIO, storage: Callable[[str, str, int], np.ndarray]):
        super().__init__(file)
        self._storage = storage

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__."):
            return Module
        if f"{module} {name}" not in NAMES:
            raise UserError(f"its pickle names '{module} {name}', which is no part of a tensor")
        return NAMES[f"{module} {name}"]

    def persistent_load(self, pid: tuple) -> np.ndarray:
        kind, dtype, key, _, size, *_ = pid
        if kind != "storage" or dtype not in DTYPES.values():
            raise UserError(f"its pickle refers to a {kind} of {dtype}; float32 and int64 are read")
        return self._storage(dtype, key, size)


def read_torch(file: BinaryIO) -> dict[str, np.ndarray]:
    """All tensors of a file by name: "layers/conv/weight", parts of modules joined by "/".

    Raises:
        UserError: the file is neither of the layouts, is damaged, or describes more than tensors.
    """
    try:
        read = _read_zip if zipfile.is_zipfile(file) else _read_legacy
        file.seek(0)
        found = flatten_dict(read(file), sep="/")
        return {name: x.copy() for name, x in found.items() if isinstance(x, np.ndarray)}
    except UserError:
        raise
    # What a damaged file does to the reader of its pickle has no end; each is one line here.
    except Exception as error:
        raise UserError(f"it is damaged, or no PyTorch file ({error!r})") from error


def _read_zip(file: BinaryIO) -> dict:
    with zipfile.ZipFile(file) as archive:
        (described,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
        root = described.removesuffix("data.pkl")

        def storage(dtype: str, key: str, size: int) -> np.ndarray:
            values = np.frombuffer(archive.read(f"{root}data/{key}"), dtype)
            if len(values) != size:
                raise ValueError(f"storage {key} has another size")
            return values

        return _Unpickler(io.BytesIO(archive.read(described)), storage).load()


def _read_legacy(file: BinaryIO) -> dict:
    """Pickles of a magic number, a version, the machine, the tensors and the storages' order."""
    storages = {}

    def storage(dtype: str, key: str, size: int) -> np.ndarray:
        return storages.setdefault(key, np.empty(size, dtype))  # its values come at the end

    magic, _, _, tree, keys = (_Unpickler(file, storage).load() for _ in range(5))
    if magic != LEGACY_MAGIC or set(keys) != storages.keys():
        raise ValueError("another magic number, or other storages than those of the tensors")
    for values in (storages[key] for key in keys):
        if struct.unpack("<q", file.read(8)) != values.shape:
            raise ValueError("a storage has another size")
        if file.readinto(values) != values.nbytes:
            raise EOFError("a storage is cut off")
    return tree
