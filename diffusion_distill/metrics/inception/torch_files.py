"""Tensors out of PyTorch's files, without PyTorch and without unpickling.

Three layouts are read: a TorchScript archive and what torch.save writes since 1.6 (a zip: a pickle
that describes the tensors, and an entry of raw bytes for each), and what torch.save wrote before
(pickles, then the raw bytes). A pickle is a program; here its instructions are walked, and those
that describe plain data and tensors are followed. What it names is never imported or called: a
file that names anything else is refused.
"""

import io
import pickletools
import struct
import zipfile
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from diffusion_distill.errors import UserError

DTYPES = {"torch FloatStorage": np.dtype("<f4"), "torch LongStorage": np.dtype("<i8")}
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


class Storage(NamedTuple):
    """Raw values that tensors are views of: `size` of them, in the archive under `key`."""

    dtype: np.dtype
    key: str
    size: int


class Tensor(NamedTuple):
    """A view of a storage; offset and strides count values, not bytes."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Name(str):
    """A class or function that a pickle names: "module name"."""


def read_torch(file: BinaryIO) -> dict[str, np.ndarray]:
    """All tensors of a file by name: "layers/conv/weight", parts of modules joined by "/".

    Raises:
        UserError: the file is neither of the layouts, is damaged, or describes more than tensors.
    """
    try:
        if zipfile.is_zipfile(file):
            return _read_zip(file)
        file.seek(0)
        return _read_legacy(file)
    except UserError:
        raise
    # What a damaged file does to the reader of its pickle has no end; each is one line here.
    except Exception as error:
        raise UserError(f"it is damaged, or no PyTorch file ({error!r})") from error


def _read_zip(file: BinaryIO) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(file) as archive:
        (pickle,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
        root = pickle.removesuffix("data.pkl")
        tree = walk(io.BytesIO(archive.read(pickle)))
        return _arrays(tree, lambda storage: archive.read(f"{root}data/{storage.key}"))


def _read_legacy(file: BinaryIO) -> dict[str, np.ndarray]:
    """Pickles of a magic number, a version, the machine, the tensors and the storages' order."""
    if walk(file) != LEGACY_MAGIC:
        raise ValueError("another magic number")
    walk(file), walk(file)
    tree = walk(file)
    keys = walk(file)
    storages = {tensor.storage.key: tensor.storage for _, tensor in _tensors(tree)}
    raw = {}
    for key in keys:
        (size,) = struct.unpack("<q", file.read(8))
        if size != storages[key].size:
            raise ValueError(f"storage {key} has another size")
        raw[key] = file.read(size * storages[key].dtype.itemsize)
    return _arrays(tree, lambda storage: raw[storage.key])


def _arrays(tree: Any, raw: Callable[[Storage], bytes]) -> dict[str, np.ndarray]:
    return {name: _array(tensor, raw(tensor.storage)) for name, tensor in _tensors(tree)}


def _tensors(tree: Any, prefix: str = ""):
    """(name, Tensor) of each in nested dictionaries, in their order."""
    for key, value in tree.items():
        if isinstance(value, Tensor):
            yield prefix + key, value
        elif isinstance(value, dict):
            yield from _tensors(value, f"{prefix}{key}/")


def _array(tensor: Tensor, raw: bytes) -> np.ndarray:
    values = np.frombuffer(raw, tensor.storage.dtype)
    last = tensor.offset + sum(
        (n - 1) * stride for n, stride in zip(tensor.shape, tensor.strides, strict=True)
    )
    positive = min((tensor.offset, *tensor.shape, *tensor.strides)) >= 0
    if len(values) != tensor.storage.size or not positive or last >= len(values):
        raise ValueError("a tensor is larger than its storage")
    strides = [stride * values.itemsize for stride in tensor.strides]
    view = np.lib.stride_tricks.as_strided(values[tensor.offset :], tensor.shape, strides)
    return np.ascontiguousarray(view).reshape(tensor.shape)


def _rebuild_tensor(storage, offset, shape, strides, *_) -> Tensor:
    if not isinstance(storage, Storage):
        raise ValueError("a tensor without a storage")
    return Tensor(storage, offset, tuple(shape), tuple(strides))


# What a pickle may apply, to plain data, and what is done instead.
APPLIED: dict[str, Callable] = {
    "torch._utils _rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils _rebuild_parameter": lambda tensor, *_: tensor,
    "torch.jit._pickle build_intlist": lambda values: values,
    "collections OrderedDict": lambda: {},
}


def walk(file: BinaryIO) -> Any:
    """What a pickle describes: plain data, with Storage and Tensor. Reads to its end, no further.

    Modules of TorchScript become dictionaries of their attributes.

    Raises:
        UserError: it describes something else.
        Exception: of any kind, where it is damaged.
    """
    stack, marks, memo = [], [], {}
    for opcode, argument, _ in pickletools.genops(file):
        name = opcode.name
        if name in CONSTANTS:
            stack.append(CONSTANTS[name]())
        elif name in LITERALS:
            stack.append(argument)
        elif name == "GLOBAL":
            stack.append(_allowed(argument))
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "MARK":
            marks.append(stack)
            stack = []
        elif name in MARKED:
            items, stack = stack, marks.pop()
            MARKED[name](stack, items)
        elif name in OPERATIONS:
            OPERATIONS[name](stack)
        elif name == "STOP":
            return stack.pop()
        elif name != "PROTO":
            raise UserError(f"its pickle has the instruction {name}, which no tensor needs")
    raise ValueError("a pickle without an end")


def _allowed(name: str) -> Name:
    if name in APPLIED or name in DTYPES or name.startswith("__torch__."):
        return Name(name)
    raise UserError(f"its pickle names {name!r}, which is no part of a tensor")


def _reduce(stack: list) -> None:
    arguments, function = stack.pop(), stack.pop()
    if not isinstance(function, Name) or function not in APPLIED:
        raise UserError(f"its pickle calls {function!r}, which makes no tensor")
    stack.append(APPLIED[function](*arguments))


def _new_module(stack: list) -> None:
    arguments, name = stack.pop(), stack.pop()
    if arguments or not isinstance(name, Name) or not name.startswith("__torch__."):
        raise UserError(f"its pickle makes {name!r}, which is no module of TorchScript")
    stack.append({})


def _persistent(stack: list) -> None:
    kind, dtype, key, _, size, *_ = stack.pop()
    if kind != "storage" or not isinstance(dtype, Name) or dtype not in DTYPES:
        raise UserError(f"its pickle refers to a {kind} of {dtype}; float32 and int64 are read")
    stack.append(Storage(DTYPES[dtype], key, size))


def _set_item(stack: list) -> None:
    value, key = stack.pop(), stack.pop()
    stack[-1][key] = value


def _build(stack: list) -> None:
    state = stack.pop()
    stack[-1].update(state)


def _tuple_of(count: int) -> Callable[[list], None]:
    def operation(stack: list) -> None:
        stack[-count:] = [tuple(stack[-count:])]

    return operation


# The instructions that are followed, by the names of `pickletools`.
LITERALS = frozenset("BININT BININT1 BININT2 LONG1 BINUNICODE".split())
CONSTANTS: dict[str, Callable] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
}
MARKED: dict[str, Callable[[list, list], None]] = {
    "TUPLE": lambda stack, items: stack.append(tuple(items)),
    "APPENDS": lambda stack, items: stack[-1].extend(items),
    "SETITEMS": lambda stack, items: stack[-1].update(zip(items[::2], items[1::2], strict=True)),
}
OPERATIONS: dict[str, Callable[[list], None]] = {
    "TUPLE1": _tuple_of(1),
    "TUPLE2": _tuple_of(2),
    "TUPLE3": _tuple_of(3),
    "APPEND": lambda stack: stack[-2].append(stack.pop()),
    "SETITEM": _set_item,
    "BUILD": _build,
    "BINPERSID": _persistent,
    "NEWOBJ": _new_module,
    "REDUCE": _reduce,
}
