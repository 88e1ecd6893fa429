"""Constants out of a frozen TensorFlow graph (a GraphDef, .pb), without TensorFlow."""

import numpy as np
from google.protobuf.message import DecodeError
from tensorboardX.proto.graph_pb2 import GraphDef
from tensorboardX.proto.types_pb2 import DT_FLOAT

from diffusion_distill.errors import UserError


def read_graph(data: bytes) -> dict[str, np.ndarray]:
    """The float32 constants of a graph, by the names of their nodes.

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
