"""Where a compiled program's bytes go: what its operations read and write, from its text."""

import dataclasses
import math
import re
from collections import defaultdict

from diffusion_distill.plan.hlo import BYTES, computations, turns

# What moves nothing: it names a part of what is there, or stands for a computation that counts.
_FREE = {"get-tuple-element", "bitcast", "tuple", "parameter", "constant", "while", "conditional",
         "call", "after-all", "partition-id"}  # fmt: skip
_OPERATION = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*)$")
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\](?:\{([\d,]*)(?::T\(([\d,]+)\))?)?")
_SOURCE = re.compile(r'op_name="([^"]*)"')
_NUMBERED = re.compile(r"(block|attn)_\d+")  # alike, so counted as one
_WITHIN = re.compile(r"(jit\(\w+\)|while|body|closed_call|vmap\(\))/")


@dataclasses.dataclass(frozen=True)
class Operation:
    """What is written as one operation in the source, and may be several in the program."""

    source: str  # "jvp(UNet)/UNet._block/up_0.block_*/conv1/conv_general_dilated", of all blocks
    count: float  # operations of the program
    bytes: float  # that they read and write, with the padding that the layout asks for


def operations(text: str) -> list[Operation]:
    """The operations of a program by their source, from the text of its optimised HLO.

    Those that touch most are first. An operation reads each of its operands in full and writes its
    results: the compiler's own count differs by a few per cent, as it knows of slices. One in a
    loop counts with its turns where the text says how many; of a condition, all branches do. What
    is started and awaited counts at its start.
    """
    parts = computations(text)
    times = turns(parts, _run_as_they_stand)
    found = defaultdict(lambda: [0, 0])
    for name, lines in parts.items():
        if not times[name]:
            continue
        shapes = {}
        for line in lines:
            match = _OPERATION.match(line)
            if not match:
                continue
            result, shape, kind, rest = match.groups()
            shapes[result] = _size(shape)
            if kind in _FREE or kind.endswith("-done"):
                continue
            read = sum(shapes.get(o, 0) for o in re.findall(r"%([\w.-]+)", rest.split("), ")[0]))
            source = _SOURCE.search(rest)
            if kind.endswith("-start") and kind != "all-reduce-start":
                read = 0  # its operands are shown beside its result
            known = _NUMBERED.sub(r"\1_*", _WITHIN.sub("", source[1])) if source else ""
            total = found[known or kind]
            total[0] += times[name]
            total[1] += times[name] * (read + shapes[result])
    found = [Operation(source, *total) for source, total in found.items()]
    return sorted(found, key=lambda operation: -operation.bytes)


def _run_as_they_stand(line: str) -> list[str]:
    """The computations that an operation runs. A fusion's and a reduction's are part of it."""
    names = "body|called_computations|branch_computations|true_computation|false_computation"
    if " call(" in line:
        names += "|to_apply"
    lists = re.findall(rf"(?:{names})=(\{{[^}}]*\}}|[^\s,]+)", line)
    return re.findall(r"[\w.-]+", " ".join(lists))


def _size(shapes: str) -> int:
    """Bytes of an array, or of a tuple of them, as they lie in tiles."""
    total = 0
    for kind, axes, order, tile in _ARRAY.findall(shapes):
        sizes = [int(n) for n in axes.split(",") if n]
        if tile:  # the axis that is first in the layout is the last of a tile
            sizes = [sizes[int(axis)] for axis in order.split(",") if axis]
            for axis, least in enumerate(map(int, reversed(tile.split(",")))):
                if axis < len(sizes):
                    sizes[axis] = -(-sizes[axis] // least) * least
        total += BYTES.get(kind, 0) * math.prod(sizes)
    return total
