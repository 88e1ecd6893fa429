"""The collectives of a compiled program, read from its text."""

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Callable

BYTES = {"pred": 1, "bf16": 2, "f16": 2, "f32": 4, "f64": 8} | {
    f"{sign}{bits}": max(bits // 8, 1) for sign in "su" for bits in (2, 4, 8, 16, 32, 64)
}

# Bytes that each of n devices sends, as a multiple of Collective.bytes: those of a ring, and no
# algorithm sends fewer.
_SENT = {
    "all-reduce": lambda n: 2 * (n - 1) / n,
    **dict.fromkeys(("all-gather", "reduce-scatter", "all-to-all"), lambda n: (n - 1) / n),
    "collective-permute": lambda n: 1.0,
}

# What is only started shows its operand beside its result: the result's share of the two.
_OF_RESULT = {"all-gather": lambda n: n / (n + 1), "collective-permute": lambda n: 1 / 2}

# What libtpu makes of a reduce-scatter: a computation of this name, which reduces the whole of it
# and then takes a slice. The two are one operation, and no device sends more than for its slice.
_REDUCE_SCATTER = "all-reduce-scatter"

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*\{\s*$")
_COLLECTIVE = re.compile(rf"= (.*?) ({'|'.join(_SENT)})(?:-start)?\(")
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:calls|to_apply|body|called_computations)=\{?%?([\w.-]+)")


@dataclasses.dataclass(frozen=True)
class Collective:
    """All collectives of one kind among groups of one size."""

    kind: str  # "all-reduce" and the like
    group: int  # devices that take part in each
    count: float  # one in a loop counts with every turn
    # Of the arrays of all: what an all-gather results in, what a reduce-scatter begins with.
    bytes: float

    @property
    def sent(self) -> float:
        """Bytes that each device sends at the least."""
        return self.bytes * _SENT[self.kind](self.group)


def collectives(text: str, num_devices: int) -> list[Collective]:
    """The collectives of a program, from the text of its optimised HLO.

    A loop counts with its turns where the text says how many, else with one.
    """
    parts, found = computations(text), defaultdict(lambda: [0, 0])
    times = turns(parts)
    for name, lines in parts.items():
        for line in lines:
            match = _COLLECTIVE.search(line)
            if not match or not times[name]:
                continue
            kind, group = match[2], _group(line, num_devices)
            size = _size(match[1])
            if f"{kind}-start(" in line:
                size = _OF_RESULT.get(kind, lambda n: 1.0)(group) * size
            if kind == "reduce-scatter":
                size *= group
            elif kind == "all-reduce" and name.startswith(_REDUCE_SCATTER):
                kind = "reduce-scatter"
            total = found[kind, group]
            total[0] += times[name]
            total[1] += times[name] * round(size)
    return [Collective(*key, *total) for key, total in sorted(found.items()) if key[1] > 1]


def computations(text: str) -> dict[str, list[str]]:
    """The lines of each computation; of the entry under ""."""
    found, name = {}, None
    for line in text.splitlines():
        match = _COMPUTATION.match(line)
        if match:
            name = "" if line.startswith("ENTRY") else match[1]
            found[name] = []
        elif name is not None:
            found[name].append(line)
    return found


def turns(
    parts: dict[str, list[str]], called: Callable[[str], list[str]] = _CALLED.findall
) -> dict[str, int]:
    """How often each of the `computations` runs in one run of the entry.

    `called` gives the names of those that the operation on a line runs.
    """
    times = dict.fromkeys(parts, 0)

    def visit(name: str, number: int) -> None:
        times[name] += number
        for line in parts[name]:
            loop = _trip_count(line, parts) if " while(" in line else 1
            for inner in called(line):
                if inner in parts:
                    visit(inner, number * loop)

    if "" in parts:
        visit("", 1)
    return times


def _trip_count(line: str, computations: dict[str, list[str]]) -> int:
    """The turns of a loop that counts up from 0 to a constant, as a scan does; else 1."""
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"', line)
    if known:
        return int(known[1])
    condition = re.search(r"condition=%?([\w.-]+)", line)
    lines = computations.get(condition[1], []) if condition else []
    limits = [m[1] for m in (re.search(r"= s32\[\][^=]* constant\((\d+)\)", x) for x in lines) if m]
    counts_up = any("direction=LT" in x for x in lines)
    return int(limits[0]) if counts_up and len(limits) == 1 else 1


def _group(line: str, num_devices: int) -> int:
    """How many devices take part together."""
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", line)
    if listed:
        return len(listed[1].split(","))
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\]<=", line)
    if iota:
        return int(iota[2])
    mesh = re.search(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}", line)
    if mesh:
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", mesh[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'([^']+)'", mesh[2]))
    return num_devices  # also a collective-permute's, which has pairs instead


def _size(shapes: str) -> int:
    """Bytes of an array, or of a tuple of them, as XLA writes their shapes."""
    return sum(
        BYTES[kind] * math.prod(int(n) for n in axes.split(",") if n)
        for kind, axes in _ARRAY.findall(shapes)
        if kind in BYTES
    )
