"""Small files in the formats of PyTorch and TensorFlow, written byte by byte."""

import io
import struct
import zipfile


def name(module, attribute):
    return f"c{module}\n{attribute}\n".encode()


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def integer(value):
    return b"J" + struct.pack("<i", value)


def sequence(*items):
    """A tuple."""
    return b"(" + b"".join(items) + b"t"


def mapping(items):
    return b"}(" + b"".join(text(key) + value for key, value in items.items()) + b"u"


def ordered(items):
    """An OrderedDict."""
    return name("collections", "OrderedDict") + b")R(" + mapping(items)[2:]


def module(items):
    """A module of TorchScript with these attributes."""
    return name("__torch__.inception", "Net") + b")\x81" + mapping(items) + b"b"


def storage(key, size, dtype="FloatStorage", more=b""):
    described = (text("storage"), name("torch", dtype), text(key), text("cpu"), integer(size))
    return sequence(*described, more) + b"Q"


def tensor(stored, offset, shape, strides):
    arguments = sequence(
        stored,
        integer(offset),
        sequence(*map(integer, shape)),
        sequence(*map(integer, strides)),
        b"\x89",
        ordered({}),
    )
    return name("torch._utils", "_rebuild_tensor_v2") + arguments + b"R"


def program(value):
    return b"\x80\x02" + value + b"."


def torch_zip(value, entries):
    """The zip layout: a pickle of `value`, and the bytes of each storage."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", program(value))
        for key, data in entries.items():
            archive.writestr(f"archive/data/{key}", data)
    return buffer


def torch_legacy(value, entries, itemsize=4):
    """The layout before 1.6; `entries` in the file's order."""
    magic = b"\x8a\x0a" + (0x1950A86A20F9469CFC6C).to_bytes(10, "little")
    machine = mapping({"protocol_version": integer(1001), "little_endian": b"\x88"})
    keys = b"](" + b"".join(map(text, entries)) + b"e"
    pickles = [magic, b"M\xe9\x03", machine, value, keys]
    storages = [struct.pack("<q", len(data) // itemsize) + data for data in entries.values()]
    return io.BytesIO(b"".join(map(program, pickles)) + b"".join(storages))


def field(number, value):
    """A field of a protocol buffer: an integer, or bytes of any kind."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def varint(value):
    data = b""
    while value > 127:
        data += bytes([value & 127 | 128])
        value >>= 7
    return data + bytes([value])


def constant(node, shape, content=b"", floats=b"", dtype=1, op="Const"):
    """A node of a GraphDef, with the field numbers of TensorFlow's graph.proto and the rest."""
    dims = b"".join(field(2, field(1, size)) for size in shape)
    tensor = field(1, dtype) + field(2, dims)
    tensor += field(4, content) if content else field(5, floats)
    value = field(1, b"value") + field(2, field(8, tensor))
    kind = field(1, b"dtype") + field(2, field(6, dtype))
    parts = (field(1, node.encode()), field(2, op.encode()), field(5, kind), field(5, value))
    return field(1, b"".join(parts))
