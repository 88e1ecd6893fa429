"""What docs/ and README.md name is there: files, headings, functions, fields, commands."""

import ast
import importlib
import re
from pathlib import Path

import ml_collections
import pytest

from diffusion_distill import paper
from diffusion_distill.config import base
from diffusion_distill.errors import UserError
from diffusion_distill.validate import validate

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md"]
TABLES = (ROOT / "docs" / "config.md").read_text()

pages = pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)


def leaves(fields, above=""):
    """(path, value) of each field, those of sections included."""
    for name, value in fields.items():
        if isinstance(value, ml_collections.ConfigDict):
            yield from leaves(value, f"{above}{name}.")
        else:
            yield above + name, value


def codes(text):
    """What stands between single backticks."""
    return re.findall(r"`([^`]+)`", text)


FIELDS = dict(leaves(base()))
SECTIONS = {path.split(".")[0] for path in FIELDS if "." in path}
PAPER = [
    dict(leaves(config))
    for config in (paper.cifar10(), paper.imagenet64(), paper.lsun128("church"))
]
# path -> the other cells of its row.
ROWS = {
    codes(cells[0])[0]: cells[1:]
    for line in TABLES.splitlines()
    if line.startswith("| `")
    for cells in [[cell.strip() for cell in line.strip("|").split("|")]]
}


def test_every_field_is_there_with_its_default_and_none_is_extra():
    assert {path: ast.literal_eval(codes(row[0])[0]) for path, row in ROWS.items()} == FIELDS


@pytest.mark.parametrize("path", sorted(FIELDS))
def test_the_papers_values_are_those_of_its_configs(path):
    cell = ROWS[path][2]
    ours = [config[path] for config in PAPER]
    if cell != "—":
        values = [ast.literal_eval(code) for code in codes(cell)]
        assert (values * 3 if len(values) == 1 else values) == ours
    elif path.split(".")[0] in ("diffusion", "model", "teacher", "distill", "train"):
        assert ours == [FIELDS[path]] * 3  # what a paper's config sets, it has a value of


def probes(accepted):
    """(values that must be accepted, values that must not be), from a cell."""
    accepted = accepted.split(";")[0]
    names = [int(code) if code.isdigit() else code for code in codes(accepted)]
    numbers = [float(n) for n in re.findall(r"\d+", accepted)]
    if accepted == "text":
        return ["some"], [3]
    if accepted == "`True`, `False`":
        return [True, False], [1]
    if accepted.startswith("one of"):
        return names, ["no such", 2]
    if accepted.startswith("any of"):
        return [(), tuple(names)], [("no such",)]
    if accepted.startswith("one or more of"):
        return [(name,) for name in names], [(), ("no such",)]
    if accepted == "integers":
        return [(4, 8)], [(4.5,)]
    if accepted == "integers from 1":
        return [(1, 2)], [(), (0,), (1.5,)]
    if accepted == "power of 2":
        return [1, 4], [0, 3, 2.5]
    if accepted == "integer from 2, or 0":
        return [0, 2], [-1, 1, 2.5]
    kind = accepted.split()[0]
    assert kind in ("integer", "number"), f"{accepted!r} is no form that this test knows"
    if " to " in accepted:
        good, bad = numbers, [numbers[0] - 1, numbers[1] + 1]
    elif ", below" in accepted:
        good, bad = [numbers[0], numbers[1] / 2], [numbers[0] - 1, numbers[1]]
    elif "below" in accepted:
        good, bad = [numbers[0] - 1], numbers
    elif "from" in accepted:
        good, bad = numbers, [numbers[0] - 1]
    else:
        good, bad = [50], []
    if kind == "number":
        return good, [*bad, float("inf"), "1"]
    return [int(n) for n in good], [*(int(n) for n in bad), 1.5, "1"]


@pytest.mark.parametrize("path", sorted(FIELDS))
def test_what_is_accepted_is_what_the_table_says(path):
    def check(value):
        config = base()
        *section, name = path.split(".")
        with config.ignore_type():
            (config[section[0]] if section else config)[name] = value
        validate(config)

    good, bad = probes(ROWS[path][1])
    for value in good:
        check(value)
    for value in bad:
        with pytest.raises(UserError):
            check(value)


def anchors(page):
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pages
def test_links_lead_somewhere(page):
    for label, target in re.findall(r"\[([^\]]+)\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"https?:", target):
            continue
        file, _, anchor = target.partition("#")
        path = page.parent / file if file else page
        assert path.resolve().is_relative_to(ROOT), target
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), target
        name = re.fullmatch(r"`(\w+)`", label)
        if name and path.suffix == ".py":  # a function is named by a link to its file
            dotted = ".".join(path.resolve().relative_to(ROOT).with_suffix("").parts)
            module = importlib.import_module(dotted)
            assert hasattr(module, name[1]), f"{name[1]} is not in {target}"


@pages
def test_fields_and_functions_named_in_text_are_there(page):
    for code in codes(re.sub(r"```.*?```", "", page.read_text(), flags=re.S)):
        path = re.fullmatch(r"(?:--config\.|config\.)?((?:[a-z]\w*\.)+\w+)(?:=.*)?", code)
        is_file = code.endswith((".json", ".safetensors"))
        if path and path[1].split(".")[0] in SECTIONS and not is_file:
            assert path[1] in FIELDS, f"{code} is not a field"
        dotted = re.fullmatch(r"diffusion_distill((?:\.[a-z]\w*)+)\.(\w+)(?:\(.*\))?", code)
        if dotted:
            module = importlib.import_module(f"diffusion_distill{dotted[1]}")
            assert hasattr(module, dotted[2]), f"{code} is not there"


def commands(page):
    """The words of every command in a page's blocks that runs something of ours."""
    for block in re.findall(r"```[a-z]*\n(.*?)```", page.read_text(), re.S):
        for line in block.replace("\\\n", " ").splitlines():
            words = line.split("  #")[0].split()
            if "python" in words:
                yield words[words.index("python") + 1 :]


@pages
def test_commands_name_modules_configs_and_flags_that_are_there(page):
    for words in commands(page):
        if words[0] == "-m":
            file = ROOT / (words[1].replace(".", "/") + ".py")
            file = file if file.exists() else file.with_suffix("") / "__main__.py"
        else:
            file = ROOT / words[0]
        assert file.is_file(), f"{' '.join(words)}: no {file}"
        defined = (
            f"{file.read_text()}{(ROOT / 'diffusion_distill' / 'terminal' / 'cli.py').read_text()}"
        )
        known = set(re.findall(r"DEFINE_\w+\(\s*\"(\w+)\"", defined))
        for word in words:
            flag = re.match(r"--(\w+)((?:\.\w+)*)(?:=(\S+))?$", word)
            if flag and flag[2]:
                assert flag[2][1:] in FIELDS, f"{word} is not a field"
            elif flag:
                assert flag[1] in known, f"no flag {word}"
            if flag and flag[1] == "config" and not flag[2] and flag[3].startswith("configs/"):
                assert (ROOT / flag[3].split(":")[0]).is_file(), word


def test_the_check_of_commands_finds_them():
    assert any("diffusion_distill.main" in words for page in PAGES for words in commands(page))
