"""The house is as it is drawn: which rooms there are, what may know what, and how large it gets."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "diffusion_distill"
PICTURE = re.search(r"```\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.S)[1]

# From the ground up. A module imports from its own floor and from those below.
FLOORS = [
    "config errors stages version diffusion metrics.names",
    "paper validate storage devices models terminal",
    "runs data",
    "generate metrics training interop report",
    "run plan explore",
    "main sample evaluate",
]
# (who, whom they must not import)
CLOSED = [
    ("config", "*"),
    ("diffusion", "*"),
    ("stages metrics.names", "config version diffusion"),
    ("metrics report", "training"),
    ("runs.checkpoints", "training models stages"),
    ("storage devices terminal", "config validate paper stages"),
    ("*", "main sample evaluate"),
]
TRAINERS = "run plan training"  # who may import training

LINES = 320  # of a file
FUNCTION_LINES = 80
PARAMETERS = 6  # self and cls not counted
MODULES = 12  # beside the rooms
# What is larger, and why: a file, or a function as "file:name".
EXCEPTIONS = {
    "config.py:base": "a table: a line or two for each field",
    "interop/load.py:load_sampler": "a person's one way in: what, and how it is asked for",
    "diffusion/samplers.py:ancestral": "the samplers' one signature, and its variance",
}


def dotted(path):
    """A file's name in the package, "training.loop"; a room's __init__ is the room."""
    parts = path.relative_to(ROOT / PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {dotted(path): path for path in sorted((ROOT / PACKAGE).rglob("*.py"))}
TREES = {name: ast.parse(path.read_text()) for name, path in FILES.items()}


def is_in(name, rooms):
    """Whether a module is one of `rooms`, or in one: modules and rooms, with spaces between."""
    return any(name == room or name.startswith(f"{room}.") for room in rooms.split())


def targets(name):
    """The package's modules that a module names in imports, wherever in it they stand."""
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            full = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name}: imports are by full name"
            within = [f"{node.module}.{alias.name}" for alias in node.names]
            full = [w if w.removeprefix(f"{PACKAGE}.") in FILES else node.module for w in within]
        else:
            continue
        for module in full:
            if module == PACKAGE or module.startswith(f"{PACKAGE}."):
                yield module.removeprefix(PACKAGE).removeprefix(".")


# Without the package itself: its version may be known to all.
IMPORTS = {name: sorted(set(targets(name)) - {""}) for name in FILES if name}


def floor(name):
    """The number of a module's floor, by the longest name that fits."""
    fits = [(len(r), n) for n, rooms in enumerate(FLOORS) for r in rooms.split() if is_in(name, r)]
    assert fits, f"{name} has no floor: FLOORS says where a module or room stands"
    return max(fits)[1]


def test_imports_are_found_where_they_stand():
    assert {"training.loop", "stages", "devices.compiler"} <= set(IMPORTS["run"])
    assert "interop.load" in set(targets(""))  # inside of a function
    assert all(module in FILES for modules in IMPORTS.values() for module in modules)


def test_modules_import_from_their_own_floor_and_below():
    wrong = [f"{a} -> {b}" for a in IMPORTS for b in IMPORTS[a] if floor(b) > floor(a)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("who, whom", CLOSED)
def test_what_must_not_be_known(who, whom):
    wrong = [
        f"{a} -> {b}"
        for a in IMPORTS
        for b in IMPORTS[a]
        if (who == "*" or is_in(a, who))
        and (not is_in(b, a.split(".")[0]) if whom == "*" else is_in(b, whom))
    ]
    assert not wrong, "\n".join(wrong)


def test_only_a_run_and_its_plan_know_training():
    wrong = [
        f"{a} -> {b}"
        for a in IMPORTS
        for b in IMPORTS[a]
        if is_in(b, "training") and not is_in(a, TRAINERS)
    ]
    assert not wrong, "\n".join(wrong)


def drawn():
    """(indentation, names) of the picture's lines: "  main.py sample.py    what they are"."""
    for line in PICTURE.splitlines():
        names = re.match(r" *((?:\w+(?:\.py|/) )+) *", f"{line} ")
        if names:
            yield len(line) - len(line.lstrip()), names[1].split()


def test_the_picture_shows_every_room_and_every_module_beside_them():
    shown = {name for indentation, names in drawn() if indentation == 2 for name in names}
    folders = {path.parent for path in FILES.values() if path.parent.parent == ROOT / PACKAGE}
    modules = {path for path in FILES.values() if path.parent == ROOT / PACKAGE}
    there = {f"{folder.name}/" for folder in folders} | {path.name for path in modules}
    assert shown == there - {"__init__.py"}


def test_what_the_picture_shows_is_there():
    room = None
    for indentation, names in drawn():
        folder = {0: ROOT, 2: ROOT / PACKAGE}.get(indentation, room)
        for name in names:
            assert (folder / name).exists(), f"{folder / name} is drawn, but not there"
        if indentation == 2:
            room = folder / names[0]


def test_few_modules_stand_beside_the_rooms():
    modules = [path.name for path in (ROOT / PACKAGE).glob("*.py")]
    assert len(modules) <= MODULES, sorted(modules)


def sizes():
    """(what, how large, the limit) of files, and of functions in lines and in parameters."""
    for name, path in FILES.items():
        file = path.relative_to(ROOT / PACKAGE).as_posix()
        yield file, len(path.read_text().splitlines()), LINES
        for node in ast.walk(TREES[name]):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                arguments = node.args
                names = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
                names += [x for x in (arguments.vararg, arguments.kwarg) if x]
                count = sum(x.arg not in ("self", "cls") for x in names)
                yield f"{file}:{node.name}", node.end_lineno - node.lineno + 1, FUNCTION_LINES
                yield f"{file}:{node.name}", count, PARAMETERS


def test_files_and_functions_stay_small():
    large = {f"{what}: {size}, limit {most}": what for what, size, most in sizes() if size > most}
    wrong = [text for text, what in large.items() if what not in EXCEPTIONS]
    assert not wrong, "\n".join(wrong)
    assert set(EXCEPTIONS) == set(large.values()), "these are small now; no exception is needed"
